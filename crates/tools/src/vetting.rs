//! What is wrong with a definition, said to a person.
//!
//! A definition reaches a model as if a trusted hand had written it, so a hostile tool server writes its orders there
//! (tool poisoning), hides them from people (invisible characters, comments, padding), puts them where nobody looks
//! (defaults, enums), lays itself over another server's tool (shadowing), or shows a clean definition first and
//! another one later (rug pull).
//! The rules read a text as a model would: case, accents, look-alike letters, digits for letters, letters set apart and
//! invisible characters make no difference. They look for what a text asks for, not for known sentences.
//! Everything here is a pure function of its arguments, and takes time linear in the size of the definition.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::definition::Definition;

mod bounds;
mod changes;
mod excerpt;
mod hidden;
mod markup;
mod names;
mod payload;
mod phrases;
mod reading;
mod texts;

pub use bounds::{MAX_DEFINITION_BYTES, MAX_DEPTH, MAX_PROPERTIES, MAX_TEXT_BYTES, MAX_VALUES, TooBig, bounds};
pub use changes::{Change, MAX_CHANGES, changes};
pub use excerpt::{MAX_EXCERPT, shown};
pub use names::{Neighbour, Neighbours};

use texts::{Role, Text};

/// Most findings for one definition; more would tell nothing new.
pub const MAX_FINDINGS: usize = 64;

/// What a finding is about. The ids are stable: they stand in stores and in scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Rule {
    /// Tells the model to disregard what it was told before.
    Override,
    /// Tells the model who it is, or that no limits hold for it.
    Persona,
    /// Wants something kept from the person.
    Secrecy,
    /// Asks for private files, keys or passwords.
    PrivateData,
    /// Sends data to an address.
    Exfiltration,
    /// Asks for the conversation, the system prompt or the model's thoughts.
    AsksForContext,
    /// Acts, or has the model act, without the person's consent.
    NoConsent,
    /// Changes how another tool is used, or puts itself before all others.
    Steering,
    /// Gives the name of another server's tool orders of its own.
    Shadowing,
    /// Has the same name as another server's tool.
    SameName,
    /// Has a name that is easily taken for that of another server's tool.
    LookAlikeName,
    /// Puts something into every answer.
    ForcedAnswer,
    /// Threatens with failure or refers to an authority so that it is obeyed.
    Pressure,
    /// Tags and markers that imitate the system or a speaker.
    RoleMarker,
    /// Characters nobody sees.
    HiddenCharacters,
    /// Escape sequences that change what a terminal shows.
    TerminalEscape,
    /// Text that disappears when it is rendered.
    HiddenMarkup,
    /// White space that pushes text out of sight.
    Padding,
    /// Letters of another alphabet inside a word.
    MixedScripts,
    /// Orders in a part of the schema that nobody reads.
    UnreadText,
    /// A dangerous shell command.
    ShellCommand,
    /// Text that must be decoded to be read.
    EncodedPayload,
    /// Annotations that say the opposite of the text.
    Contradiction,
    /// Larger than a definition may be.
    TooBig,
}

impl Rule {
    /// The id, as it stands in JSON.
    pub fn id(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::Persona => "persona",
            Self::Secrecy => "secrecy",
            Self::PrivateData => "private-data",
            Self::Exfiltration => "exfiltration",
            Self::AsksForContext => "asks-for-context",
            Self::NoConsent => "no-consent",
            Self::Steering => "steering",
            Self::Shadowing => "shadowing",
            Self::SameName => "same-name",
            Self::LookAlikeName => "look-alike-name",
            Self::ForcedAnswer => "forced-answer",
            Self::Pressure => "pressure",
            Self::RoleMarker => "role-marker",
            Self::HiddenCharacters => "hidden-characters",
            Self::TerminalEscape => "terminal-escape",
            Self::HiddenMarkup => "hidden-markup",
            Self::Padding => "padding",
            Self::MixedScripts => "mixed-scripts",
            Self::UnreadText => "unread-text",
            Self::ShellCommand => "shell-command",
            Self::EncodedPayload => "encoded-payload",
            Self::Contradiction => "contradiction",
            Self::TooBig => "too-big",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Severity {
    /// Worth knowing when something else is wrong too.
    Info,
    /// A person should look before the tool is approved.
    Warning,
    /// The tool must not be called before a person has looked, whoever its server is.
    Danger,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Danger => "danger",
        })
    }
}

/// One thing that is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Which rule found it.
    pub rule: Rule,
    /// How bad it is.
    pub severity: Severity,
    /// Where: `description`, `input_schema/properties/path/description`.
    pub field: String,
    /// The text that was found, at most [`MAX_EXCERPT`] characters; hidden characters stand as `\u{E0049}`.
    pub excerpt: String,
    /// Why it matters, in one sentence.
    pub why: String,
}

/// All that is wrong with a definition, the worst first; never more than [`MAX_FINDINGS`].
///
/// A definition beyond [`bounds`] is not read: it has the one finding that says so.
pub fn vet(definition: &Definition, around: &Neighbours) -> Vec<Finding> {
    if let Err(error) = bounds(definition) {
        return vec![Finding {
            rule: Rule::TooBig,
            severity: Severity::Danger,
            field: error.field().to_owned(),
            excerpt: String::new(),
            why: error.to_string(),
        }];
    }
    let mut found = Findings::default();
    for text in texts::texts(definition) {
        read(&text, &mut found);
    }
    names::vet(definition, around, &mut found);
    names::contradiction(definition, &mut found);
    found.finish()
}

/// Everything that one text shows.
fn read(text: &Text<'_>, found: &mut Findings) {
    hidden::vet(text, found);
    if text.role != Role::Name && text.role != Role::ParameterName {
        markup::vet(text, found);
        payload::vet(text, found);
    }
    phrases::vet(text, found);
    texts::odd_place(text, found);
}

/// Findings as they come, one a rule and field.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    /// Notes one. `at` are the bytes of `text` it was seen at.
    fn add(&mut self, rule: Rule, severity: Severity, text: &Text<'_>, at: std::ops::Range<usize>, why: &str) {
        let severity = if text.role == Role::Unread && severity == Severity::Warning && rule != Rule::UnreadText {
            // Nobody reads these places, so there is no reason to write orders there.
            Severity::Danger
        } else {
            severity
        };
        self.put(Finding {
            rule,
            severity,
            field: shown(&text.field, 0..text.field.len()),
            excerpt: shown(text.raw, at),
            why: why.to_owned(),
        });
    }

    fn put(&mut self, finding: Finding) {
        let same = |known: &Finding| known.rule == finding.rule && known.field == finding.field;
        if let Some(at) = self.0.iter().position(same) {
            if let Some(known) = self.0.get_mut(at).filter(|known| known.severity < finding.severity) {
                *known = finding;
            }
        } else if self.0.len() < MAX_FINDINGS {
            self.0.push(finding);
        } else if let Some(least) = self.0.iter_mut().min_by_key(|known| known.severity)
            && least.severity < finding.severity
        {
            // A full list keeps the worst.
            *least = finding;
        }
    }

    fn finish(mut self) -> Vec<Finding> {
        self.0
            .sort_by(|a, b| b.severity.cmp(&a.severity).then(a.rule.cmp(&b.rule)).then_with(|| a.field.cmp(&b.field)));
        self.0
    }
}
