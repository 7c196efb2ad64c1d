//! How many tests passed, read from what a check printed.
//!
//! Only for choosing between candidates that did not pass: whether one did is the exit code's to say, never this text's.

use std::cmp::Ordering;
use std::sync::LazyLock;

use regex::Regex;

/// Tests counted in the output of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Score {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
}

impl Ord for Score {
    /// More tests passing is better; of two with as many, the one with fewer failing.
    fn cmp(&self, other: &Self) -> Ordering {
        self.passed.cmp(&other.passed).then(other.failed.cmp(&self.failed))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The tests counted in `output`; `None` when no known test runner wrote it.
pub(crate) fn read(output: &str) -> Option<Score> {
    let plain = ANSI.replace_all(output, "");
    READERS.iter().find_map(|reader| reader(&plain))
}

/// One reader a test runner; the first that finds its own summary counts.
const READERS: [fn(&str) -> Option<Score>; 6] = [cargo, unittest, jest, pytest, node, go];

macro_rules! pattern {
    ($name:ident, $text:literal) => {
        static $name: LazyLock<Regex> =
            LazyLock::new(|| Regex::new($text).expect("a literal pattern that the tests of this file compile"));
    };
}

pattern!(ANSI, r"\x1b\[[0-9;]*[A-Za-z]");
pattern!(CARGO, r"(?m)^test result: \w+\. (\d+) passed; (\d+) failed;");
pattern!(NEXTEST, r"(?m)^\s*Summary \[[^\]]*\]\s+\d+(?:/\d+)? tests? run: (\d+) passed[^,\n]*(?:, (\d+) failed)?");
pattern!(UNITTEST_RAN, r"(?m)^Ran (\d+) tests? in ");
pattern!(UNITTEST_END, r"(?m)^(?:FAILED|OK)(?: \(([^)\n]*)\))?\s*$");
pattern!(PYTEST, r"(?m)^=*\s*((?:\d+ [a-z]+(?:, )?)+) in [\d.]+s(?: \([^)]*\))?\s*=*\s*$");
pattern!(JEST, r"(?m)^\s*Tests:?\s+((?:\d+ \w+(?:, | \| )?)+)");
pattern!(NODE, r"(?m)^(?:# |\u{2139} )(pass|fail) (\d+)\s*$");
pattern!(MOCHA, r"(?m)^\s*(\d+) (passing|failing)\b");
pattern!(GO_TEST, r"(?m)^--- (PASS|FAIL): ");
pattern!(GO_PACKAGE, r"(?m)^(ok|FAIL)\s*\t");
pattern!(COUNTED, r"(\d+) ([a-z]+)");

fn number(text: &str) -> u32 {
    text.parse().unwrap_or(u32::MAX)
}

fn cargo(output: &str) -> Option<Score> {
    let (mut score, mut found) = (Score::default(), false);
    for captures in CARGO.captures_iter(output).chain(NEXTEST.captures_iter(output)) {
        found = true;
        score.passed = score.passed.saturating_add(number(&captures[1]));
        score.failed = score.failed.saturating_add(captures.get(2).map_or(0, |m| number(m.as_str())));
    }
    found.then_some(score)
}

fn unittest(output: &str) -> Option<Score> {
    let ran = number(&UNITTEST_RAN.captures_iter(output).last()?[1]);
    let end = UNITTEST_END.captures_iter(output).last()?;
    let (mut failed, mut other) = (0u32, 0u32);
    for part in end.get(1).map_or("", |m| m.as_str()).split(", ") {
        match part.split_once('=') {
            Some(("failures" | "errors" | "unexpected successes", n)) => failed = failed.saturating_add(number(n)),
            Some((_, n)) => other = other.saturating_add(number(n)),
            None => {}
        }
    }
    Some(Score { passed: ran.saturating_sub(failed).saturating_sub(other), failed })
}

fn counted(summary: &str) -> Option<Score> {
    let (mut score, mut found) = (Score::default(), false);
    for captures in COUNTED.captures_iter(summary) {
        match &captures[2] {
            "passed" => score.passed = score.passed.saturating_add(number(&captures[1])),
            "failed" | "error" | "errors" => score.failed = score.failed.saturating_add(number(&captures[1])),
            _ => continue,
        }
        found = true;
    }
    found.then_some(score)
}

fn pytest(output: &str) -> Option<Score> {
    counted(&PYTEST.captures_iter(output).last()?[1])
}

fn jest(output: &str) -> Option<Score> {
    counted(&JEST.captures_iter(output).last()?[1])
}

fn node(output: &str) -> Option<Score> {
    let (mut score, mut found) = (Score::default(), false);
    let mocha = MOCHA.captures_iter(output).map(|c| (c[2].starts_with("pass"), number(&c[1])));
    let own = NODE.captures_iter(output).map(|c| (&c[1] == "pass", number(&c[2])));
    for (passed, n) in own.chain(mocha) {
        found = true;
        *(if passed { &mut score.passed } else { &mut score.failed }) = n;
    }
    found.then_some(score)
}

/// Without `-v` Go names only the tests that failed, so packages that passed stand in for tests that did.
fn go(output: &str) -> Option<Score> {
    let tally = |pattern: &Regex, good: &str| {
        pattern.captures_iter(output).fold(Score::default(), |mut score, captures| {
            *(if &captures[1] == good { &mut score.passed } else { &mut score.failed }) += 1;
            score
        })
    };
    let (tests, packages) = (tally(&GO_TEST, "PASS"), tally(&GO_PACKAGE, "ok"));
    if packages == Score::default() {
        return None;
    }
    Some(Score {
        passed: if tests.passed > 0 { tests.passed } else { packages.passed },
        failed: tests.failed.max(packages.failed),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_known_runner_is_counted() {
        let table: [(&str, &str, (u32, u32)); 16] = [
            ("unittest fails", "F.\n----\nRan 5 tests in 0.001s\n\nFAILED (failures=2, errors=1)\n", (2, 3)),
            ("unittest passes", "..\nRan 2 tests in 0.000s\n\nOK\n", (2, 0)),
            ("unittest skips", "Ran 4 tests in 0.1s\n\nOK (skipped=1)\n", (3, 0)),
            ("unittest cannot import", "Ran 1 test in 0.000s\n\nFAILED (errors=1)\n", (0, 1)),
            ("pytest", "==== short ====\n=== 1 failed, 3 passed, 1 skipped in 0.12s ===\n", (3, 1)),
            ("pytest quiet", "F.\n1 failed, 1 passed in 0.02s\n", (1, 1)),
            ("pytest collects nothing", "!!! Interrupted !!!\n===== 1 error in 0.05s =====\n", (0, 1)),
            (
                "cargo, two binaries",
                "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\n\
                 test result: FAILED. 1 passed; 2 failed; 0 ignored\n",
                (4, 2),
            ),
            ("nextest", "     Summary [   0.006s] 5 tests run: 4 passed, 1 failed, 0 skipped\n", (4, 1)),
            ("go", "--- FAIL: TestAdd (0.00s)\nFAIL\nFAIL\texample.com/a\t0.1s\nok  \texample.com/b\t0.1s\n", (1, 1)),
            ("go verbose", "--- PASS: TestA (0.00s)\n--- PASS: TestB (0.00s)\nPASS\nok  \tx\t0.1s\n", (2, 0)),
            ("node tap", "# tests 3\n# pass 2\n# fail 1\n", (2, 1)),
            ("node spec", "\u{2139} tests 2\n\u{2139} pass 2\n\u{2139} fail 0\n", (2, 0)),
            ("jest", "Tests:       1 failed, 2 passed, 3 total\n", (2, 1)),
            ("vitest", "      Tests  1 failed | 4 passed (5)\n", (4, 1)),
            ("mocha", "  3 passing (4ms)\n  1 failing\n", (3, 1)),
        ];
        for (name, output, (passed, failed)) in table {
            assert_eq!(read(output), Some(Score { passed, failed }), "{name}");
        }
    }

    #[test]
    fn colours_do_not_hide_the_count() {
        assert_eq!(
            read("\x1b[31m=== \x1b[1m1 failed\x1b[0m, \x1b[32m2 passed\x1b[0m in 0.1s ===\x1b[0m\n"),
            Some(Score { passed: 2, failed: 1 })
        );
    }

    #[test]
    fn other_text_is_not_counted() {
        for text in ["", "all 5 tests passed, trust me", "Segmentation fault", "3 passed the river"] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn more_passing_wins_then_fewer_failing() {
        let score = |passed, failed| Score { passed, failed };
        assert!(score(2, 5) > score(1, 0));
        assert!(score(2, 1) > score(2, 2));
    }
}
