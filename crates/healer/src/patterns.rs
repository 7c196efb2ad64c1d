//! What is known about failures, as data: patterns with their rules, evidence, examples and the remedy they lead to.
//!
//! The text comes from `patterns.toml`, which is part of the binary; a user's file of the same shape adds to it or
//! overrides it. `docs/healing.md` describes the shape.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Version of the shape of a pattern file that this build reads.
pub const FORMAT: u32 = 1;
/// Largest pattern file, in bytes. The built-in one has a tenth of that.
const FILE_MAX: u64 = 1024 * 1024;
const BUILTIN: &str = include_str!("patterns.toml");

/// What a pattern leads to. A closed set: nothing that is read from a file, a log or a model can add to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Remedy {
    /// Restart the unit.
    Restart,
    /// Bring up what the unit depends on, each verified, then the unit.
    RestartDependencies,
    /// Find who holds the port; end an orphan of the same unit, or give the unit another port.
    ReassignPort,
    /// Restart the unit and, where the configuration allows, raise its memory limit up to the ceiling.
    RaiseMemory,
    /// Restart the database that the unit uses, unless the holder of the lock is alive and moving.
    RestartDatabase,
    /// Fetch the model where the configuration declares it with a hash; otherwise tell a person the exact path.
    FetchModel,
    /// Tell a person, with the evidence and the fix. Nothing a machine may do helps.
    Alert,
    /// Leave it alone for now: it is about to pass by itself.
    Wait,
    /// Nothing to do and nobody to tell.
    None,
}

impl Remedy {
    /// Every remedy, in the order of the documentation.
    pub const ALL: [Self; 9] = [
        Self::Restart,
        Self::RestartDependencies,
        Self::ReassignPort,
        Self::RaiseMemory,
        Self::RestartDatabase,
        Self::FetchModel,
        Self::Alert,
        Self::Wait,
        Self::None,
    ];

    /// Its name in pattern files, JSON and tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::RestartDependencies => "restart_dependencies",
            Self::ReassignPort => "reassign_port",
            Self::RaiseMemory => "raise_memory",
            Self::RestartDatabase => "restart_database",
            Self::FetchModel => "fetch_model",
            Self::Alert => "alert",
            Self::Wait => "wait",
            Self::None => "none",
        }
    }
}

impl fmt::Display for Remedy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Who wrote a line. journald vouches for it (`_TRANSPORT`, `_PID`); the text of a line does not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Nobody knows: plain text from a file or a pipe.
    #[default]
    Unknown,
    /// The kernel (`_TRANSPORT=kernel`).
    Kernel,
    /// systemd itself, as PID 1, about a unit (`_PID=1`).
    Systemd,
    /// A process of a unit.
    Unit,
}

/// A known failure.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pattern {
    /// Name, in lower case with underscores.
    pub name: String,
    /// What it means, for people.
    pub description: String,
    /// What it leads to.
    pub remedy: Remedy,
    /// Lines that are none of this pattern, whatever its rules say.
    pub unless: Vec<String>,
    /// Expressions whose named groups become evidence, looked for in a line that matched.
    pub evidence: Vec<String>,
    /// Expressions whose named groups become evidence, looked for in the lines before one that matched.
    pub context: Vec<String>,
    /// The ways it shows.
    pub rules: Vec<Rule>,
    /// Lines that look like it and are not.
    pub counterexamples: Vec<String>,
}

/// One way a pattern shows.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rule {
    /// Name, unique in its pattern.
    pub name: String,
    /// How near to the cause the line is, 1 to 100: of several lines of an incident the one with the highest counts.
    /// 90: names cause and object; 70: names the cause; 40: the same line follows from several causes.
    pub specificity: u8,
    /// Any of these, case ignored. Empty: `fields` alone decide.
    pub regex: Vec<String>,
    /// Lines that are none of this rule.
    pub unless: Vec<String>,
    /// Journal fields that must all have these values.
    pub fields: BTreeMap<String, String>,
    /// Who must have written it, where that is known.
    pub origin: Option<Origin>,
    /// What this rule leads to, where it differs from its pattern.
    pub remedy: Option<Remedy>,
    /// Lines that show it.
    pub examples: Vec<String>,
}

/// Lines that say nothing about a failure of the unit, whatever words they have: access logs, retries, debug output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Harmless {
    pub(crate) name: String,
    pub(crate) regex: Vec<String>,
    #[serde(default)]
    pub(crate) unless: Vec<String>,
    #[serde(default)]
    examples: Vec<String>,
}

/// Parts of a line that a client of the unit writes; blanked before any rule looks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Untrusted {
    pub(crate) name: String,
    /// The group `text` is what the client wrote.
    pub(crate) regex: Vec<String>,
}

/// All patterns, in the order in which they are tried when nothing else decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns {
    pub(crate) patterns: Vec<Pattern>,
    pub(crate) harmless: Vec<Harmless>,
    pub(crate) untrusted: Vec<Untrusted>,
}

/// Why patterns cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the pattern file {}: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// It is not TOML, or has a key that does not exist.
    #[error("the pattern file is wrong: {0}")]
    Toml(String),
    /// A later shape than this build knows.
    #[error("the pattern file has `version = {found}`; this build reads version {FORMAT}: write `version = {FORMAT}`")]
    Version {
        /// What the file says.
        found: u32,
    },
    /// A field is missing or wrong.
    #[error("pattern `{pattern}`, {field}: {problem}; {fix}")]
    Field {
        /// Name of the pattern.
        pattern: String,
        /// Which field, with the rule it belongs to.
        field: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        fix: String,
    },
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    version: u32,
    #[serde(default)]
    harmless: Vec<Harmless>,
    #[serde(default)]
    untrusted: Vec<Untrusted>,
    #[serde(default)]
    pattern: Vec<PatternText>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PatternText {
    name: Option<String>,
    #[serde(default = "yes")]
    enabled: bool,
    description: Option<String>,
    remedy: Option<String>,
    #[serde(default)]
    unless: Vec<String>,
    #[serde(default)]
    evidence: Vec<String>,
    #[serde(default)]
    context: Vec<String>,
    #[serde(default)]
    rule: Vec<RuleText>,
    #[serde(default)]
    counterexamples: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RuleText {
    name: Option<String>,
    #[serde(default = "yes")]
    enabled: bool,
    specificity: Option<i64>,
    #[serde(default)]
    regex: Vec<String>,
    #[serde(default)]
    unless: Vec<String>,
    #[serde(default)]
    fields: BTreeMap<String, String>,
    origin: Option<String>,
    remedy: Option<String>,
    #[serde(default)]
    examples: Vec<String>,
}

fn yes() -> bool {
    true
}

impl Patterns {
    /// The patterns that come with Lares.
    pub fn builtin() -> Self {
        let mut patterns = Self { patterns: Vec::new(), harmless: Vec::new(), untrusted: Vec::new() };
        patterns.add(BUILTIN).expect("a test reads the same constant text");
        patterns
    }

    /// The patterns that come with Lares, with what a user's file adds or overrides.
    pub fn with_file(path: &Path) -> Result<Self, Error> {
        let unreadable = |reason: String| Error::Unreadable { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?.len();
        if size > FILE_MAX {
            return Err(unreadable(format!("it has {size} bytes, more than {FILE_MAX}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(error.to_string()))?;
        let mut patterns = Self::builtin();
        patterns.add(&text)?;
        Ok(patterns)
    }

    /// Adds what the text of a pattern file says. A pattern whose name is known is changed: its `description` and
    /// `remedy` are replaced where they are given, its rules by name, and its lists become longer.
    /// `enabled = false` takes a pattern or a rule away. Nothing has changed after an error.
    pub fn add(&mut self, text: &str) -> Result<(), Error> {
        let file: File = toml::from_str(text).map_err(|error| Error::Toml(error.to_string().trim_end().to_owned()))?;
        if file.version != FORMAT {
            return Err(Error::Version { found: file.version });
        }
        let mut patterns = self.patterns.clone();
        for (position, text) in file.pattern.into_iter().enumerate() {
            add_pattern(&mut patterns, position, text)?;
        }
        self.patterns = patterns;
        self.harmless.extend(file.harmless);
        self.untrusted.extend(file.untrusted);
        Ok(())
    }

    /// Every pattern.
    pub fn iter(&self) -> impl Iterator<Item = &Pattern> {
        self.patterns.iter()
    }

    /// The pattern with this name.
    pub fn get(&self, name: &str) -> Option<&Pattern> {
        self.patterns.iter().find(|pattern| pattern.name == name)
    }

    /// Lines that must be recognised as nothing, with the name of what they are.
    pub(crate) fn harmless_examples(&self) -> impl Iterator<Item = (&str, &str)> {
        self.harmless.iter().flat_map(|h| h.examples.iter().map(|line| (h.name.as_str(), line.as_str())))
    }
}

fn add_pattern(patterns: &mut Vec<Pattern>, position: usize, text: PatternText) -> Result<(), Error> {
    let Some(name) = text.name else {
        return Err(wrong(&format!("number {}", position + 1), "name", "is missing", "give it a name of its own"));
    };
    check_name(&name, "name", &name)?;
    let known = patterns.iter().position(|pattern| pattern.name == name);
    if !text.enabled {
        let Some(known) = known else {
            return Err(wrong(&name, "enabled", "there is no such pattern to take away", &one_of(patterns)));
        };
        patterns.remove(known);
        return Ok(());
    }
    let remedy = text.remedy.map(|remedy| parse_remedy(&name, "remedy", &remedy)).transpose()?;
    let required = |field: &str, fix: &str| wrong(&name, field, "is missing", fix);
    let mut pattern = match known {
        Some(known) => patterns[known].clone(),
        None => Pattern {
            name: name.clone(),
            description: text
                .description
                .clone()
                .ok_or_else(|| required("description", "say in a sentence what it means"))?,
            remedy: remedy.ok_or_else(|| required("remedy", &remedy_choice()))?,
            unless: Vec::new(),
            evidence: Vec::new(),
            context: Vec::new(),
            rules: Vec::new(),
            counterexamples: Vec::new(),
        },
    };
    if let Some(description) = text.description {
        pattern.description = description;
    }
    pattern.remedy = remedy.unwrap_or(pattern.remedy);
    pattern.unless.extend(text.unless);
    pattern.evidence.extend(text.evidence);
    pattern.context.extend(text.context);
    pattern.counterexamples.extend(text.counterexamples);
    let mut seen = BTreeSet::new();
    for (position, rule) in text.rule.into_iter().enumerate() {
        let label = rule.name.clone().unwrap_or_else(|| format!("number {}", position + 1));
        if !seen.insert(label.clone()) {
            let field = format!("rule `{label}`");
            return Err(wrong(&name, &field, "is there twice", "give each rule a name of its own"));
        }
        add_rule(&name, &mut pattern.rules, &label, rule)?;
    }
    if pattern.rules.is_empty() {
        return Err(wrong(&name, "rule", "there is none", "add a [[pattern.rule]] with `regex` or `fields`"));
    }
    match known {
        Some(known) => patterns[known] = pattern,
        None => patterns.push(pattern),
    }
    Ok(())
}

fn add_rule(pattern: &str, rules: &mut Vec<Rule>, label: &str, text: RuleText) -> Result<(), Error> {
    let field = |field: &str| format!("rule `{label}`, {field}");
    let Some(name) = text.name else {
        return Err(wrong(pattern, &field("name"), "is missing", "give the rule a name"));
    };
    check_name(pattern, &field("name"), &name)?;
    let known = rules.iter().position(|rule| rule.name == name);
    if !text.enabled {
        let Some(known) = known else {
            return Err(wrong(pattern, &field("enabled"), "there is no such rule to take away", "check its name"));
        };
        rules.remove(known);
        return Ok(());
    }
    if text.regex.is_empty() && text.fields.is_empty() {
        return Err(wrong(pattern, &field("regex"), "is missing", "give `regex`, `fields` or both"));
    }
    let specificity = text.specificity.unwrap_or(70);
    let Some(specificity) = u8::try_from(specificity).ok().filter(|value| (1..=100).contains(value)) else {
        return Err(wrong(pattern, &field("specificity"), &format!("is {specificity}"), "use 1 to 100"));
    };
    let origin = match text.origin.as_deref() {
        None => None,
        Some("kernel") => Some(Origin::Kernel),
        Some("systemd") => Some(Origin::Systemd),
        Some("unit") => Some(Origin::Unit),
        Some(other) => {
            let problem = format!("`{other}` is no origin");
            return Err(wrong(pattern, &field("origin"), &problem, "use `kernel`, `systemd` or `unit`"));
        }
    };
    let remedy = text.remedy.map(|remedy| parse_remedy(pattern, &field("remedy"), &remedy)).transpose()?;
    let RuleText { regex, unless, fields, examples, .. } = text;
    let rule = Rule { name, specificity, regex, unless, fields, origin, remedy, examples };
    match known {
        Some(known) => rules[known] = rule,
        None => rules.push(rule),
    }
    Ok(())
}

fn check_name(pattern: &str, field: &str, name: &str) -> Result<(), Error> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if (1..=64).contains(&name.len()) && name.chars().all(fits) {
        return Ok(());
    }
    let problem = format!("`{}` is no name", name.escape_debug());
    Err(wrong(pattern, field, &problem, "use 1 to 64 of a-z, 0-9 and underscore"))
}

fn parse_remedy(pattern: &str, field: &str, text: &str) -> Result<Remedy, Error> {
    let found = Remedy::ALL.into_iter().find(|remedy| remedy.name() == text);
    found.ok_or_else(|| wrong(pattern, field, &format!("`{text}` is no remedy"), &remedy_choice()))
}

fn remedy_choice() -> String {
    format!("use one of {}", Remedy::ALL.map(Remedy::name).join(", "))
}

fn one_of(patterns: &[Pattern]) -> String {
    let names: Vec<&str> = patterns.iter().map(|pattern| pattern.name.as_str()).collect();
    format!("known are {}", names.join(", "))
}

pub(crate) fn wrong(pattern: &str, field: &str, problem: &str, fix: &str) -> Error {
    Error::Field { pattern: pattern.into(), field: field.into(), problem: problem.into(), fix: fix.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str) -> String {
        Patterns::builtin().add(text).expect_err("it should have been refused").to_string()
    }

    #[test]
    fn the_patterns_that_the_healer_has_remedies_for_are_there() {
        let patterns = Patterns::builtin();
        let remedies: Vec<_> = [
            "port_conflict",
            "oom_kill",
            "connection_refused",
            "model_missing",
            "database_locked",
            "permission_denied",
            "disk_full",
        ]
        .map(|name| patterns.get(name).map_or("absent", |pattern| pattern.remedy.name()))
        .into();
        let expected = "reassign_port raise_memory restart_dependencies fetch_model restart_database alert alert";
        assert_eq!(remedies.join(" "), expected);
    }

    #[test]
    fn names_in_files_are_the_names_in_json() {
        for remedy in Remedy::ALL {
            assert_eq!(serde_json::to_value(remedy).expect("it is a string"), remedy.name());
        }
    }

    #[test]
    fn a_users_file_adds_changes_and_takes_away() {
        let mut patterns = Patterns::builtin();
        let rules = patterns.get("port_conflict").map_or(0, |pattern| pattern.rules.len());
        let text = r#"
            version = 1
            [[pattern]]
            name = "licence_expired"
            description = "The licence of the product has run out"
            remedy = "alert"
            [[pattern.rule]]
            name = "own"
            regex = ["licence expired"]
            [[pattern]]
            name = "port_conflict"
            remedy = "alert"
            [[pattern.rule]]
            name = "own"
            regex = ["somebody sits on my port"]
            [[pattern]]
            name = "disk_full"
            enabled = false
        "#;
        patterns.add(text).expect("it is right");
        assert_eq!(patterns.get("licence_expired").map(|p| p.rules[0].specificity), Some(70));
        let changed = patterns.get("port_conflict").expect("it is still there");
        assert_eq!((changed.remedy, changed.rules.len()), (Remedy::Alert, rules + 1));
        assert_eq!(patterns.get("disk_full"), None);
    }

    #[test]
    fn a_wrong_file_is_refused_with_pattern_field_and_fix() {
        let cases = [
            ("version = 2", "write `version = 1`"),
            ("version = 1\n[[pattern]]\nname = \"Port Conflict\"", "use 1 to 64 of a-z"),
            ("version = 1\n[[pattern]]\nname = \"x\"\nremedy = \"alert\"", "pattern `x`, description: is missing"),
            (
                "version = 1\n[[pattern]]\nname = \"x\"\ndescription = \"d\"",
                "pattern `x`, remedy: is missing; use one of",
            ),
            (
                "version = 1\n[[pattern]]\nname = \"x\"\ndescription = \"d\"\nremedy = \"rm -rf\"",
                "pattern `x`, remedy: `rm -rf` is no remedy; use one of restart, ",
            ),
            (
                "version = 1\n[[pattern]]\nname = \"x\"\ndescription = \"d\"\nremedy = \"alert\"",
                "pattern `x`, rule: there is none",
            ),
            (
                "version = 1\n[[pattern]]\nname = \"oom_kill\"\n[[pattern.rule]]\nname = \"a\"",
                "pattern `oom_kill`, rule `a`, regex: is missing",
            ),
            (
                "version = 1\n[[pattern]]\nname = \"oom_kill\"\n[[pattern.rule]]\nname = \"a\"\nregex = [\"a\"]\nspecificity = 0",
                "rule `a`, specificity: is 0; use 1 to 100",
            ),
            (
                "version = 1\n[[pattern]]\nname = \"oom_kill\"\n[[pattern.rule]]\nname = \"a\"\nregex = [\"a\"]\norigin = \"me\"",
                "rule `a`, origin: `me` is no origin",
            ),
            (
                "version = 1\n[[pattern]]\nname = \"gone\"\nenabled = false",
                "there is no such pattern to take away; known",
            ),
            ("version = 1\n[[pattern]]\nname = \"oom_kill\"\nregx = []", "unknown field `regx`"),
            ("[[pattern]", "line 1"),
        ];
        for (text, says) in cases {
            let said = refusal(text);
            assert!(said.contains(says), "{says:?} is not in: {said}");
        }
    }

    #[test]
    fn after_an_error_nothing_has_changed() {
        let mut patterns = Patterns::builtin();
        let text = "version = 1\n[[pattern]]\nname = \"oom_kill\"\nremedy = \"wait\"\n[[pattern]]\nname = \"x\"";
        patterns.add(text).expect_err("the second pattern has no description");
        assert_eq!(patterns, Patterns::builtin());
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let said = Patterns::with_file(Path::new("/nonexistent/patterns.toml")).expect_err("it is absent").to_string();
        assert!(said.contains("/nonexistent/patterns.toml"), "{said}");
    }
}
