//! Which files an agent may not change: what the check runs, unless the task is about those files.
//!
//! A small model asked to make tests pass will now and then change the tests. Before every check the files named here
//! are put back as they were at the base commit.

use std::collections::BTreeSet;

/// What is kept from the agent on one task.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Protection {
    /// Files tracked at the base commit that are restored before every check.
    pub(crate) restored: BTreeSet<String>,
    /// Whether new files that steer a test runner are taken away before every check.
    pub(crate) allowed_hooks: BTreeSet<String>,
}

/// Directories whose files are tests.
const TEST_DIRS: [&str; 6] = ["test", "tests", "__tests__", "spec", "specs", "testdata"];
/// Beginnings and ends of the names of test files.
const TEST_NAMES: [(&str, &str); 14] = [
    ("test_", ".py"),
    ("", "_test.py"),
    ("", "_test.go"),
    ("", "_test.rs"),
    ("", "_test.c"),
    ("", "_test.cc"),
    ("", "_test.cpp"),
    ("", "_test.rb"),
    ("", "_spec.rb"),
    ("", "_spec.lua"),
    ("", "Test.java"),
    ("", "Test.kt"),
    ("", "Tests.cs"),
    ("test_", ".sh"),
];
/// Names that are test files whatever comes after them.
const TEST_STEMS: [&str; 6] = ["test", "tests", "run_tests", "runtests", "run-tests", "check"];
/// Files that a test runner loads unasked, so that a new one can change what passes.
const HOOKS: [&str; 6] =
    ["conftest.py", "pytest.ini", "sitecustomize.py", "usercustomize.py", "tox.ini", ".mocharc.js"];
/// First word of a check, and the file that says what it does.
const RECIPES: [(&str, &[&str]); 9] = [
    ("make", &["Makefile", "makefile", "GNUmakefile"]),
    ("gmake", &["Makefile", "makefile", "GNUmakefile"]),
    ("just", &["justfile", "Justfile", ".justfile"]),
    ("npm", &["package.json"]),
    ("pnpm", &["package.json"]),
    ("yarn", &["package.json"]),
    ("tox", &["tox.ini"]),
    ("nox", &["noxfile.py"]),
    ("rake", &["Rakefile"]),
];
/// Words that, before the name of a file, ask for that file to be changed.
const EDITING: [&str; 14] = [
    "add", "edit", "change", "update", "modify", "rewrite", "extend", "write", "create", "rename", "delete", "remove",
    "move", "adapt",
];
/// Words after which a file is what has to pass, not what to change.
const PURPOSE: [&str; 6] = ["so", "until", "pass", "passes", "satisfy", "make"];
/// Words between the editing word and the name, at most.
const REACH: usize = 7;

impl Protection {
    /// Of the files tracked at the base commit, those to protect on this task.
    pub(crate) fn new<'a>(tracked: impl IntoIterator<Item = &'a str>, prompt: &str, check: &str) -> Self {
        let recipes = recipes(check);
        let restored = tracked
            .into_iter()
            .filter(|path| is_test(path) || HOOKS.contains(&name_of(path)) || recipes.contains(path))
            .filter(|path| !asks_to_edit(prompt, path))
            .map(str::to_owned)
            .collect();
        let allowed_hooks =
            HOOKS.iter().filter(|hook| asks_to_edit(prompt, hook)).map(|&hook| hook.to_owned()).collect();
        Self { restored, allowed_hooks }
    }

    /// Whether a file that was not there at the base commit has to go before the check.
    pub(crate) fn refuses_new(&self, path: &str) -> bool {
        let name = name_of(path);
        HOOKS.contains(&name) && !self.allowed_hooks.contains(name)
    }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn is_test(path: &str) -> bool {
    let (dirs, name) = path.rsplit_once('/').unwrap_or(("", path));
    dirs.split('/').any(|dir| TEST_DIRS.contains(&dir))
        || TEST_NAMES
            .iter()
            .any(|(start, end)| name.len() > start.len() + end.len() && name.starts_with(start) && name.ends_with(end))
        || name.contains(".test.")
        || name.contains(".spec.")
        || TEST_STEMS.contains(&name.split('.').next().unwrap_or(name))
}

fn recipes(check: &str) -> Vec<&'static str> {
    let words = check.split(|c: char| c.is_whitespace() || "&|;()".contains(c)).map(name_of);
    words
        .flat_map(|word| {
            RECIPES.iter().filter(move |(tool, _)| *tool == word).flat_map(|(_, files)| files.iter().copied())
        })
        .collect()
}

/// Whether a sentence of the prompt has a word that asks for a change shortly before the name of this file.
fn asks_to_edit(prompt: &str, path: &str) -> bool {
    let name = name_of(path);
    prompt.split(['\n', ';']).flat_map(|line| line.split(". ")).any(|sentence| {
        let words: Vec<String> = sentence
            .split(|c: char| c.is_whitespace() || ",()\"'`:".contains(c))
            .map(|word| word.trim_end_matches(['.', '!', '?']).trim_start_matches("./").to_owned())
            .filter(|word| !word.is_empty())
            .collect();
        words.iter().enumerate().filter(|(_, word)| *word == path || *word == name).any(|(at, _)| {
            let before = &words[at.saturating_sub(REACH)..at];
            let is = |word: &String, table: &[&str]| table.contains(&word.to_ascii_lowercase().as_str());
            let negated = words[..at].iter().any(|word| {
                matches!(word.to_ascii_lowercase().as_str(), "don't" | "dont" | "don" | "never" | "not" | "without")
            });
            match before.iter().rposition(|word| is(word, &EDITING)) {
                Some(verb) => !negated && !before[verb + 1..].iter().any(|word| is(word, &PURPOSE)),
                None => false,
            }
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn protected(prompt: &str, check: &str, path: &str) -> bool {
        Protection::new([path], prompt, check).restored.contains(path)
    }

    #[test]
    fn tests_and_what_the_check_runs_are_protected() {
        let table = [
            ("make the tests pass", "python3 -m unittest", "test_calc.py", true),
            ("make the tests pass", "python3 -m unittest", "calc.py", false),
            ("fix calc", "pytest", "tests/data/a.json", true),
            ("fix calc", "pytest", "src/latest/a.py", false),
            ("fix calc", "go test ./...", "calc_test.go", true),
            ("fix calc", "node --test", "src/calc.test.js", true),
            ("fix calc", "pytest", "conftest.py", true),
            ("fix calc", "make test", "Makefile", true),
            ("fix calc", "pytest", "Makefile", false),
            ("fix calc", "cd sub && npm test", "package.json", true),
            ("fix calc", "sh check.sh", "check.sh", true),
            ("fix calc", "python3 calc.py", "calc.py", false),
            ("fix the test helper", "pytest", "attest.py", false),
        ];
        for (prompt, check, path, expected) in table {
            assert_eq!(protected(prompt, check, path), expected, "{prompt} / {check} / {path}");
        }
    }

    #[test]
    fn a_test_that_the_prompt_asks_to_edit_is_not_protected() {
        let table = [
            ("Add a case for division to test_calc.py.", false),
            ("Update the expected values in tests/test_calc.py", false),
            ("make tests/test_calc.py pass", true),
            ("Change calc.py so that test_calc.py passes", true),
            ("Change calc.py until tests/test_calc.py is happy", true),
            ("Fix calc.py. Do not edit test_calc.py", true),
            ("Please fix calc.py without a change to test_calc.py", true),
            ("test_calc.py fails; change calc.py", true),
        ];
        for (prompt, expected) in table {
            assert_eq!(protected(prompt, "python3 -m unittest", "tests/test_calc.py"), expected, "{prompt}");
        }
    }

    #[test]
    fn a_new_file_that_steers_the_runner_is_refused_unless_asked_for() {
        assert!(Protection::new([], "fix calc", "pytest").refuses_new("sub/conftest.py"));
        assert!(!Protection::new([], "Add a conftest.py with a fixture", "pytest").refuses_new("conftest.py"));
        assert!(!Protection::new([], "fix calc", "pytest").refuses_new("tests/test_new.py"));
    }
}
