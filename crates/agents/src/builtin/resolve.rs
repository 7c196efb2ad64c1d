//! From what an answer asks for to the new text of files: which file is meant, and whether the change can be believed.

use std::collections::HashSet;
use std::sync::LazyLock;

use regex::Regex;
use similar::TextDiff;

use super::fragment;
use super::listing::Source;
use super::parse::{Block, Edit};
use super::select::{definitions, is_test};

/// What the model was shown and may change.
#[derive(Debug, Clone, Default)]
pub(super) struct Offer {
    /// Files it may edit, as they are.
    pub(super) edit: Vec<Source>,
    /// Files it may make.
    pub(super) new: Vec<String>,
    /// Every path of the worktree.
    pub(super) paths: HashSet<String>,
    /// Whether it may edit tests.
    pub(super) tests_too: bool,
    /// Tests it was shown.
    pub(super) tests: Vec<Source>,
    /// A name that has to be there afterwards.
    pub(super) wanted: Option<String>,
}

/// The new text of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) path: String,
    pub(super) text: String,
}

/// Why an answer cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the answer leaves {0} as it is")]
    Unchanged(String),
    #[error("the answer leaves out a part of {0} that has to stay")]
    Elided(String),
    #[error("the answer drops most of {path}: {left} lines of {lines}")]
    Dropped { path: String, left: usize, lines: usize },
    #[error("the answer has no {name} in {path} any more, which the tests use")]
    Lost { path: String, name: String },
    #[error("the answer has no `{name}` in {path}")]
    StillMissing { path: String, name: String },
    #[error("the answer puts the test into {0}, where the code belongs")]
    TestCopied(String),
    #[error("the passage to replace is not in {0}")]
    NotFound(String),
    #[error("the passage to replace is in {0} more than once")]
    NotUnique(String),
    #[error("the answer changes {0}, which must stay as it is")]
    ReadOnly(String),
    #[error("the answer gives {0}, which nobody asked for")]
    NotAsked(String),
    #[error("the answer does not say which file it changes")]
    Nameless,
}

/// Lines that stand for code that was left out.
static ELISION: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?i)^\s*(?:(?:#|//|/\*|--|<!--|;)\s*(?:\.\.\.|…)|(?:#|//|/\*|--|<!--|;|\.\.\.|…|\[|\()\s*(?:\.\.\.|…)?\s*(?:\(|\[)?\s*(?:the\s+)?(?:rest|remainder|remaining|existing|other|previous|unchanged)\b.*\b(?:code|file|functions?|methods?|unchanged|here|implementation|same|stays?|remains?|class(?:es)?)\b)",
    )
    .expect("the pattern is a constant")
});

/// Fewer lines than this part of a file of at least [`LARGE`] lines are no rewrite of it.
const LEAST_PART: f64 = 0.4;
const LARGE: usize = 20;
/// Least likeness of a nameless block to the file it shall replace, unless it is the only block there is.
const LEAST_LIKENESS: f32 = 0.2;
/// Least likeness of an answer without a fence.
const LEAST_LIKENESS_BARE: f32 = 0.5;
/// Lines below which likeness says little.
const SHORT: usize = 4;
/// Likeness to a test from which on a text is that test: small models repeat what they were shown.
const SAME_AS_TEST: f32 = 0.8;
/// Languages of blocks that show how to run something.
const SHELLS: [&str; 9] = ["bash", "sh", "shell", "console", "zsh", "text", "plaintext", "output", "txt"];

/// The changes an answer amounts to: at least one, or why none.
pub(super) fn resolve(edits: Vec<Edit>, offer: &Offer) -> Result<Vec<Change>, Unusable> {
    let mut changes: Vec<Change> = Vec::new();
    let mut refused: Option<Unusable> = None;
    let mut nameless: Vec<(String, String)> = Vec::new();
    let alone = edits.len() == 1;
    for edit in edits {
        let result = match edit {
            Edit::Whole { path: Some(path), header, content, .. } => whole(&path, header, content, offer, &changes),
            Edit::Whole { path: None, language, content, .. } => {
                nameless.push((language, content));
                continue;
            }
            Edit::Replace { path, blocks } => replace(path.as_deref(), &blocks, offer, &changes),
        };
        match result {
            Ok(change) => {
                changes.retain(|earlier| earlier.path != change.path);
                changes.push(change);
            }
            // A block that cannot be placed spoils the file, and the other half of it would be worse than nothing.
            Err(why @ (Unusable::NotFound(_) | Unusable::NotUnique(_))) => return Err(why),
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    if changes.is_empty() && !nameless.is_empty() {
        match best_nameless(nameless, offer, alone) {
            Ok(change) => changes.push(change),
            // A file that was named and refused says more than blocks that were not.
            Err(why) => refused = refused.or(Some(why)),
        }
    }
    if changes.is_empty() { Err(refused.unwrap_or(Unusable::Nameless)) } else { Ok(changes) }
}

/// The offered file a path of an answer means: the same path, else the only one with that name.
fn meant<'a>(path: &str, offer: &'a Offer) -> Option<&'a Source> {
    offer.edit.iter().find(|source| source.path == path).or_else(|| {
        if offer.paths.contains(path) {
            return None;
        }
        let name = path.rsplit('/').next().unwrap_or(path);
        let mut same = offer.edit.iter().filter(|source| source.path.rsplit('/').next() == Some(name));
        same.next().filter(|_| same.next().is_none())
    })
}

fn whole(
    path: &str,
    header: Option<String>,
    content: String,
    offer: &Offer,
    earlier: &[Change],
) -> Result<Change, Unusable> {
    if leads_astray(path) {
        // Passed on as it is: applying it says what is wrong with it.
        return Ok(Change { path: path.to_owned(), text: content });
    }
    if let Some(source) = meant(path, offer) {
        // Parts of one file may come in several blocks.
        let begun =
            earlier.iter().find(|change| change.path == source.path).map_or(&source.text, |change| &change.text);
        return believable(offer, source, begun, header, content);
    }
    if !offer.tests_too && is_test(path) {
        return Err(Unusable::ReadOnly(path.to_owned()));
    }
    if offer.paths.contains(path) {
        return Err(Unusable::ReadOnly(path.to_owned()));
    }
    let asked = offer.new.iter().find(|new| *new == path || new.ends_with(&format!("/{path}")));
    match asked {
        Some(asked) => Ok(Change { path: asked.clone(), text: content }),
        None if offer.edit.is_empty() && offer.new.is_empty() || offer.tests_too && is_test(path) => {
            Ok(Change { path: path.to_owned(), text: content })
        }
        None => Err(Unusable::NotAsked(path.to_owned())),
    }
}

fn leads_astray(path: &str) -> bool {
    path.starts_with(['/', '~']) || path.split('/').any(|part| part == ".." || part.eq_ignore_ascii_case(".git"))
}

/// The new text of an offered file, when the answer is one.
fn believable(
    offer: &Offer,
    source: &Source,
    begun: &str,
    header: Option<String>,
    content: String,
) -> Result<Change, Unusable> {
    let content = match header {
        // The file itself begins with a comment that gives its name.
        Some(header) if source.text.lines().next() == Some(header.as_str()) => format!("{header}\n{content}"),
        _ => content,
    };
    let path = source.path.clone();
    let old: HashSet<&str> = source.text.lines().collect();
    if content.lines().any(|line| ELISION.is_match(line) && !old.contains(line)) {
        return Err(Unusable::Elided(path));
    }
    let content = match fragment::without_tests(&content) {
        Some(rest) if source.path.ends_with(".py") && fragment::without_tests(&source.text).is_none() => {
            if rest.trim().is_empty() {
                return Err(Unusable::TestCopied(path));
            }
            rest
        }
        _ => content,
    };
    let only_wanted = offer.wanted.as_ref().is_some_and(|name| provides(&content, &path, name));
    let content = fragment::splice(begun, &content)
        .or_else(|| fragment::append(begun, &content).filter(|_| only_wanted))
        .unwrap_or(content);
    let (lines, left) = (source.text.lines().count(), content.lines().count());
    if lines >= LARGE && (left as f64) < LEAST_PART * lines as f64 {
        return Err(Unusable::Dropped { path, left, lines });
    }
    if same(&source.text, &content) {
        return Err(Unusable::Unchanged(path));
    }
    if offer
        .tests
        .iter()
        .any(|test| likeness(&test.text, &content) > SAME_AS_TEST.max(likeness(&test.text, &source.text)))
    {
        return Err(Unusable::TestCopied(path));
    }
    if let Some(name) = offer.wanted.clone().filter(|name| !provides(&content, &path, name)) {
        return Err(Unusable::StillMissing { path, name });
    }
    let used = |name: &str| offer.tests.iter().any(|test| uses(&test.text, name));
    if let Some(lost) = definitions(&source.text).find(|name| used(name) && !provides(&content, &path, name)) {
        let name = lost.to_owned();
        return Err(Unusable::Lost { path, name });
    }
    Ok(Change { path, text: content })
}

/// Whether two texts differ in nothing but blank lines and the ends of lines.
fn same(old: &str, new: &str) -> bool {
    let lines = |text: &'_ str| -> Vec<String> {
        text.lines().map(|line| line.trim_end().to_owned()).filter(|line| !line.is_empty()).collect()
    };
    lines(old) == lines(new)
}

/// Whether the file defines `name`, gives it a value, or takes it from another file.
fn provides(text: &str, path: &str, name: &str) -> bool {
    let own = path.rsplit('/').next().unwrap_or(path).split('.').next().unwrap_or(path);
    definitions(text).any(|defined| defined == name)
        || text.lines().any(|line| {
            let line = line.trim_start();
            let assigned = line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with([':', '=']));
            let import =
                ["from ", "import ", "use ", "pub use ", "export "].iter().any(|start| line.starts_with(start));
            assigned || import && uses(line, name) && !uses(line, own)
        })
}

/// Whether `name` is a word of `text`.
fn uses(text: &str, name: &str) -> bool {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).any(|word| word == name)
}

/// What blocks without a path amount to: a file that is like one that was shown, else parts of one, each put in its
/// place.
fn best_nameless(blocks: Vec<(String, String)>, offer: &Offer, alone: bool) -> Result<Change, Unusable> {
    let mut refused = None;
    let blocks: Vec<(String, String)> =
        blocks.into_iter().filter(|(language, _)| !SHELLS.contains(&language.as_str())).collect();
    if let (Some(new), true, Some((_, content))) = (offer.new.first(), offer.edit.is_empty(), blocks.first()) {
        return Ok(Change { path: new.clone(), text: content.clone() });
    }
    let mut best: Option<(f32, Change)> = None;
    for (source, (language, content)) in offer.edit.iter().flat_map(|source| blocks.iter().map(move |b| (source, b))) {
        let likeness = likeness(&source.text, content);
        let least = match (alone, language.is_empty()) {
            (true, false) if offer.edit.len() == 1 => 0.0,
            // Likely an answer without a fence: it could be anything.
            (true, true) if content.lines().count() >= SHORT => LEAST_LIKENESS_BARE,
            _ => LEAST_LIKENESS,
        };
        if likeness < least || fragment::splice(&source.text, content).is_some() {
            continue;
        }
        match believable(offer, source, &source.text, None, content.clone()) {
            Ok(change) if best.as_ref().is_none_or(|(most, _)| likeness >= *most) => best = Some((likeness, change)),
            Ok(_) => {}
            Err(why) => refused = Some(why),
        }
    }
    if let Some((_, change)) = best {
        return Ok(change);
    }
    for source in &offer.edit {
        let spliced = blocks.iter().fold(None, |text: Option<String>, (_, content)| {
            fragment::splice(text.as_deref().unwrap_or(&source.text), content).or(text)
        });
        match spliced.map(|text| believable(offer, source, &source.text, None, text)) {
            Some(Ok(change)) => return Ok(change),
            Some(Err(why)) => refused = Some(why),
            None => {}
        }
    }
    Err(refused.unwrap_or(Unusable::Nameless))
}

/// How alike two texts are by their lines, 0 to 1.
fn likeness(old: &str, new: &str) -> f32 {
    TextDiff::configure().timeout(std::time::Duration::from_millis(200)).diff_lines(old, new).ratio()
}

fn replace(path: Option<&str>, blocks: &[Block], offer: &Offer, earlier: &[Change]) -> Result<Change, Unusable> {
    let source = match path {
        Some(path) if leads_astray(path) => return Ok(Change { path: path.to_owned(), text: String::new() }),
        Some(path) => match meant(path, offer) {
            Some(source) => source,
            None => return new_by_replace(path, blocks, offer),
        },
        None => match &offer.edit[..] {
            [only] => only,
            several => several
                .iter()
                .find(|source| {
                    blocks.iter().all(|block| !block.search.trim().is_empty() && source.text.contains(&block.search))
                })
                .ok_or(Unusable::Nameless)?,
        },
    };
    let begun = earlier.iter().find(|change| change.path == source.path).map(|change| change.text.clone());
    let mut text = begun.unwrap_or_else(|| source.text.replace("\r\n", "\n"));
    for block in blocks {
        text = replace_block(&text, block, &source.path)?;
    }
    if same(&text, &source.text) {
        return Err(Unusable::Unchanged(source.path.clone()));
    }
    Ok(Change { path: source.path.clone(), text })
}

/// An empty passage to search for makes a new file.
fn new_by_replace(path: &str, blocks: &[Block], offer: &Offer) -> Result<Change, Unusable> {
    match blocks {
        [only] if only.search.trim().is_empty() => whole(path, None, only.replace.clone(), offer, &[]),
        _ if offer.paths.contains(path) || is_test(path) => Err(Unusable::ReadOnly(path.to_owned())),
        _ => Err(Unusable::NotAsked(path.to_owned())),
    }
}

/// Replaces one passage: as it stands, else by lines regardless of their indentation, where only one place matches.
fn replace_block(text: &str, block: &Block, path: &str) -> Result<String, Unusable> {
    if block.search.trim().is_empty() {
        // Nothing to search for: it is added, which for an empty file is all there is.
        return Ok(format!("{text}{}", block.replace));
    }
    let lines: Vec<&str> = text.lines().collect();
    let wanted: Vec<&str> = block.search.lines().collect();
    let new: Vec<&str> = block.replace.lines().collect();
    let places = |same: fn(&str, &str) -> bool, wanted: &[&str]| -> Vec<usize> {
        if wanted.is_empty() || wanted.len() > lines.len() {
            return Vec::new();
        }
        (0..=lines.len() - wanted.len())
            .filter(|&at| lines[at..at + wanted.len()].iter().zip(wanted).all(|(line, want)| same(line, want)))
            .collect()
    };
    let bare: Vec<&str> = {
        let first = wanted.iter().position(|line| !line.trim().is_empty()).unwrap_or(0);
        let last = wanted.iter().rposition(|line| !line.trim().is_empty()).unwrap_or(0);
        wanted[first..=last].to_vec()
    };
    type Same = fn(&str, &str) -> bool;
    let attempts: [(Same, &[&str]); 3] = [
        (|line, want| line == want, &wanted),
        (|line, want| line.trim_end() == want.trim_end(), &bare),
        (|line, want| line.trim() == want.trim(), &bare),
    ];
    for (same, wanted) in attempts {
        match &places(same, wanted)[..] {
            [] => {}
            [at] => {
                let shift = shift(lines[*at], wanted[0]);
                let mut result: Vec<String> = lines[..*at].iter().map(|&line| line.to_owned()).collect();
                result.extend(new.iter().map(|line| shifted(line, shift)));
                result.extend(lines[at + wanted.len()..].iter().map(|&line| line.to_owned()));
                return Ok(result.join("\n") + "\n");
            }
            _ => return Err(Unusable::NotUnique(path.to_owned())),
        }
    }
    Err(Unusable::NotFound(path.to_owned()))
}

/// By how much the file is indented deeper than the passage that was searched for.
fn shift(line: &str, wanted: &str) -> isize {
    let indentation = |text: &str| (text.len() - text.trim_start().len()) as isize;
    indentation(line) - indentation(wanted)
}

fn shifted(line: &str, by: isize) -> String {
    if line.trim().is_empty() {
        return String::new();
    }
    let surplus = (line.len() - line.trim_start().len()).min(by.unsigned_abs());
    if by >= 0 { format!("{}{line}", " ".repeat(by.unsigned_abs())) } else { line[surplus..].to_owned() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::parse::parse;
    use super::*;
    use proptest::prelude::*;

    const CALC: &str = "def add(a, b):\n    return a - b\n\n\ndef sub(a, b):\n    return a - b\n";

    const TEST: &str =
        "from pkg.calc import add, sub\n\n\ndef test_add():\n    assert add(1, 2) == 3\n    assert sub(3, 1) == 2\n";

    fn offer() -> Offer {
        Offer {
            edit: vec![Source { path: "pkg/calc.py".into(), text: CALC.into() }],
            new: vec!["pkg/new.py".into()],
            paths: ["pkg/calc.py", "test_calc.py", "setup.py"].map(str::to_owned).into(),
            tests: vec![Source { path: "test_calc.py".into(), text: TEST.into() }],
            ..Offer::default()
        }
    }

    fn resolved(answer: &str) -> Result<Vec<Change>, Unusable> {
        resolve(parse(answer, false).unwrap(), &offer())
    }

    fn fixed() -> Vec<Change> {
        vec![Change { path: "pkg/calc.py".into(), text: CALC.replacen("a - b", "a + b", 1) }]
    }

    #[test]
    fn the_file_is_found_by_path_by_name_and_by_likeness() {
        let code = &fixed()[0].text;
        for answer in [
            format!("pkg/calc.py\n```python\n{code}```"),
            format!("calc.py\n```python\n{code}```"),
            format!("path/to/calc.py\n```python\n{code}```"),
            format!("```python\n{code}```\nThen run:\n```bash\npython3 -m unittest\n```"),
            format!("```python\nprint(add(1, 2))\n```\n\n```python\n{code}```"),
            code.clone(),
            "```python\ndef add(a, b):\n    return a + b\n```".to_owned(),
            "First:\n```python\ndef add(a, b):\n    return a + b\n```\nThen:\n```python\ndef sub(a, b):\n    return a - b\n```".to_owned(),
            "calc.py\n```python\ndef add(a, b):\n    return a + b\n```\ncalc.py\n```python\ndef sub(a, b):\n    return a - b\n```".to_owned(),
        ] {
            assert_eq!(resolved(&answer), Ok(fixed()), "{answer}");
        }
    }

    #[test]
    fn passages_are_replaced_regardless_of_their_indentation() {
        for answer in [
            "calc.py\n<<<<<<< SEARCH\ndef add(a, b):\n    return a - b\n=======\ndef add(a, b):\n    return a + b\n>>>>>>> REPLACE",
            "<<<<<<< SEARCH\n  def add(a, b):\n      return a - b\n=======\n  def add(a, b):\n      return a + b\n>>>>>>> REPLACE",
            "```diff\n--- a/pkg/calc.py\n+++ b/pkg/calc.py\n@@ -7,2 +7,2 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n```",
        ] {
            assert_eq!(resolved(answer), Ok(fixed()), "{answer}");
        }
        let twice = "calc.py\n<<<<<<< SEARCH\n    return a - b\n=======\n    return a + b\n>>>>>>> REPLACE";
        assert_eq!(resolved(twice), Err(Unusable::NotUnique("pkg/calc.py".into())));
        let nowhere = "calc.py\n<<<<<<< SEARCH\n    return a * b\n=======\n    return a + b\n>>>>>>> REPLACE";
        assert_eq!(resolved(nowhere), Err(Unusable::NotFound("pkg/calc.py".into())));
    }

    #[test]
    fn what_was_not_offered_stays_as_it_is() {
        let answer = |path: &str| resolved(&format!("{path}\n```python\nx = 1\n```"));
        assert_eq!(answer("test_calc.py"), Err(Unusable::ReadOnly("test_calc.py".into())));
        assert_eq!(answer("test_more.py"), Err(Unusable::ReadOnly("test_more.py".into())));
        assert_eq!(answer("setup.py"), Err(Unusable::ReadOnly("setup.py".into())));
        assert_eq!(answer("demo.py"), Err(Unusable::NotAsked("demo.py".into())));
        assert_eq!(answer("pkg/new.py").unwrap()[0].path, "pkg/new.py");
    }

    #[test]
    fn a_test_beside_the_fix_does_not_spoil_it() {
        let answer =
            format!("pkg/calc.py\n```python\n{}```\ntest_calc.py\n```python\nassert True\n```", fixed()[0].text);
        assert_eq!(resolved(&answer), Ok(fixed()));
    }

    #[test]
    fn an_answer_that_leaves_things_out_is_refused() {
        let long: String = (0..60).map(|n| format!("x{n} = {n}\n")).collect();
        let offer = Offer { edit: vec![Source { path: "a.py".into(), text: long }], ..Offer::default() };
        let elided = "a.py\n```python\nx0 = 9\n# ... rest of the code unchanged ...\n```";
        assert_eq!(resolve(parse(elided, false).unwrap(), &offer), Err(Unusable::Elided("a.py".into())));
        let dropped = "a.py\n```python\nx0 = 9\nx1 = 1\n```";
        assert!(matches!(
            resolve(parse(dropped, false).unwrap(), &offer),
            Err(Unusable::Dropped { left: 2, lines: 60, .. })
        ));
        for line in [
            "# ...",
            "// ... existing code ...",
            "# rest of the file stays the same",
            "    # (other methods unchanged)",
        ] {
            assert!(ELISION.is_match(line), "{line}");
        }
        for line in ["    ...", "# the other way round", "x = [...]", "# existing users are kept", "return rest"] {
            assert!(!ELISION.is_match(line), "{line}");
        }
    }

    #[test]
    fn the_same_file_again_is_no_change() {
        for text in
            [CALC.to_owned(), format!("# calc.py\n{CALC}"), CALC.replace("\n\n\n", "\n"), CALC.replace('\n', " \n")]
        {
            let answer = format!("calc.py\n```python\n{text}```");
            assert_eq!(resolved(&answer), Err(Unusable::Unchanged("pkg/calc.py".into())), "{text}");
        }
    }

    #[test]
    fn a_missing_name_has_to_be_there_and_may_come_alone() {
        let offer = Offer { wanted: Some("mul".into()), ..offer() };
        let resolved = |answer: &str| resolve(parse(answer, false).unwrap(), &offer);
        let alone = resolved("```python\ndef mul(a, b):\n    return a * b\n```").unwrap();
        assert_eq!(alone[0].text, format!("{CALC}\n\ndef mul(a, b):\n    return a * b\n"));
        let without = resolved(&format!("calc.py\n```python\n{}```", fixed()[0].text));
        assert_eq!(without, Err(Unusable::StillMissing { path: "pkg/calc.py".into(), name: "mul".into() }));
    }

    #[test]
    fn the_test_in_the_place_of_the_code_is_refused() {
        let copied = resolved(&format!("calc.py\n```python\n{TEST}```"));
        assert_eq!(copied, Err(Unusable::Lost { path: "pkg/calc.py".into(), name: "add".into() }));
        let only = resolved("calc.py\n```python\nclass AddTest(unittest.TestCase):\n    pass\n```");
        assert_eq!(only, Err(Unusable::TestCopied("pkg/calc.py".into())));
        let lost = resolved(
            "calc.py\n```python\ndef sub(a, b):\n    return a - b\n\n\ndef more(a):\n    return a\n\nx = 1\n```",
        );
        assert_eq!(lost, Err(Unusable::Lost { path: "pkg/calc.py".into(), name: "add".into() }));
    }

    proptest! {
        #[test]
        fn any_blocks_are_resolved_or_refused(search in "[ ab\n]{0,12}", put in "[ ab\n]{0,12}", text in "[ ab\n]{0,24}") {
            let offer = Offer { edit: vec![Source { path: "a.py".into(), text }], ..Offer::default() };
            let edit = Edit::Replace { path: None, blocks: vec![Block { search, replace: put.clone() }] };
            let _ = resolve(vec![edit], &offer);
            let whole = Edit::Whole { path: None, language: String::new(), header: None, content: put };
            let _ = resolve(vec![whole], &offer);
        }
    }
}
