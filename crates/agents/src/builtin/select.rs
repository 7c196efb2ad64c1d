//! Which files matter for a task: which the model may edit, which it should read, which are missing.
//!
//! Every file gets points for each sign that it is meant; the signs and their points are the constants below.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::LazyLock;

use regex::Regex;

use super::failure::{self, Failure};
use super::listing::{self, Source};
use crate::backend::{BackendError, Run};

/// The task gives the path or the file name.
const NAMED_IN_TASK: u32 = 100;
/// The check's output gives it with a line: the frames of a traceback.
const IN_TRACE: u32 = 60;
/// A test that failed imports it.
const IMPORTED_BY_TEST: u32 = 50;
/// Such a file imports it.
const IMPORTED_BY_THAT: u32 = 30;
/// It is called like the test: `calc.py` for `test_calc.py`.
const NAMED_LIKE_TEST: u32 = 40;
/// It defines a name that the task or the output gives.
const DEFINES_NAME: u32 = 15;
/// Most points for names.
const DEFINES_NAME_MOST: u32 = 45;
/// An earlier iteration changed it.
const CHANGED_BEFORE: u32 = 10;
/// It is code, in a repository with few files.
const SMALL_REPOSITORY: u32 = 1;
/// So many files of code are few.
const FEW: usize = 8;

const CODE: [&str; 34] = [
    "py", "rs", "go", "js", "ts", "jsx", "tsx", "mjs", "cjs", "c", "h", "cc", "cpp", "hpp", "java", "kt", "rb", "php",
    "cs", "swift", "scala", "sh", "bash", "lua", "pl", "ex", "exs", "hs", "ml", "nix", "zig", "dart", "sql", "vue",
];

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is a constant")
}

static DEFINITION: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?m)^[ \t]*(?:pub(?:\([^)\n]*\))?[ \t]+|export[ \t]+|default[ \t]+|async[ \t]+|static[ \t]+|public[ \t]+|private[ \t]+)*(?:def|class|fn|func|function|struct|enum|trait|interface|type|const|let|var|module|mod)[ \t]+(?:\([^)\n]*\)[ \t]*)?([A-Za-z_]\w*)",
    )
});
static IMPORT: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r#"(?m)^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import\b|import[ \t]+([\w.]+)|(?:pub[ \t]+)?(?:use|mod)[ \t]+([\w:]+)|(?:import|export)\b[^'"\n]*['"]([^'"\n]+)['"])|require\(['"]([^'"\n]+)['"]\)"#,
    )
});
static WORD: LazyLock<Regex> = LazyLock::new(|| pattern(r"[A-Za-z_]\w{2,}"));
/// The task wants tests written.
static WANTS_TESTS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i)\b(?:add|write|create|extend|improve)\b[^.\n]{0,40}\btests?\b(?:[^.\n]{0,20}\bpass\b)?")
});

/// A file that matters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) source: Source,
    pub(super) score: u32,
    /// Lines of it that the output names, from 1.
    pub(super) lines: Vec<usize>,
    /// Whether the task itself names it.
    pub(super) named: bool,
}

/// What matters for a task.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Files that may be edited, best first.
    pub(super) edit: Vec<Candidate>,
    /// Tests to read, best first.
    pub(super) read: Vec<Candidate>,
    /// Files that do not exist but are asked for.
    pub(super) missing: Vec<String>,
    /// All paths of the worktree.
    pub(super) paths: HashSet<String>,
    /// Whether tests may be edited too.
    pub(super) tests_too: bool,
    pub(super) failure: Option<Failure>,
    /// A name the tests want and no candidate has.
    pub(super) missing_name: Option<String>,
    /// Names in the task and the output, for excerpts.
    pub(super) names: BTreeSet<String>,
}

/// Looks at the worktree of `run`.
pub(super) async fn select(run: &Run) -> Result<Selection, BackendError> {
    let paths = listing::paths(&run.worktree).await?;
    let run = run.clone();
    let worktree = run.worktree.clone();
    let selected = tokio::task::spawn_blocking(move || {
        let sources = listing::read(&run.worktree, &paths);
        choose(&run, paths, &sources)
    });
    let selection = selected.await.map_err(|panic| BackendError::Setup(format!("reading files failed: {panic}")))?;
    if selection.edit.is_empty() && selection.missing.is_empty() && selection.read.is_empty() {
        return Err(BackendError::NothingToEdit { worktree });
    }
    Ok(selection)
}

fn choose(run: &Run, paths: Vec<String>, sources: &[Source]) -> Selection {
    let failure = run.last_check.as_ref().map(|check| Failure::read(&check.output, &run.worktree));
    let in_task = failure::places(&run.prompt);
    let in_check = failure::places(&run.check);
    let places = failure.as_ref().map(|failure| failure.places.as_slice()).unwrap_or_default();
    let tests_too = WANTS_TESTS.find(&run.prompt).is_some_and(|found| !found.as_str().ends_with("pass"));

    let mut names: BTreeSet<String> = quoted_names(&run.prompt);
    if let Some(failure) = &failure {
        names.extend(failure.missing_names.iter().chain(&failure.functions).chain(&failure.tests).cloned());
    }

    let tests: Vec<&Source> = sources.iter().filter(|source| is_test(&source.path)).collect();
    let mut read: Vec<Candidate> = tests
        .iter()
        .map(|source| {
            let failing = failure.iter().flat_map(|failure| &failure.tests);
            let defines = failing.filter(|test| source.text.contains(test.as_str())).count();
            let score = named(&source.path, &in_task) * NAMED_IN_TASK
                + named(&source.path, places) * IN_TRACE
                + named(&source.path, &in_check) * IMPORTED_BY_TEST
                + u32::from(module_named(&source.path, &run.check)) * IMPORTED_BY_TEST
                + u32::from(defines > 0) * DEFINES_NAME
                + u32::from(tests.len() == 1);
            Candidate { source: (*source).clone(), score, lines: lines(&source.path, places), named: false }
        })
        .filter(|candidate| candidate.score > 0)
        .collect();
    sort(&mut read);
    if read.is_empty() && tests.len() <= FEW {
        read = tests
            .iter()
            .map(|&source| Candidate { source: source.clone(), score: 0, lines: Vec::new(), named: false })
            .collect();
    }

    let imports: Vec<String> = read.iter().take(FEW).flat_map(|test| imports(&test.source)).collect();
    for test in read.iter().take(FEW) {
        names.extend(used_names(&test.source, failure.as_ref()));
    }
    let direct = sources.iter().filter(|source| imports.iter().any(|import| imported(&source.path, import)));
    let indirect: Vec<String> = direct.filter(|source| !is_test(&source.path)).flat_map(self::imports).collect();
    let code = sources.iter().filter(|source| is_code(&source.path)).count();
    let mut edit: Vec<Candidate> = sources
        .iter()
        .filter(|source| {
            let test = is_test(&source.path);
            let blank = source.text.trim().is_empty() && named(&source.path, &in_task) == 0;
            !blank && !protected(run, &source.path) && (!test || tests_too || asks_to_edit(&run.prompt, &source.path))
        })
        .filter_map(|source| {
            let defined: BTreeSet<&str> = definitions(&source.text).collect();
            let defines = names.iter().filter(|name| defined.contains(name.as_str())).count();
            let defines = u32::try_from(defines).unwrap_or(u32::MAX).saturating_mul(DEFINES_NAME);
            let traced = lines(&source.path, places);
            let is_code = is_code(&source.path);
            let score = named(&source.path, &in_task) * NAMED_IN_TASK
                + u32::from(!traced.is_empty()) * IN_TRACE
                + u32::from(imports.iter().any(|import| imported(&source.path, import))) * IMPORTED_BY_TEST
                + u32::from(indirect.iter().any(|import| imported(&source.path, import))) * IMPORTED_BY_THAT
                + u32::from(read.iter().any(|test| like_test(&source.path, &test.source.path))) * NAMED_LIKE_TEST
                + defines.min(DEFINES_NAME_MOST)
                + u32::from(run.diff.contains(&format!("+++ b/{}\n", source.path))) * CHANGED_BEFORE
                + u32::from(is_code && code <= 2 * FEW) * SMALL_REPOSITORY;
            // What is no code is meant only when somebody names it.
            let meant = is_code || score >= IN_TRACE;
            let named = named(&source.path, &in_task) > 0;
            (score > 0 && meant).then(|| Candidate { source: source.clone(), score, lines: traced, named })
        })
        .collect();
    sort(&mut edit);
    if edit.is_empty() {
        edit = by_words(run, sources);
    }
    let known: HashSet<String> = paths.into_iter().collect();
    let missing = missing(run, &in_task, failure.as_ref(), &imports, &read, &known);
    let has = |name: &str| edit.iter().any(|file| definitions(&file.source.text).any(|defined| defined == name));
    let absent = failure.iter().flat_map(|failure| &failure.missing_names).find(|name| !has(name));
    let missing_name = absent.cloned();
    Selection { edit, read, missing, paths: known, tests_too, failure, missing_name, names }
}

fn sort(candidates: &mut [Candidate]) {
    candidates.sort_by(|a, b| b.score.cmp(&a.score).then_with(|| a.source.path.cmp(&b.source.path)));
}

/// In a large repository without any sign: the files that share the most words with the task.
fn by_words(run: &Run, sources: &[Source]) -> Vec<Candidate> {
    let words: HashSet<&str> = WORD.find_iter(&run.prompt).map(|word| word.as_str()).collect();
    let mut found: Vec<Candidate> = sources
        .iter()
        .filter(|source| is_code(&source.path) && !is_test(&source.path) && !protected(run, &source.path))
        .map(|source| {
            let inside: HashSet<&str> = WORD.find_iter(&source.text).map(|word| word.as_str()).collect();
            let shared = words.intersection(&inside).count();
            Candidate {
                source: source.clone(),
                score: u32::try_from(shared).unwrap_or(0),
                lines: Vec::new(),
                named: false,
            }
        })
        .collect();
    sort(&mut found);
    found.truncate(FEW);
    found
}

/// Whether the path is one of a test, by the habits of the usual languages.
pub(super) fn is_test(path: &str) -> bool {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = name.split('.').next().unwrap_or(name);
    parent.split('/').any(|part| matches!(part, "test" | "tests" | "__tests__" | "spec" | "specs" | "testdata"))
        || name.starts_with("test_")
        || stem.ends_with("_test")
        || stem.ends_with("_tests")
        || stem.ends_with("_spec")
        || name.contains(".test.")
        || name.contains(".spec.")
        || stem.ends_with("Test")
        || stem.ends_with("Tests")
        || matches!(name, "conftest.py" | "tests.py" | "test.py" | "tests.rs")
}

fn is_code(path: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, ending)| CODE.contains(&ending))
}

/// Whether `path` is one of the protected, or below one.
pub(super) fn protected(run: &Run, path: &str) -> bool {
    run.protected.iter().any(|protected| Path::new(path).starts_with(protected))
}

/// 1 when one of the places is `path`: the path itself, its end, or more than it.
fn named(path: &str, places: &[(String, Option<usize>)]) -> u32 {
    u32::from(places.iter().any(|(place, _)| same(path, place)))
}

fn same(path: &str, place: &str) -> bool {
    let place = place.trim_start_matches("./");
    path == place || path.ends_with(&format!("/{place}")) || place.ends_with(&format!("/{path}"))
}

fn lines(path: &str, places: &[(String, Option<usize>)]) -> Vec<usize> {
    let mut lines: Vec<usize> =
        places.iter().filter(|(place, _)| same(path, place)).filter_map(|&(_, line)| line).collect();
    lines.sort_unstable();
    lines.dedup();
    lines
}

fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split('.').next().unwrap_or(name)
}

/// Whether a command names the file as a module: `python3 -m unittest tests.test_calc`.
fn module_named(path: &str, command: &str) -> bool {
    let stem = stem(path);
    command.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).any(|word| word == stem)
}

fn like_test(path: &str, test: &str) -> bool {
    let test = stem(test).to_ascii_lowercase();
    let test = test.trim_start_matches("test_").trim_end_matches("_tests").trim_end_matches("_test");
    let test = test.trim_end_matches("_spec").trim_end_matches("tests").trim_end_matches("test");
    !test.is_empty() && stem(path).to_ascii_lowercase() == test
}

fn imports(source: &Source) -> Vec<String> {
    IMPORT
        .captures_iter(&source.text)
        .filter_map(|found| (1..6).find_map(|group| found.get(group)).map(|name| name.as_str().to_owned()))
        .collect()
}

/// Whether an import by this name can be the file: its last parts are those of the path.
fn imported(path: &str, import: &str) -> bool {
    let without_ending = path.rsplit_once('.').map_or(path, |(start, _)| start);
    let name = |part: &&str| {
        !matches!(*part, "" | "crate" | "super" | "self" | "src" | "lib" | "__init__" | "mod" | "index" | "main")
    };
    let parts: Vec<&str> = import.split(['.', '/', ':']).filter(name).collect();
    let path: Vec<&str> = without_ending.split('/').filter(name).collect();
    // `from shop.cart import total` and `use shop::cart::total` both mean `shop/cart`.
    let prefix = |parts: &[&str]| !parts.is_empty() && path.ends_with(parts);
    prefix(&parts) || parts.len() > 1 && prefix(&parts[..parts.len() - 1])
}

pub(super) fn definitions(text: &str) -> impl Iterator<Item = &str> {
    DEFINITION.captures_iter(text).filter_map(|found| found.get(1)).map(|name| name.as_str())
}

/// Names in backticks or quotes, and words that only code has in them.
fn quoted_names(text: &str) -> BTreeSet<String> {
    WORD.find_iter(text)
        .filter(|word| {
            let before = text[..word.start()].chars().next_back();
            let after = text[word.end()..].chars().next();
            let quoted = |c: Option<char>| matches!(c, Some('`' | '\'' | '"'));
            quoted(before) && matches!(after, Some('`' | '\'' | '"' | '('))
                || word.as_str().contains('_')
                || after == Some('(')
        })
        .map(|word| word.as_str().to_owned())
        .collect()
}

/// Names that the failing tests of a file use, or all its tests when none is named.
fn used_names(test: &Source, failure: Option<&Failure>) -> BTreeSet<String> {
    let failing = failure.map(|failure| failure.tests.as_slice()).unwrap_or_default();
    let excerpt = super::fragment::blocks(&test.text, failing);
    let text = if excerpt.is_empty() { test.text.clone() } else { excerpt.join("\n") };
    WORD.find_iter(&text).map(|word| word.as_str().to_owned()).collect()
}

/// Whether the task asks for `path` itself to be edited, not only for it to pass.
fn asks_to_edit(prompt: &str, path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let Some(at) = prompt.find(name) else { return false };
    let sentence = prompt[..at].rsplit(['.', '\n', ';', ',']).next().unwrap_or_default().to_ascii_lowercase();
    let rest = prompt[at + name.len()..].split(['.', '\n', ';']).next().unwrap_or_default().to_ascii_lowercase();
    let asks = ["edit", "change", "update", "write", "extend", "rewrite", "modify"];
    let excuses = ["so that", "until", "make ", "because of", "according to", "do not", "don't", "never"];
    let words = |text: &str, list: &[&str]| list.iter().any(|word| text.contains(word));
    words(&sentence, &asks) && !words(&sentence, &excuses) && !rest.contains("pass")
}

/// Files the task or the check wants and that are not there.
fn missing(
    run: &Run,
    in_task: &[(String, Option<usize>)],
    failure: Option<&Failure>,
    imports: &[String],
    tests: &[Candidate],
    known: &HashSet<String>,
) -> Vec<String> {
    let mut wanted: Vec<String> = in_task
        .iter()
        .map(|(path, _)| path.trim_start_matches("./").to_owned())
        .filter(|path| is_code(path) || path.contains('/'))
        .filter(|path| !path.starts_with('/') && !path.contains("..") && !known.iter().any(|known| same(known, path)))
        .collect();
    let python = tests.iter().any(|test| test.source.path.ends_with(".py"));
    for module in failure.iter().flat_map(|failure| &failure.missing_modules) {
        // Only what the tests themselves import: a missing library is not the task's to write.
        if python && imports.contains(module) {
            let path = format!("{}.py", module.replace('.', "/"));
            if !known.contains(&path) {
                wanted.push(path);
            }
        }
    }
    wanted.retain(|path| !protected(run, path));
    wanted.sort();
    wanted.dedup();
    wanted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::CheckReport;
    use uuid::Uuid;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    fn chosen(prompt: &str, check: &str, output: &str, sources: &[Source]) -> Selection {
        let mut run = Run::new(Uuid::nil(), prompt, "/wt", check);
        run.last_check = Some(CheckReport { exit: 1, output: output.to_owned(), timed_out: false });
        choose(&run, sources.iter().map(|source| source.path.clone()).collect(), sources)
    }

    fn edits(selection: &Selection) -> Vec<&str> {
        selection.edit.iter().map(|candidate| candidate.source.path.as_str()).collect()
    }

    #[test]
    fn the_module_a_failing_test_imports_comes_first_and_the_test_is_read_only() {
        let sources = [
            source("README.md", "a shop"),
            source("shop/cart.py", "def total(items):\n    return 0\n"),
            source("shop/tax.py", "def tax(x):\n    return x\n"),
            source(
                "tests/test_cart.py",
                "from shop.cart import total\n\ndef test_total():\n    assert total([1]) == 1\n",
            ),
            source("tests/test_tax.py", "from shop.tax import tax\n"),
        ];
        let output = "FAILED tests/test_cart.py::test_total - assert 0 == 1\n";
        let selection = chosen("Make the tests pass.", "pytest", output, &sources);
        assert_eq!(edits(&selection)[0], "shop/cart.py");
        assert!(!edits(&selection).iter().any(|path| path.contains("test") || path.contains("README")));
        assert_eq!(selection.read[0].source.path, "tests/test_cart.py");
    }

    #[test]
    fn a_test_is_edited_only_when_the_task_asks_for_that() {
        let test = "test_calc.py";
        assert!(asks_to_edit("Update test_calc.py for the new name", test));
        assert!(!asks_to_edit("Fix calc.py so that test_calc.py passes", test));
        assert!(!asks_to_edit("Make test_calc.py pass", test));
        assert!(!asks_to_edit("Change calc.py until test_calc.py is green", test));
        assert!(!asks_to_edit("Do not change test_calc.py", test));
    }

    #[test]
    fn files_in_a_traceback_win_over_files_that_are_only_there() {
        let sources: Vec<Source> = (0..30)
            .map(|n| source(&format!("src/m{n}.rs"), "pub fn other() {}\n"))
            .chain([source("src/deep/parser.rs", "pub fn parse() {}\n")])
            .collect();
        let selection = chosen("fix it", "cargo test", "panicked at src/deep/parser.rs:1:5:\nboom\n", &sources);
        assert_eq!(edits(&selection), ["src/deep/parser.rs"]);
        assert_eq!(selection.edit[0].lines, [1]);
    }

    #[test]
    fn a_module_the_tests_import_and_that_is_not_there_is_asked_for() {
        let sources = [source("test_geo.py", "from shapes import area\nimport numpy\n")];
        let output = "ModuleNotFoundError: No module named 'shapes'\nModuleNotFoundError: No module named 'requests'\n";
        let selection = chosen("Make the tests pass", "python3 -m unittest", output, &sources);
        assert_eq!(selection.missing, ["shapes.py"]);
        assert_eq!(selection.read[0].source.path, "test_geo.py");
    }

    #[test]
    fn protected_files_are_never_offered() {
        let mut run = Run::new(Uuid::nil(), "edit calc.py", "/wt", "true");
        run.protected = vec!["calc.py".into(), "lib".into()];
        let sources = [source("calc.py", "x = 1\n"), source("lib/a.py", "y = 1\n"), source("ok.py", "z = 1\n")];
        let selection = choose(&run, Vec::new(), &sources);
        assert_eq!(edits(&selection), ["ok.py"]);
    }

    #[test]
    fn imports_are_matched_in_the_languages_habits() {
        assert!(imported("shop/cart.py", "shop.cart"));
        assert!(imported("shop/cart.py", "cart"));
        assert!(imported("src/parser.rs", "crate::parser::parse"));
        assert!(imported("src/sum.js", "../src/sum"));
        assert!(imported("shop/__init__.py", "shop"));
        assert!(!imported("shop/cart.py", "art"));
        assert!(!imported("shop/cart.py", "unittest"));
    }

    #[test]
    fn test_files_are_known_by_their_names() {
        for path in ["test_a.py", "a_test.go", "tests/x.rs", "src/a.test.ts", "src/__tests__/a.js", "spec/a_spec.rb"] {
            assert!(is_test(path), "{path}");
        }
        for path in ["calc.py", "src/latest.rs", "contest.py", "src/attest.go"] {
            assert!(!is_test(path), "{path}");
        }
    }
}
