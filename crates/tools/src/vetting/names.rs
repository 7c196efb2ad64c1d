//! A definition among the tools of other servers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use unicode_security::confusable_detection::skeleton;

use super::texts::{Role, Text};
use super::{Findings, Rule, Severity, markup};
use crate::definition::Definition;

/// From this length on, one different letter looks like a slip of the pen.
const LONG_NAME: usize = 8;

/// A tool as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbour {
    /// The server that offers it.
    pub server: String,
    /// Its name there.
    pub name: String,
    /// What it says it does.
    pub description: Option<String>,
}

/// The other tools on the machine. Cheap to clone; made once for many definitions.
#[derive(Debug, Clone, Default)]
pub struct Neighbours {
    index: Arc<Index>,
    home: Option<String>,
}

#[derive(Debug, Default)]
struct Index {
    tools: Vec<Neighbour>,
    /// By normalised name.
    same: HashMap<String, Vec<usize>>,
    /// By how the name looks.
    looks: HashMap<String, Vec<usize>>,
    /// By the name with one letter left out; two names one letter apart share one of these.
    near: HashMap<String, Vec<usize>>,
    /// By the name as it is written.
    written: HashMap<String, Vec<usize>>,
}

impl Neighbours {
    /// An index of tools, those of the definition's own server among them or not.
    pub fn new(tools: impl IntoIterator<Item = Neighbour>) -> Self {
        let mut index = Index::default();
        for (at, tool) in tools.into_iter().enumerate() {
            let name = normal(&tool.name);
            for shorter in shorter(&name) {
                index.near.entry(shorter).or_default().push(at);
            }
            index.looks.entry(look(&tool.name)).or_default().push(at);
            index.same.entry(name).or_default().push(at);
            index.written.entry(tool.name.to_lowercase()).or_default().push(at);
            index.tools.push(tool);
        }
        Self { index: Arc::new(index), home: None }
    }

    /// The same tools as seen by one server, whose own tools are no neighbours.
    #[must_use]
    pub fn seen_from(&self, server: &str) -> Self {
        Self { index: Arc::clone(&self.index), home: Some(server.to_owned()) }
    }

    fn others<'a>(&'a self, at: Option<&'a Vec<usize>>) -> impl Iterator<Item = &'a Neighbour> {
        let tools = at.into_iter().flatten().filter_map(|at| self.index.tools.get(*at));
        tools.filter(|tool| self.home.as_deref() != Some(tool.server.as_str()))
    }

    fn is_at_home(&self, written: &str) -> bool {
        let tools = self.index.written.get(written).into_iter().flatten().filter_map(|at| self.index.tools.get(*at));
        tools.into_iter().any(|tool| self.home.as_deref() == Some(tool.server.as_str()))
    }
}

/// Case and separators make no difference: `readFile`, `read-file` and `read_file` are one name.
fn normal(name: &str) -> String {
    name.chars().filter(|c| !matches!(c, '_' | '-' | '.' | '/' | ' ')).flat_map(char::to_lowercase).collect()
}

/// How a name looks: UTS 39 skeleton, and the look-alikes inside ASCII that case brings.
fn look(name: &str) -> String {
    let skeleton: String = skeleton(name).collect();
    let mut look: String =
        normal(&skeleton).chars().map(|c| if matches!(c, '1' | 'i' | '|') { 'l' } else { c }).collect();
    look = look.replace('0', "o").replace("vv", "w").replace("rn", "m").replace('5', "s");
    look
}

/// The name and the name without each of its letters, for long names.
fn shorter(name: &str) -> Vec<String> {
    // The bound of a name in MCP; a longer one is no near miss of anything.
    const LONGEST: usize = 128;
    let letters: Vec<char> = name.chars().take(LONGEST + 1).collect();
    if !(LONG_NAME..=LONGEST).contains(&letters.len()) {
        return Vec::new();
    }
    let without = |gone| letters.iter().enumerate().filter(|(at, _)| *at != gone).map(|(_, c)| *c).collect();
    (0..letters.len()).map(without).chain([name.to_owned()]).collect()
}

/// Whether two names differ as two tools of one kind do: a plural, a number, a version.
fn kin(one: &str, two: &str) -> bool {
    let digits = |name: &str| name.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
    let singular = |name: &str| {
        let words = name.split(['_', '-', '.']);
        words.map(|word| normal(word.strip_suffix('s').unwrap_or(word))).collect::<String>()
    };
    digits(one) == digits(two) || singular(one) == singular(two)
}

/// From this percentage of common words on, two descriptions say the same.
const LIKE: usize = 50;
/// Enough to make a name that is one letter off suspicious.
const HALF_LIKE: usize = 30;
/// The texts are equal.
const SAME: usize = 101;

/// Percentage of the words of two descriptions that both have, or [`SAME`]; a final `s` makes no difference.
fn likeness(one: Option<&str>, other: &Neighbour) -> usize {
    const FILLERS: [&str; 14] =
        ["a", "an", "the", "of", "to", "in", "for", "and", "or", "with", "from", "by", "on", "via"];
    // A long text tells in its beginning what it is about.
    const WORDS: usize = 40;
    let words = |text: &str| -> HashSet<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).map(str::to_lowercase);
        let words = words.filter(|word| !FILLERS.contains(&word.as_str())).take(WORDS);
        words.map(|word| word.strip_suffix('s').map_or(word.clone(), str::to_owned)).collect()
    };
    if one.is_some() && one == other.description.as_deref() {
        return SAME;
    }
    let (one, two) = (words(one.unwrap_or_default()), words(other.description.as_deref().unwrap_or_default()));
    let all = one.union(&two).count();
    (one.intersection(&two).count() * 100).checked_div(all).unwrap_or_default()
}

/// Normalised beginnings and ends of at least two words of a longer name.
fn parts(name: &str) -> Vec<String> {
    let words = words(name);
    let begins = (2..words.len()).filter_map(|end| words.get(..end));
    let ends = (1..words.len().saturating_sub(1)).filter_map(|begin| words.get(begin..));
    begins.chain(ends).map(|words| normal(&words.concat())).collect()
}

/// The first words of a name: `readFile`, `read-file` and `read_file` have two.
fn words(name: &str) -> Vec<String> {
    const MOST: usize = 8;
    let mut words = vec![String::new()];
    let mut lower = false;
    for c in name.chars() {
        let separates = matches!(c, '_' | '-' | '.' | '/' | ' ');
        if separates || lower && c.is_uppercase() {
            words.push(String::new());
        }
        lower = c.is_lowercase();
        if let Some(word) = words.last_mut().filter(|_| !separates) {
            word.push(c);
        }
    }
    words.retain(|word| !word.is_empty());
    words.truncate(MOST);
    words
}

pub(super) fn vet(definition: &Definition, around: &Neighbours, found: &mut Findings) {
    let name = Text { field: "name".to_owned(), role: Role::Name, raw: &definition.name };
    let whole = 0..definition.name.len();
    if markup::is_mixed(&definition.name) || !definition.name.is_ascii() && look(&definition.name).is_ascii() {
        let why = "The name has letters that look like others.";
        found.add(Rule::MixedScripts, Severity::Danger, &name, whole.clone(), why);
    }
    let normal = normal(&definition.name);
    let index = &around.index;
    let description = definition.description.as_deref();
    if let Some(other) = around.others(index.same.get(&normal)).max_by_key(|other| likeness(description, other)) {
        // Many servers have a `search` of their own. One that also describes itself like the other may stand in for it;
        // one with the very same text is most likely the same program, declared twice.
        let like = likeness(description, other);
        // A single word that also fits two descriptions of the same thing ("Searches the index") is common.
        let severity = if words(&definition.name).len() > 1 && (LIKE..SAME).contains(&like) {
            Severity::Warning
        } else {
            Severity::Info
        };
        let why = format!("The server `{}` has a tool of the same name; a call may reach the wrong one.", other.server);
        found.add(Rule::SameName, severity, &name, whole.clone(), &why);
    }
    let differs = |other: &&Neighbour| self::normal(&other.name) != normal;
    if let Some(other) = around.others(index.looks.get(&look(&definition.name))).find(differs) {
        let why = format!("The name looks like `{}` of the server `{}`.", other.name, other.server);
        found.add(Rule::LookAlikeName, Severity::Danger, &name, whole.clone(), &why);
    } else {
        let near =
            shorter(&normal).into_iter().filter_map(|key| index.near.get(&key)).flat_map(|at| around.others(Some(at)));
        let slip = near.filter(differs).find(|other| {
            strsim::osa_distance(&normal, &self::normal(&other.name)) == 1 && !kin(&definition.name, &other.name)
        });
        let longer = parts(&definition.name).into_iter().find_map(|part| {
            let mut others = around.others(index.same.get(&part));
            others.find(|other| (LIKE..SAME).contains(&likeness(description, other)))
        });
        if let Some(other) = slip {
            let severity = if likeness(description, other) >= HALF_LIKE { Severity::Warning } else { Severity::Info };
            let why = format!("The name is one letter from `{}` of the server `{}`.", other.name, other.server);
            found.add(Rule::LookAlikeName, severity, &name, whole, &why);
        } else if let Some(other) = longer {
            let why = format!("It names and describes itself like `{}` of the server `{}`.", other.name, other.server);
            found.add(Rule::LookAlikeName, Severity::Warning, &name, whole, &why);
        }
    }
    for text in super::texts::texts(definition) {
        if !matches!(text.role, Role::Name | Role::ParameterName) {
            mentions(&text, around, found);
        }
    }
}

/// Words that order about a tool rather than speak of it.
const ORDERS: &[&str] = &[
    "instead",
    "must",
    "always",
    "never",
    "before",
    "after",
    "whenever",
    "when",
    "deprecated",
    "unsafe",
    "insecure",
    "broken",
    "supersedes",
    "replaces",
    "override",
    "overrides",
    "ignore",
    "should",
    "don't",
    "not",
    "priority",
    "recipient",
    "first",
    "also",
    "then",
    "copy",
    "forward",
    "redirect",
    "affects",
    "effect",
];

fn mentions(text: &Text<'_>, around: &Neighbours, found: &mut Findings) {
    if around.index.tools.is_empty() {
        return;
    }
    for sentence in text.raw.split_inclusive(['.', '\n', '!', ';']) {
        let begin = sentence.as_ptr() as usize - text.raw.as_ptr() as usize;
        let mut orders = None;
        for word in sentence.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))) {
            // A plain word may be meant as a word.
            let specific = word.contains(['_', '-'])
                || word.chars().skip(1).any(char::is_uppercase) && word.chars().any(char::is_lowercase);
            if !specific {
                continue;
            }
            let written = word.to_lowercase();
            let Some(other) = around.others(around.index.written.get(&written)).next() else { continue };
            if around.is_at_home(&written) {
                continue;
            }
            let orders = *orders.get_or_insert_with(|| {
                let words: HashSet<String> =
                    sentence.split(|c: char| !(c.is_alphabetic() || c == '\'')).map(str::to_lowercase).collect();
                ORDERS.iter().any(|order| words.contains(*order))
            });
            let severity = if orders { Severity::Danger } else { Severity::Info };
            let why = format!(
                "It speaks of `{}`, a tool of the server `{}`, and says how to use it.",
                other.name, other.server
            );
            found.add(Rule::Shadowing, severity, text, begin..begin + sentence.len(), &why);
        }
    }
}

/// Beginnings of words for what cannot be undone.
const DESTROYS: &[&str] = &[
    "delete",
    "remove",
    "drop",
    "erase",
    "purge",
    "wipe",
    "destroy",
    "uninstall",
    "truncate",
    "overwrite",
    "kill",
    "format",
    "shred",
    "revoke",
    "terminate",
    "deletes",
    "removes",
    "drops",
    "erases",
    "purges",
    "wipes",
    "destroys",
    "overwrites",
    "kills",
];
/// And for what changes something.
const WRITES: &[&str] = &[
    "update",
    "write",
    "insert",
    "send",
    "post",
    "upload",
    "transfer",
    "pay",
    "install",
    "deploy",
    "publish",
    "execute",
    "push",
    "updates",
    "writes",
    "inserts",
    "sends",
    "posts",
    "uploads",
    "transfers",
    "pays",
    "installs",
    "deploys",
    "publishes",
    "executes",
    "pushes",
    "modifies",
    "modify",
    "creates",
    "edit",
    "edits",
    "move",
    "moves",
];

/// Annotations that say the opposite of the name or of the first words of the description.
pub(super) fn contradiction(definition: &Definition, found: &mut Findings) {
    let Some(annotations) = &definition.annotations else { return };
    let says = |key: &str| annotations.get(key).and_then(Value::as_bool);
    let (read_only, harmless) = (says("readOnlyHint") == Some(true), says("destructiveHint") == Some(false));
    if !(read_only || harmless) {
        return;
    }
    let description = definition.description.as_deref().unwrap_or_default();
    let first = |text: &str| {
        let mut words = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty());
        words.next().map(str::to_lowercase).unwrap_or_default()
    };
    let spoken = [first(&definition.name), first(description)];
    let is = |words: &[&str]| spoken.iter().any(|word| words.contains(&word.as_str()));
    let text = Text { field: "annotations".to_owned(), role: Role::Description, raw: description };
    let at = 0..description.len();
    let lower = description.to_lowercase();
    if ["read-only", "read only", "readonly"].iter().any(|said| lower.contains(said)) {
        return;
    }
    if is(DESTROYS) {
        let why = "It is announced as harmless, and by its own words it destroys something.";
        found.add(Rule::Contradiction, Severity::Warning, &text, at, why);
    } else if read_only && is(WRITES) {
        let why = "It is announced as read-only, and by its own words it changes something.";
        found.add(Rule::Contradiction, Severity::Warning, &text, at, why);
    }
}
