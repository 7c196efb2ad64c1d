//! What a failing check says: cleaned of noise, read for names, trimmed to what a small model can use.

use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

static ESCAPE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])"));
/// A frame inside the language's own library: where it happened says nothing about the task.
static FOREIGN_FRAME: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"^\s*(?:File "(?:/[^"]*/(?:lib/python[\d.]+|site-packages|dist-packages)/[^"]*|<frozen [^"]*)"|at .*(?:node:internal|node_modules)/)"#,
    )
});
static FRAME: LazyLock<Regex> = LazyLock::new(|| pattern(r#"File "([^"]+)", line (\d+)"#));
static PLACE: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r#"(?:^|[\s('"`\[=>])((?:/|\./)?(?:[\w@.+-]+/)*[\w@.+-]*[\w@+-]\.[A-Za-z]\w{0,7}):(\d+)"#)
});
static FILE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r#"(?:^|[\s('"`\[=:])((?:/|\./)?(?:[\w@.+-]+/)*[\w@.+-]*[\w@+-]\.[A-Za-z]\w{0,7})\b"#));

/// Names of tests that failed, in the words of the usual runners.
static TESTS: LazyLock<[Regex; 6]> = LazyLock::new(|| {
    [
        pattern(r"(?m)^(?:FAIL|ERROR): (\w+)"),
        pattern(r"(?m)^\s*--- FAIL: (\w+)"),
        pattern(r"(?m)^test (?:\w+::)*(\w+) \.\.\. FAILED"),
        pattern(r"(?m)^---- (?:\w+::)*(\w+) stdout ----"),
        pattern(r"(?m)^(?:FAILED|ERROR) \S+?::(?:\w+::)*(\w+)"),
        pattern(r"(?m)^not ok \d+ -? ?(.+)$"),
    ]
});

/// Names that are not there.
static MISSING: LazyLock<[Regex; 6]> = LazyLock::new(|| {
    [
        pattern(r"has no attribute '(\w+)'"),
        pattern(r"cannot import name '(\w+)'"),
        pattern(r"(?m)\b(\w+) is not (?:a function|defined)"),
        pattern(r"cannot find (?:function|value|type|macro|struct)[^`\n]*`(\w+)`"),
        pattern(r"no (?:method|function or associated item|field)[^`\n]*named `(\w+)`"),
        pattern(r"undefined: (?:\w+\.)?(\w+)"),
    ]
});

/// Functions that frames of a traceback name.
static FUNCTIONS: LazyLock<[Regex; 1]> = LazyLock::new(|| [pattern(r", in (\w+)")]);

static MODULES: LazyLock<[Regex; 3]> = LazyLock::new(|| {
    [
        pattern(r"No module named '([\w.]+)'"),
        pattern(r"Cannot find module '([^']+)'"),
        pattern(r"cannot import name '\w+' from '([\w.]+)'"),
    ]
});

static IMPORTANT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)error|assert|expected|actual|panicked|fail|traceback|exception|\bgot\b|\bwant|undefined|not found|cannot|left:|right:|^E\s|^\s*[-+?^] ",
    )
});

/// The longest line that is shown whole, in characters.
const MAX_LINE: usize = 300;

/// The output of a check as it is put before a model, and the names in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Failure {
    pub(super) text: String,
    /// Files it names, with the line where there is one; later ones are closer to the fault.
    pub(super) places: Vec<(String, Option<usize>)>,
    pub(super) tests: Vec<String>,
    /// Names that are not there, as far as the runner says so.
    pub(super) missing_names: Vec<String>,
    /// Functions in its tracebacks.
    pub(super) functions: Vec<String>,
    pub(super) missing_modules: Vec<String>,
}

impl Failure {
    pub(super) fn read(output: &str, worktree: &Path) -> Self {
        let text = clean(output, worktree);
        let places = places(&text);
        let captures = |patterns: &[Regex]| {
            let mut names: Vec<String> = Vec::new();
            for found in patterns.iter().flat_map(|pattern| pattern.captures_iter(&text)) {
                let name = found[1].trim().to_owned();
                if !names.contains(&name) {
                    names.push(name);
                }
            }
            names
        };
        Self {
            tests: captures(&*TESTS),
            missing_names: captures(&*MISSING),
            functions: captures(&*FUNCTIONS),
            missing_modules: captures(&*MODULES),
            places,
            text,
        }
    }
}

/// Files named in a text, with the line where there is one.
pub(super) fn places(text: &str) -> Vec<(String, Option<usize>)> {
    let mut places: Vec<(String, Option<usize>)> = Vec::new();
    let numbered = FRAME.captures_iter(text).chain(PLACE.captures_iter(text));
    places.extend(numbered.map(|found| (found[1].to_owned(), found[2].parse().ok())));
    for found in FILE.captures_iter(text) {
        if !places.iter().any(|(path, _)| *path == found[1]) {
            places.push((found[1].to_owned(), None));
        }
    }
    places
}

/// Without escape sequences, overwritten progress lines, foreign frames and the worktree's own path.
fn clean(output: &str, worktree: &Path) -> String {
    let output = ESCAPE.replace_all(output, "");
    let output = output.replace(&format!("{}/", worktree.display()), "");
    let mut lines: Vec<&str> = Vec::new();
    let mut foreign: Option<usize> = None;
    for line in output.lines() {
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default().trim_end();
        let indentation = line.len() - line.trim_start().len();
        if FOREIGN_FRAME.is_match(line) {
            foreign = Some(indentation);
            continue;
        }
        // The source line of a frame is indented under it.
        if foreign.is_some_and(|frame| indentation > frame) {
            continue;
        }
        foreign = None;
        if line.is_empty() && lines.last().is_none_or(|last| last.is_empty()) {
            continue;
        }
        lines.push(line);
    }
    lines.join("\n").trim_end().to_owned()
}

/// At most about `most` bytes of `text`: the lines that say what failed, those around them, the beginning and the end.
pub(super) fn trim(text: &str, most: usize) -> String {
    let lines: Vec<String> = text.lines().map(shorten).collect();
    if lines.iter().map(|line| line.len() + 1).sum::<usize>() <= most {
        return lines.join("\n");
    }
    let important: Vec<usize> = (0..lines.len()).filter(|&at| IMPORTANT.is_match(&lines[at])).collect();
    let around = important.iter().flat_map(|&at| at.saturating_sub(2)..(at + 3).min(lines.len()));
    let ends = (0..lines.len().min(3)).chain(lines.len().saturating_sub(5)..lines.len());
    let mut kept = vec![false; lines.len()];
    let mut used = 0;
    for at in important.iter().copied().chain(around).chain(ends) {
        // Room for the line that says what is missing.
        let cost = lines[at].len() + 40;
        if !kept[at] && used + cost <= most {
            kept[at] = true;
            used += cost;
        }
    }
    let mut shown = Vec::new();
    let mut missing = 0;
    for (line, kept) in lines.iter().zip(kept) {
        if !kept {
            missing += 1;
            continue;
        }
        if missing > 0 {
            shown.push(format!("[{missing} lines left out]"));
            missing = 0;
        }
        shown.push(line.clone());
    }
    if missing > 0 {
        shown.push(format!("[{missing} lines left out]"));
    }
    shown.join("\n")
}

fn shorten(line: &str) -> String {
    if line.chars().count() <= MAX_LINE {
        return line.to_owned();
    }
    let head: String = line.chars().take(MAX_LINE * 2 / 3).collect();
    let tail: Vec<char> = line.chars().rev().take(MAX_LINE / 3).collect();
    format!("{head} […] {}", tail.into_iter().rev().collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const UNITTEST: &str = "\u{1b}[31mF\u{1b}[0m.\n======\nFAIL: test_mean (test_stats.TestStats.test_mean)\n------\n\
        Traceback (most recent call last):\n  File \"/wt/test_stats.py\", line 7, in test_mean\n    \
        self.assertEqual(mean([1, 2]), 1.5)\n  File \"/usr/lib/python3.11/unittest/case.py\", line 59, in run\n    \
        yield\n  File \"/wt/stats.py\", line 3, in mean\n    return total / len(values)\nAssertionError: 3.0 != 1.5\n\n\n\
        Ran 2 tests in 0.001s\n\nFAILED (failures=1)\n";

    #[test]
    fn a_traceback_loses_its_foreign_frames_and_keeps_its_names() {
        let failure = Failure::read(UNITTEST, Path::new("/wt"));
        assert!(!failure.text.contains("case.py") && !failure.text.contains("yield"), "{}", failure.text);
        assert!(failure.text.contains("File \"stats.py\", line 3") && failure.text.contains("3.0 != 1.5"));
        assert_eq!(failure.tests, ["test_mean"]);
        assert!(failure.functions.contains(&"mean".to_owned()));
        let lines: Vec<_> = failure.places.iter().filter_map(|(path, line)| Some((path.as_str(), (*line)?))).collect();
        assert_eq!(lines, [("test_stats.py", 7), ("stats.py", 3)]);
    }

    #[test]
    fn places_are_found_in_every_usual_shape() {
        for (text, path, line) in [
            ("  --> crates/x/src/lib.rs:12:5", "crates/x/src/lib.rs", 12),
            ("thread 'a' panicked at src/x.rs:3:9:", "src/x.rs", 3),
            ("    calc_test.go:14: got 3, want 4", "calc_test.go", 14),
            ("    at Object.<anonymous> (src/sum.test.js:5:20)", "src/sum.test.js", 5),
            ("./main.go:7:2: undefined: Foo", "./main.go", 7),
            ("main.c:10: error: expected ';'", "main.c", 10),
        ] {
            assert!(places(text).contains(&(path.to_owned(), Some(line))), "{text}: {:?}", places(text));
        }
        assert!(places("fix util/strings.py, please").contains(&("util/strings.py".to_owned(), None)));
    }

    #[test]
    fn missing_modules_and_names_are_found() {
        let failure = Failure::read(
            "ModuleNotFoundError: No module named 'shapes'\nImportError: cannot import name 'area' from 'geo' (/wt/geo.py)\n\
             error[E0425]: cannot find function `sum_all` in this scope\n./a.go:3:4: undefined: Parse\n",
            Path::new("/wt"),
        );
        assert_eq!(failure.missing_modules, ["shapes", "geo"]);
        for symbol in ["area", "sum_all", "Parse"] {
            assert!(failure.missing_names.contains(&symbol.to_owned()), "{symbol}: {:?}", failure.missing_names);
        }
    }

    #[test]
    fn a_long_output_keeps_what_failed_and_says_what_is_missing() {
        let noise: String = (0..2000).map(|n| format!("compiling part {n}\n")).collect();
        let text = format!("{noise}AssertionError: 1 != 2\n{noise}");
        let short = trim(&text, 1000);
        assert!(short.len() <= 1000, "{}", short.len());
        assert!(short.contains("AssertionError: 1 != 2") && short.contains("lines left out]"), "{short}");
    }

    proptest! {
        #[test]
        fn any_output_is_read_and_trimmed_to_size(text in "(?s).{0,400}", most in 60usize..300) {
            let failure = Failure::read(&text, Path::new("/wt"));
            prop_assert!(trim(&failure.text, most).len() <= most.max(40));
        }
    }
}
