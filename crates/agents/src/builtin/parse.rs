//! Reading an answer: which files it gives whole, and which it changes by search/replace blocks or a diff.
//!
//! Models write the path before the fence, in its info string, in a first comment line, or nowhere; all of these are
//! understood. A file that was cut off is refused rather than half used.

use std::sync::LazyLock;

use regex::Regex;

/// What an answer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Edit {
    /// A file from its first to its last line.
    Whole {
        /// As the answer gives it, if it does.
        path: Option<String>,
        /// Language of the fence.
        language: String,
        /// First line, when it was a comment with the path and was taken off `content`.
        header: Option<String>,
        content: String,
    },
    /// Passages of a file.
    Replace { path: Option<String>, blocks: Vec<Block> },
}

/// One passage and what takes its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) search: String,
    pub(super) replace: String,
}

/// Why nothing could be read from an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("the answer was cut off at the limit of its length, in the middle of a file")]
    Truncated,
    #[error("the answer holds no code block, only prose")]
    Prose,
    #[error("the answer is empty")]
    Empty,
    #[error("a search/replace block is not complete")]
    BrokenBlock,
}

/// How many lines before a fence its path may be.
const PATH_DISTANCE: usize = 2;
const MAX_PATH: usize = 200;
/// Files that have no ending.
const BARE_NAMES: [&str; 6] = ["Makefile", "Dockerfile", "Justfile", "Rakefile", "Gemfile", "Procfile"];

static COMMENT: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"^\s*(?:#+|//+|--|;+|/\*+|<!--|%)\s*(?i:file(?:name)?:|path:)?\s*`?([^\s`]+?)`?\s*(?:\*/|-->)?\s*$")
        .expect("the pattern is a constant")
});

/// Reads an answer; `truncated`: it ended because there was no room left.
pub(super) fn parse(answer: &str, truncated: bool) -> Result<Vec<Edit>, Unusable> {
    if answer.trim().is_empty() {
        return Err(Unusable::Empty);
    }
    let lines: Vec<&str> = answer.lines().collect();
    if lines.iter().any(|line| is_search(line)) {
        return search_replace(&lines, truncated);
    }
    let mut edits = Vec::new();
    let mut at = 0;
    // The last path seen outside a fence, and its line.
    let mut named: Option<(usize, String)> = None;
    while at < lines.len() {
        let Some(fence) = Fence::open(lines[at]) else {
            if let Some(path) = path_in_line(lines[at]) {
                named = Some((at, path));
            }
            at += 1;
            continue;
        };
        let (end, closed) = fence.close(&lines, at + 1);
        if !closed && truncated {
            // Whole files before the cut are whole all the same.
            return if edits.is_empty() { Err(Unusable::Truncated) } else { Ok(edits) };
        }
        let body = &lines[at + 1..end];
        let blank = |from: usize| lines[from + 1..at].iter().filter(|line| !line.trim().is_empty()).count();
        let before = named.take().filter(|(line, _)| blank(*line) < PATH_DISTANCE).map(|(_, path)| path);
        push(&mut edits, &fence, before, body);
        at = end + 1;
    }
    if edits.is_empty() {
        return if truncated { Err(Unusable::Truncated) } else { bare(&lines) };
    }
    Ok(edits)
}

/// An answer without any fence: a path on the first line and a file below it, or nothing but a file. Whether it is one
/// is for the comparison with the file to say.
fn bare(lines: &[&str]) -> Result<Vec<Edit>, Unusable> {
    let first = lines.iter().position(|line| !line.trim().is_empty()).unwrap_or(0);
    let path =
        path_in_line(lines[first]).filter(|path| lines[first].trim().trim_end_matches(':').ends_with(path.as_str()));
    let body = if path.is_some() { &lines[first + 1..] } else { &lines[first..] };
    let looks_like_code = body.iter().filter(|line| is_code_line(line)).count() * 2 >= body.len().max(1);
    if body.is_empty() || !looks_like_code {
        return Err(Unusable::Prose);
    }
    Ok(vec![Edit::Whole { path, language: String::new(), header: None, content: joined(body) }])
}

fn is_code_line(line: &str) -> bool {
    let trimmed = line.trim();
    trimmed.is_empty()
        || line.starts_with([' ', '\t'])
        || trimmed.ends_with([':', ';', '{', '}', ')', ',', ']'])
        || ["import ", "from ", "use ", "#", "//", "@", "def ", "return "]
            .iter()
            .any(|start| trimmed.starts_with(start))
        || trimmed.contains(" = ")
}

fn push(edits: &mut Vec<Edit>, fence: &Fence<'_>, before: Option<String>, body: &[&str]) {
    if body.iter().all(|line| line.trim().is_empty()) {
        return;
    }
    let in_info = fence.path();
    let language = fence.language().to_owned();
    if matches!(language.as_str(), "diff" | "patch") || is_diff(body) {
        edits.extend(diff(body, in_info.or(before)));
        return;
    }
    let mut path = in_info.or(before);
    let mut header = None;
    let mut body = body;
    if let Some(comment) = body.first().and_then(|line| COMMENT.captures(line)).and_then(|found| found.get(1))
        && let Some(found) = as_path(comment.as_str())
    {
        header = Some(body[0].to_owned());
        body = &body[1..];
        path = path.or(Some(found));
    } else if path.is_none() && body.len() > 1 && body[0].trim() == body[0] {
        // The path as the first line inside the fence.
        if let Some(found) = as_path(body[0].trim_end_matches(':')).filter(|_| !body[0].contains('(')) {
            path = Some(found);
            body = &body[1..];
        }
    }
    edits.push(Edit::Whole { path, language, header, content: joined(body) });
}

fn joined(lines: &[&str]) -> String {
    let mut text = lines.join("\n");
    text.push('\n');
    text
}

/// An opening fence.
struct Fence<'a> {
    mark: char,
    length: usize,
    info: &'a str,
}

impl<'a> Fence<'a> {
    fn open(line: &'a str) -> Option<Self> {
        let trimmed = line.trim();
        let mark = trimmed.chars().next().filter(|mark| matches!(mark, '`' | '~'))?;
        let length = trimmed.chars().take_while(|&c| c == mark).count();
        let info = &trimmed[length..];
        (length >= 3 && !info.contains('`')).then(|| Self { mark, length, info: info.trim() })
    }

    /// The line of the closing fence, or the end of the answer.
    fn close(&self, lines: &[&str], from: usize) -> (usize, bool) {
        // Fences inside a Markdown file come in pairs, the opening one with a language.
        let nests = matches!(self.language(), "markdown" | "md");
        let mut depth = 0;
        for (at, line) in lines.iter().enumerate().skip(from) {
            let Some(fence) = Fence::open(line).filter(|fence| fence.mark == self.mark && fence.length >= self.length)
            else {
                continue;
            };
            if fence.info.is_empty() {
                if depth == 0 {
                    return (at, true);
                }
                depth -= 1;
            } else if nests {
                depth += 1;
            }
        }
        (lines.len(), false)
    }

    fn words(&self) -> impl Iterator<Item = &'a str> {
        self.info
            .split(|c: char| c.is_whitespace() || matches!(c, ':' | '=' | '"' | '\'' | '{' | '}' | ',' | '(' | ')'))
    }

    fn path(&self) -> Option<String> {
        self.words().find_map(as_path)
    }

    fn language(&self) -> &'a str {
        self.words().find(|word| !word.is_empty()).filter(|word| as_path(word).is_none()).unwrap_or("")
    }
}

/// The path a line outside a fence gives: `calc.py`, `### File: calc.py`, ``Here is the corrected `calc.py`:``.
fn path_in_line(line: &str) -> Option<String> {
    let trimmed = line.trim().trim_start_matches(['#', '*', '-', '>', ' ']);
    let quoted: Vec<String> = trimmed.split('`').skip(1).step_by(2).filter_map(as_path).collect();
    if let [only] = &quoted[..] {
        return Some(only.clone());
    }
    let bare = trimmed.trim_end_matches([':', '*', ' ', '`']).trim_start_matches(['`', '*']);
    if let Some(path) = as_path(bare) {
        return Some(path);
    }
    // `File: calc.py`, `1. calc.py`, `Here is calc.py`: the last word, when only that one is a path.
    let words: Vec<&str> = bare.split_whitespace().collect();
    let paths: Vec<String> =
        words.iter().filter_map(|word| as_path(word.trim_matches(['*', '`', '(', ')', ':', ',']))).collect();
    match &paths[..] {
        [only] if words.len() <= 12 => Some(only.clone()),
        _ => None,
    }
}

/// `text` when it looks like a path of a file. Paths that lead out are paths too, so that they can be refused.
fn as_path(text: &str) -> Option<String> {
    let usable = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '@' | '.' | '/' | '~');
    if text.is_empty() || text.len() > MAX_PATH || !text.chars().all(usable) || text.ends_with(['/', '.']) {
        return None;
    }
    let name = text.rsplit('/').next().unwrap_or(text);
    let ending = name.rsplit_once('.').map(|(_, ending)| ending);
    let has_ending = ending.is_some_and(|ending| {
        (1..=8).contains(&ending.len())
            && ending.starts_with(|c: char| c.is_ascii_alphabetic())
            && ending.chars().all(|c| c.is_ascii_alphanumeric())
    });
    let known = BARE_NAMES.contains(&name) || text.contains('/') && text.starts_with(['/', '.']);
    // `e.g`, `i.e` and a method call are no files.
    let abbreviation = matches!(text, "e.g" | "i.e" | "etc");
    ((has_ending || known) && !abbreviation && !text.contains("//")).then(|| text.trim_start_matches("./").to_owned())
}

fn is_search(line: &str) -> bool {
    line.trim_start().starts_with("<<<<<<<")
}

fn is_divider(line: &str) -> bool {
    line.trim().starts_with("=======")
}

fn is_replaced(line: &str) -> bool {
    line.trim_start().starts_with(">>>>>>>")
}

fn search_replace(lines: &[&str], truncated: bool) -> Result<Vec<Edit>, Unusable> {
    let broken = if truncated { Unusable::Truncated } else { Unusable::BrokenBlock };
    let mut edits: Vec<Edit> = Vec::new();
    let mut path: Option<String> = None;
    let mut at = 0;
    while at < lines.len() {
        let line = lines[at];
        if !is_search(line) {
            let named = Fence::open(line).map_or_else(|| path_in_line(line), |fence| fence.path());
            let comment = || COMMENT.captures(line).and_then(|found| as_path(found.get(1)?.as_str()));
            path = named.or_else(comment).or(path);
            at += 1;
            continue;
        }
        let rest = &lines[at + 1..];
        let divider = rest.iter().position(|line| is_divider(line)).ok_or(broken)?;
        let end = rest.iter().position(|line| is_replaced(line)).filter(|&end| end > divider).ok_or(broken)?;
        let text = |lines: &[&str]| if lines.is_empty() { String::new() } else { joined(lines) };
        let block = Block { search: text(&rest[..divider]), replace: text(&rest[divider + 1..end]) };
        match edits.last_mut() {
            Some(Edit::Replace { path: last, blocks }) if *last == path => blocks.push(block),
            _ => edits.push(Edit::Replace { path: path.clone(), blocks: vec![block] }),
        }
        at += end + 2;
    }
    Ok(edits)
}

fn is_diff(body: &[&str]) -> bool {
    let starts = |text: &str| body.iter().any(|line| line.starts_with(text));
    starts("@@ ") && starts("+++ ") || starts("@@ -")
}

/// A unified diff as search/replace blocks: small models get its line numbers wrong, but not its lines.
fn diff(body: &[&str], named: Option<String>) -> Vec<Edit> {
    let mut edits: Vec<Edit> = Vec::new();
    let mut path = named;
    let (mut search, mut replace) = (Vec::new(), Vec::new());
    let mut changed = false;
    let mut flush = |search: &mut Vec<&str>, replace: &mut Vec<&str>, changed: &mut bool, path: &Option<String>| {
        let (old, new) = (std::mem::take(search), std::mem::take(replace));
        if std::mem::take(changed) {
            let text = |lines: &[&str]| if lines.is_empty() { String::new() } else { joined(lines) };
            let block = Block { search: text(&old), replace: text(&new) };
            match edits.last_mut() {
                Some(Edit::Replace { path: last, blocks }) if last == path => blocks.push(block),
                _ => edits.push(Edit::Replace { path: path.clone(), blocks: vec![block] }),
            }
        }
    };
    for line in body {
        if let Some(target) = line.strip_prefix("+++ ") {
            flush(&mut search, &mut replace, &mut changed, &path);
            let target = target.split('\t').next().unwrap_or(target).trim();
            path = as_path(target.strip_prefix("b/").unwrap_or(target)).or(path);
        } else if ["@@", "--- ", "diff ", "index "].iter().any(|start| line.starts_with(start)) {
            flush(&mut search, &mut replace, &mut changed, &path);
        } else if let Some(added) = line.strip_prefix('+') {
            replace.push(added);
            changed = true;
        } else if let Some(removed) = line.strip_prefix('-') {
            search.push(removed);
            changed = true;
        } else {
            let context = line.strip_prefix(' ').unwrap_or(line);
            search.push(context);
            replace.push(context);
        }
    }
    flush(&mut search, &mut replace, &mut changed, &path);
    edits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn shown(answer: &str) -> String {
        match parse(answer, false) {
            Ok(edits) => edits
                .iter()
                .map(|edit| match edit {
                    Edit::Whole { path, content, .. } => format!("whole {path:?} {content:?}"),
                    Edit::Replace { path, blocks } => format!(
                        "replace {path:?} {:?}",
                        blocks.iter().map(|block| (&block.search, &block.replace)).collect::<Vec<_>>()
                    ),
                })
                .collect::<Vec<_>>()
                .join("\n"),
            Err(why) => format!("unusable: {why}"),
        }
    }

    #[test]
    fn the_path_is_found_wherever_models_put_it() {
        let expected = r#"whole Some("calc.py") "x = 1\n""#;
        for answer in [
            "calc.py\n```python\nx = 1\n```\n",
            "**calc.py**\n\n```python\nx = 1\n```",
            "### File: `calc.py`\n```\nx = 1\n```",
            "Here is the corrected `calc.py`:\n\n```python\nx = 1\n```\nThis works because x is 1.",
            "Sure! Here's the fixed code:\n\n```python\n# calc.py\nx = 1\n```",
            "```python calc.py\nx = 1\n```",
            "```python:calc.py\nx = 1\n```",
            "```calc.py\nx = 1\n```",
            "```python title=\"./calc.py\"\nx = 1\n```",
            "1. calc.py:\n~~~py\nx = 1\n~~~",
            "calc.py\n```python\nx = 1\n",
            "```\ncalc.py\nx = 1\n```",
        ] {
            assert_eq!(shown(answer), expected, "{answer}");
        }
    }

    #[test]
    fn answers_as_models_give_them() {
        insta::assert_snapshot!(shown("I think you should fix the loop. It is off by one."), @"unusable: the answer holds no code block, only prose");
        insta::assert_snapshot!(shown("```python\ndef a():\n    return 1\n```\n\nRun it with:\n\n```bash\npython3 -m unittest\n```"), @r#"
        whole None "def a():\n    return 1\n"
        whole None "python3 -m unittest\n"
        "#);
        insta::assert_snapshot!(shown("a.py\n```python\nx = 1\n```\nb/c.py\n```python\ny = 2\n```"), @r#"
        whole Some("a.py") "x = 1\n"
        whole Some("b/c.py") "y = 2\n"
        "#);
        insta::assert_snapshot!(shown("calc.py\n<<<<<<< SEARCH\nreturn a\n=======\nreturn b\n>>>>>>> REPLACE\n"), @r#"replace Some("calc.py") [("return a\n", "return b\n")]"#);
        insta::assert_snapshot!(shown("```python\ncalc.py\n<<<<<<< SEARCH\na\n=======\n>>>>>>> REPLACE\n<<<<<<< SEARCH\nb\n=======\nc\n>>>>>>> REPLACE\n```"), @r#"replace Some("calc.py") [("a\n", ""), ("b\n", "c\n")]"#);
        insta::assert_snapshot!(shown("```diff\n--- a/calc.py\n+++ b/calc.py\n@@ -1,3 +1,3 @@\n def f():\n-    return 1\n+    return 2\n```"), @r#"replace Some("calc.py") [("def f():\n    return 1\n", "def f():\n    return 2\n")]"#);
        insta::assert_snapshot!(shown("def f(a):\n    return a + 1\n"), @r#"whole None "def f(a):\n    return a + 1\n""#);
        insta::assert_snapshot!(shown("README.md\n```markdown\n# T\n```sh\nls\n```\nend\n```\n"), @r##"whole Some("README.md") "# T\n```sh\nls\n```\nend\n""##);
        insta::assert_snapshot!(shown("<<<<<<< SEARCH\na\n=======\nb\n"), @"unusable: a search/replace block is not complete");
    }

    #[test]
    fn half_a_file_is_refused() {
        assert_eq!(parse("calc.py\n```python\ndef f():\n    ret", true), Err(Unusable::Truncated));
        assert_eq!(parse("calc.py\n<<<<<<< SEARCH\na\n=======\nb", true), Err(Unusable::Truncated));
        assert_eq!(parse("def f():\n    ret", true), Err(Unusable::Truncated));
        let two = parse("a.py\n```python\nx = 1\n```\ntest_a.py\n```python\ndef te", true).unwrap();
        assert!(matches!(&two[..], [Edit::Whole { path: Some(path), .. }] if path == "a.py"));
        // What came before the cut was whole.
        assert!(parse("calc.py\n```python\nx = 1\n```\nThis is bec", true).is_ok());
    }

    #[test]
    fn paths_that_lead_out_are_seen_as_paths() {
        for path in ["../evil.py", "/etc/passwd", ".git/config", "a/../../b.py"] {
            let answer = format!("{path}\n```\nx\n```");
            let edits = parse(&answer, false).unwrap();
            assert!(
                matches!(&edits[..], [Edit::Whole { path: Some(found), .. }] if found == path),
                "{path}: {edits:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_read_or_refused(answer in "(?s).{0,300}", truncated in any::<bool>()) {
            let _ = parse(&answer, truncated);
        }

        #[test]
        fn any_mix_of_marks_is_read_or_refused(
            parts in prop::collection::vec(prop::sample::select(vec![
                "```", "```python", "````md", "~~~", "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE", "@@ -1 +1 @@", "+++ b/x.py",
                "-a", "+b", "calc.py", "# calc.py", "text", "", "    x = 1",
            ]), 0..16),
            truncated in any::<bool>(),
        ) {
            let _ = parse(&parts.join("\n"), truncated);
        }
    }
}
