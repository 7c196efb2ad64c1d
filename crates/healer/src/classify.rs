//! Which known failure a log line, or the last lines of an incident, speak of.
//!
//! Anybody may make a service write a line, so this says what a line *looks like*; whether the unit has failed at all
//! is asked before (`detect`). Within a line, what a client wrote is blanked; lines of the kernel and of systemd count
//! as theirs only when the journal says so. All expressions run in time linear in the length of the line.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::OnceLock;

use regex::bytes::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde::Serialize;

use crate::patterns::{Error, Origin, Patterns, Remedy, Rule, wrong};

/// Longest part of a line that is looked at, in bytes. What is behind are dumps.
pub const LINE_MAX: usize = 16 * 1024;
/// Longest value of a piece of evidence, in bytes.
pub const EVIDENCE_MAX: usize = 512;
/// Most lines of an incident that are looked at, counted from the last.
pub const INCIDENT_LINES_MAX: usize = 1000;
/// How far before a matching line its circumstances are looked for.
const CONTEXT_LINES: usize = 20;
/// Most memory for one expression of a pattern file, in bytes; more means a repetition that got out of hand.
const REGEX_SIZE_MAX: usize = 2 * 1024 * 1024;
/// Most memory for all expressions that are looked for at once, in bytes.
const SET_SIZE_MAX: usize = 32 * 1024 * 1024;
/// Memory for what a set of expressions has learned of lines so far, in bytes; when it is full it starts anew.
const STATES_SIZE_MAX: usize = 2 * 1024 * 1024;
/// The same for a single expression.
const STATES_SIZE_SMALL: usize = 64 * 1024;

/// A line as the journal has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The text of the line.
    pub message: &'a str,
    /// Who wrote it, as far as the journal vouches for it.
    pub origin: Origin,
    /// Other fields of the journal entry, such as `MESSAGE_ID` and `UNIT`.
    pub fields: &'a [(&'a str, &'a str)],
}

impl<'a> Entry<'a> {
    /// A line of which nothing else is known.
    pub fn text(message: &'a str) -> Self {
        Self { message, ..Self::default() }
    }

    fn field(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().find(|(key, _)| *key == name).map(|(_, value)| *value)
    }
}

/// A line that shows a known failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Match {
    /// Name of the pattern.
    pub pattern: String,
    /// Name of its rule.
    pub rule: String,
    /// How near to the cause the line is, 1 to 100.
    pub specificity: u8,
    /// What it leads to.
    pub remedy: Remedy,
    /// Bytes of the [`clean`] line that matched; empty when the journal's fields decided.
    pub span: Range<usize>,
    /// Named findings: `port`, `address`, `path`, `pid`, `unit`, `user`, `process`, … without control characters,
    /// at most [`EVIDENCE_MAX`] bytes each. Whoever acts on one verifies it first: a log line is no proof.
    pub evidence: BTreeMap<String, String>,
}

/// What the lines of one incident say together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Diagnosis {
    /// The line nearest to the cause, with evidence that other lines add.
    #[serde(flatten)]
    pub best: Match,
    /// Which line that is.
    pub line: usize,
    /// All lines that show the same pattern, in order.
    pub supporting: Vec<usize>,
    /// What else was considered: the best match of every other pattern, with its line.
    pub considered: Vec<(usize, Match)>,
}

/// One expression, compiled when it is needed for the first time: most never are, and a healer that watches idles.
#[derive(Debug)]
struct Lazy {
    text: String,
    compiled: OnceLock<Option<Regex>>,
}

impl Lazy {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: OnceLock::new() }
    }

    /// `None` only for an expression that does not compile, which loading refuses.
    fn get(&self) -> Option<&Regex> {
        self.compiled.get_or_init(|| build(&self.text).ok()).as_ref()
    }
}

/// Many expressions at once: one pass tells which of them match.
#[derive(Debug)]
struct Set<T> {
    texts: Vec<String>,
    /// What each expression belongs to.
    owners: Vec<T>,
    compiled: OnceLock<Option<RegexSet>>,
}

impl<T: Copy> Set<T> {
    fn new() -> Self {
        Self { texts: Vec::new(), owners: Vec::new(), compiled: OnceLock::new() }
    }

    fn add(&mut self, texts: &[String], owner: T) {
        self.texts.extend_from_slice(texts);
        self.owners.resize(self.texts.len(), owner);
    }

    fn build(&self) -> Result<RegexSet, regex::Error> {
        let mut builder = RegexSetBuilder::new(&self.texts);
        builder.case_insensitive(true).unicode(false).size_limit(SET_SIZE_MAX).dfa_size_limit(STATES_SIZE_MAX).build()
    }

    /// The owners of the expressions that match, in the order in which they were added.
    fn matches(&self, text: &[u8]) -> impl Iterator<Item = T> {
        let set = self.compiled.get_or_init(|| self.build().ok()).as_ref();
        set.map(|set| set.matches(text)).into_iter().flatten().map(|regex| self.owners[regex])
    }
}

/// What an expression that takes a match away, or a part of the line, belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Veto {
    Pattern(usize),
    Rule(usize),
    Harmless(usize),
    NotHarmless(usize),
    Untrusted(usize),
}

#[derive(Debug)]
struct CompiledRule {
    pattern: usize,
    rule: usize,
    regexes: Vec<Lazy>,
}

#[derive(Debug)]
struct CompiledPattern {
    evidence: Vec<Lazy>,
    context: Vec<Lazy>,
}

/// Patterns, ready to look at lines, from any number of threads.
///
/// The first line costs some 25 ms, because nothing is compiled before it is needed: a healer that watches healthy units
/// holds the patterns' text only, a fifth of a megabyte.
#[derive(Debug)]
pub struct Classifier {
    definitions: Patterns,
    patterns: Vec<CompiledPattern>,
    rules: Vec<CompiledRule>,
    /// All expressions of all rules.
    seen: Set<usize>,
    /// Everything that is asked only of lines that a rule matches.
    vetoes: Set<Veto>,
    untrusted: Vec<Lazy>,
}

impl Classifier {
    /// Compiles patterns, and tries each on its own examples.
    pub fn new(definitions: Patterns) -> Result<Self, Error> {
        check(&definitions)?;
        let classifier = Self::arrange(definitions);
        for (set, what) in [(classifier.seen.build(), "rule"), (classifier.vetoes.build(), "unless")] {
            set.map_err(|error| wrong("of all", what, &error.to_string(), "use fewer or smaller expressions"))?;
        }
        classifier.try_examples()?;
        Ok(classifier)
    }

    /// The patterns that come with Lares. Their examples are tried by tests, not at every start.
    pub fn builtin() -> Self {
        Self::arrange(Patterns::builtin())
    }

    fn arrange(definitions: Patterns) -> Self {
        let (mut seen, mut vetoes) = (Set::new(), Set::new());
        let (mut patterns, mut rules) = (Vec::new(), Vec::new());
        for (pattern, definition) in definitions.patterns.iter().enumerate() {
            vetoes.add(&definition.unless, Veto::Pattern(pattern));
            patterns.push(CompiledPattern { evidence: lazy(&definition.evidence), context: lazy(&definition.context) });
            for (rule, Rule { regex, unless, .. }) in definition.rules.iter().enumerate() {
                seen.add(regex, rules.len());
                vetoes.add(unless, Veto::Rule(rules.len()));
                rules.push(CompiledRule { pattern, rule, regexes: lazy(regex) });
            }
        }
        for (position, entry) in definitions.harmless.iter().enumerate() {
            vetoes.add(&entry.regex, Veto::Harmless(position));
            vetoes.add(&entry.unless, Veto::NotHarmless(position));
        }
        let mut untrusted = Vec::new();
        for text in definitions.untrusted.iter().flat_map(|entry| &entry.regex) {
            vetoes.add(std::slice::from_ref(text), Veto::Untrusted(untrusted.len()));
            untrusted.push(Lazy::new(text));
        }
        Self { definitions, patterns, rules, seen, vetoes, untrusted }
    }

    /// The patterns it looks for.
    pub fn patterns(&self) -> &Patterns {
        &self.definitions
    }

    /// Tries every example and counterexample of every pattern.
    pub fn try_examples(&self) -> Result<(), Error> {
        let shown = |line: &str| line.chars().take(200).collect::<String>();
        for definition in self.definitions.iter() {
            for rule in definition.rules.iter().filter(|rule| !rule.regex.is_empty()) {
                for line in &rule.examples {
                    let found = self.classify(Entry::text(line));
                    if found.as_ref().map(|found| found.pattern.as_str()) == Some(&definition.name) {
                        continue;
                    }
                    let instead = found.map_or("nothing".into(), |m| format!("`{}` (rule `{}`)", m.pattern, m.rule));
                    let problem = format!("{:?} is recognised as {instead}", shown(line));
                    let fix = "change the regex, raise the specificity, or take the example away";
                    return Err(wrong(&definition.name, &format!("rule `{}`, examples", rule.name), &problem, fix));
                }
            }
            for line in &definition.counterexamples {
                let found = self.candidates(Entry::text(line)).1;
                if let Some(rule) =
                    found.iter().map(|&r| &self.rules[r]).find(|rule| self.name_of(rule) == definition.name)
                {
                    let rule = &definition.rules[rule.rule].name;
                    let problem = format!("{:?} is matched by rule `{rule}`", shown(line));
                    let fix = "narrow the rule's regex or add an `unless`";
                    return Err(wrong(&definition.name, "counterexamples", &problem, fix));
                }
            }
        }
        for (name, line) in self.definitions.harmless_examples() {
            if !is_harmless(&self.vetoes.matches(clean(line).as_bytes()).collect::<Vec<_>>()) {
                let problem = format!("{:?} is not matched", shown(line));
                return Err(wrong(&format!("harmless {name}"), "examples", &problem, "widen its regex"));
            }
        }
        Ok(())
    }

    fn name_of(&self, rule: &CompiledRule) -> &str {
        &self.definitions.patterns[rule.pattern].name
    }

    /// Which known failure a line shows: the most specific one, where there are several.
    pub fn classify(&self, entry: Entry<'_>) -> Option<Match> {
        let (text, candidates) = self.candidates(entry);
        // The first of equals: the order of the file.
        let best = candidates.into_iter().rev().max_by_key(|&rule| self.rule(rule).specificity)?;
        Some(self.found(best, &text, &entry))
    }

    /// Which known failure the lines of an incident show, oldest first. The line nearest to the cause counts, of equals
    /// the last: what a program says at its very end often follows from several causes.
    pub fn diagnose(&self, entries: &[Entry<'_>]) -> Option<Diagnosis> {
        let skipped = entries.len().saturating_sub(INCIDENT_LINES_MAX);
        let found: Vec<(usize, Match)> = entries
            .iter()
            .enumerate()
            .skip(skipped)
            .filter_map(|(line, entry)| self.classify(*entry).map(|found| (line, found)))
            .collect();
        let (line, mut best) = found.iter().max_by_key(|(line, found)| (found.specificity, *line)).cloned()?;
        let same = |found: &Match| found.pattern == best.pattern;
        let supporting: Vec<usize> = found.iter().filter(|(_, found)| same(found)).map(|(line, _)| *line).collect();
        let mut considered: Vec<(usize, Match)> = Vec::new();
        for (other_line, other) in found.iter().filter(|(_, found)| !same(found)) {
            match considered.iter_mut().find(|(_, known)| known.pattern == other.pattern) {
                Some(known) if known.1.specificity <= other.specificity => *known = (*other_line, other.clone()),
                Some(_) => {}
                None => considered.push((*other_line, other.clone())),
            }
        }
        // What the best line does not say, the nearest other line about the same thing may.
        let mut others: Vec<&(usize, Match)> =
            found.iter().filter(|(other, found)| *other != line && found.pattern == best.pattern).collect();
        others.sort_by_key(|(other, _)| other.abs_diff(line));
        let additions: Vec<_> = others.into_iter().map(|(_, other)| other.evidence.clone()).collect();
        for evidence in additions {
            complete(&mut best.evidence, evidence);
        }
        self.add_context(&mut best, &entries[line.saturating_sub(CONTEXT_LINES).max(skipped)..line]);
        Some(Diagnosis { best, line, supporting, considered })
    }

    /// Evidence that is only in the lines before: mosquitto names the port a line before it says what is wrong.
    fn add_context(&self, best: &mut Match, before: &[Entry<'_>]) {
        let Some(pattern) = self.definitions.patterns.iter().position(|pattern| pattern.name == best.pattern) else {
            return;
        };
        for entry in before.iter().rev() {
            let text = clean(entry.message);
            for regex in self.patterns[pattern].context.iter().filter_map(Lazy::get) {
                let mut evidence = BTreeMap::new();
                collect(&mut evidence, regex, text.as_bytes());
                complete(&mut best.evidence, evidence);
            }
        }
    }

    fn rule(&self, rule: usize) -> &Rule {
        let CompiledRule { pattern, rule, .. } = self.rules[rule];
        &self.definitions.patterns[pattern].rules[rule]
    }

    /// The line as the rules see it, and the rules that match, in the order of the file.
    fn candidates<'a>(&self, entry: Entry<'a>) -> (Cow<'a, str>, Vec<usize>) {
        let mut text = clean(entry.message);
        let mut candidates = self.matching(text.as_bytes(), &entry);
        if candidates.is_empty() {
            return (text, candidates);
        }
        let mut vetoes: Vec<Veto> = self.vetoes.matches(text.as_bytes()).collect();
        if is_harmless(&vetoes) {
            return (text, Vec::new());
        }
        if self.blank(&mut text, &vetoes) {
            candidates = self.matching(text.as_bytes(), &entry);
            vetoes = self.vetoes.matches(text.as_bytes()).collect();
        }
        candidates.retain(|&rule| {
            let pattern = self.rules[rule].pattern;
            !vetoes.iter().any(|veto| *veto == Veto::Rule(rule) || *veto == Veto::Pattern(pattern))
        });
        (text, candidates)
    }

    fn matching(&self, text: &[u8], entry: &Entry<'_>) -> Vec<usize> {
        let mut rules: Vec<usize> = self.seen.matches(text).collect();
        rules.dedup();
        if !entry.fields.is_empty() {
            rules.extend((0..self.rules.len()).filter(|&rule| self.rules[rule].regexes.is_empty()));
            rules.sort_unstable();
        }
        rules.retain(|&rule| {
            let Rule { fields, origin, .. } = self.rule(rule);
            let written_by = origin.is_none_or(|origin| entry.origin == origin || entry.origin == Origin::Unknown);
            written_by && fields.iter().all(|(name, value)| entry.field(name) == Some(value.as_str()))
        });
        rules
    }

    /// Replaces what clients wrote by spaces; offsets stay. Says whether there was any.
    fn blank(&self, text: &mut Cow<'_, str>, vetoes: &[Veto]) -> bool {
        let mut ranges = Vec::new();
        for veto in vetoes {
            let Veto::Untrusted(which) = veto else { continue };
            let Some(regex) = self.untrusted[*which].get() else { continue };
            let groups = regex.captures_iter(text.as_bytes()).filter_map(|captures| captures.name("text"));
            ranges.extend(groups.map(|group| group.range()).filter(|range| !range.is_empty()));
        }
        if ranges.is_empty() {
            return false;
        }
        let mut bytes = std::mem::take(text).into_owned().into_bytes();
        for range in ranges {
            bytes[range].fill(b' ');
        }
        // The expressions work on bytes, so that a group may end within a character.
        *text = Cow::Owned(String::from_utf8(bytes).unwrap_or_else(|error| lossy(error.as_bytes())));
        true
    }

    fn found(&self, rule: usize, text: &str, entry: &Entry<'_>) -> Match {
        let compiled = &self.rules[rule];
        let pattern = &self.definitions.patterns[compiled.pattern];
        let rule = &pattern.rules[compiled.rule];
        let bytes = text.as_bytes();
        let mut span = 0..0;
        let mut evidence = BTreeMap::new();
        for regex in compiled.regexes.iter().filter_map(Lazy::get) {
            let Some(matched) = regex.find(bytes) else { continue };
            if span.is_empty() {
                span = matched.range();
            }
            collect(&mut evidence, regex, bytes);
        }
        for regex in self.patterns[compiled.pattern].evidence.iter().filter_map(Lazy::get) {
            collect(&mut evidence, regex, bytes);
        }
        // What systemd says of a unit names it in fields; a field cannot be forged by a service.
        for name in ["UNIT", "OBJECT_SYSTEMD_UNIT"] {
            if let Some(unit) = entry.field(name).filter(|_| matches!(entry.origin, Origin::Systemd | Origin::Kernel)) {
                insert(&mut evidence, "unit", unit.as_bytes());
            }
        }
        Match {
            pattern: pattern.name.clone(),
            rule: rule.name.clone(),
            specificity: rule.specificity,
            remedy: rule.remedy.unwrap_or(pattern.remedy),
            span,
            evidence,
        }
    }
}

fn build(text: &str) -> Result<Regex, regex::Error> {
    let mut builder = RegexBuilder::new(text);
    builder.case_insensitive(true).unicode(false).size_limit(REGEX_SIZE_MAX).dfa_size_limit(STATES_SIZE_SMALL).build()
}

fn lazy(texts: &[String]) -> Vec<Lazy> {
    texts.iter().map(|text| Lazy::new(text)).collect()
}

/// Compiles every expression once, so that an error names the one that is wrong.
fn check(definitions: &Patterns) -> Result<(), Error> {
    let all = |name: &str, field: &str, texts: &[String]| -> Result<(), Error> {
        texts.iter().try_for_each(|text| check_one(name, field, text).map(drop))
    };
    for pattern in definitions.iter() {
        all(&pattern.name, "unless", &pattern.unless)?;
        all(&pattern.name, "evidence", &pattern.evidence)?;
        all(&pattern.name, "context", &pattern.context)?;
        for rule in &pattern.rules {
            all(&pattern.name, &format!("rule `{}`, regex", rule.name), &rule.regex)?;
            all(&pattern.name, &format!("rule `{}`, unless", rule.name), &rule.unless)?;
        }
    }
    for entry in &definitions.harmless {
        let name = format!("harmless {}", entry.name);
        all(&name, "regex", &entry.regex)?;
        all(&name, "unless", &entry.unless)?;
    }
    for entry in &definitions.untrusted {
        let name = format!("untrusted {}", entry.name);
        for text in &entry.regex {
            if !check_one(&name, "regex", text)?.capture_names().flatten().any(|group| group == "text") {
                let problem = format!("`{text}` has no group `text`");
                return Err(wrong(&name, "regex", &problem, "write (?P<text>…) around what the client writes"));
            }
        }
    }
    Ok(())
}

fn check_one(pattern: &str, field: &str, text: &str) -> Result<Regex, Error> {
    let fix = "write a regular expression of Rust's `regex`";
    build(text).map_err(|error| wrong(pattern, field, &format!("`{text}`: {error}"), fix))
}

fn is_harmless(vetoes: &[Veto]) -> bool {
    vetoes.iter().any(|veto| matches!(veto, Veto::Harmless(which) if !vetoes.contains(&Veto::NotHarmless(*which))))
}

/// Puts the named groups of the first match into the evidence, where that has none of the name yet.
fn collect(evidence: &mut BTreeMap<String, String>, regex: &Regex, text: &[u8]) {
    if regex.captures_len() == 1 {
        return;
    }
    let Some(captures) = regex.captures(text) else { return };
    let mut found = BTreeMap::new();
    for name in regex.capture_names().flatten() {
        if let Some(group) = captures.name(name) {
            insert(&mut found, name, group.as_bytes());
        }
    }
    complete(evidence, found);
}

fn insert(evidence: &mut BTreeMap<String, String>, name: &str, value: &[u8]) {
    let value = lossy(value);
    let mut value = clean(value.trim()).into_owned();
    value.truncate(cut(&value, EVIDENCE_MAX));
    if value.is_empty() || evidence.contains_key(name) {
        return;
    }
    // A number that is no port, or no process, is no evidence of one.
    let fits = match name {
        "port" => value.parse::<u16>().is_ok_and(|port| port > 0),
        "pid" => value.parse::<u32>().is_ok_and(|pid| pid > 0),
        _ => true,
    };
    if fits {
        evidence.insert(name.to_owned(), value);
    }
}

/// Adds what is not there yet, if the two speak of the same thing: what both have is equal.
fn complete(evidence: &mut BTreeMap<String, String>, more: BTreeMap<String, String>) {
    if more.iter().all(|(name, value)| evidence.get(name).is_none_or(|known| known == value)) {
        evidence.extend(more);
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last place at or before `at` where a text can be cut.
fn cut(text: &str, at: usize) -> usize {
    if at >= text.len() { text.len() } else { (0..=at).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0) }
}

/// A line fit to be looked at and shown: at most [`LINE_MAX`] bytes, escape sequences of terminals taken out, other
/// control characters and those that reverse or hide text replaced by spaces, typographic quotes made straight.
pub fn clean(line: &str) -> Cow<'_, str> {
    let line = &line[..cut(line, LINE_MAX)];
    // Almost every line is printable ASCII.
    if line.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return Cow::Borrowed(line);
    }
    if line.chars().all(|c| fit(c) == c) {
        return Cow::Borrowed(line);
    }
    let mut out = String::with_capacity(line.len());
    let mut chars = line.chars().peekable();
    while let Some(c) = chars.next() {
        match (c, chars.peek()) {
            ('\u{1b}', Some('[')) => {
                chars.next();
                // Parameters, then one final byte.
                while chars.next_if(|c| ('\u{20}'..'\u{40}').contains(c)).is_some() {}
                chars.next_if(|c| ('\u{40}'..'\u{7f}').contains(c));
            }
            ('\u{1b}', Some(']')) => {
                while let Some(c) = chars.next() {
                    if c == '\u{7}' || (c == '\u{1b}' && chars.next_if_eq(&'\\').is_some()) {
                        break;
                    }
                }
            }
            _ => out.push(fit(c)),
        }
    }
    Cow::Owned(out)
}

fn fit(c: char) -> char {
    match c {
        // GNU programs quote so in a UTF-8 locale and straight in others.
        '\u{2018}' | '\u{2019}' => '\'',
        '\u{201c}' | '\u{201d}' => '"',
        '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' => ' ',
        c if c.is_control() => ' ',
        c => c,
    }
}
