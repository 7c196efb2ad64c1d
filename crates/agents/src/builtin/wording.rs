//! The words around the files and the output. They were chosen by measuring (`tests/model.rs`).
//!
//! For a model of 0.5 billion parameters the file comes first and of the test only what failed: shown a whole test
//! right before the answer, it repeats the test. It may explain before the code; told not to, it repairs less.

use super::failure;
use super::fragment;
use super::select::Selection;
use crate::backend::Run;

/// The role of the model.
pub(super) const SYSTEM: &str = "You are an expert programmer.";

/// Longest diff of earlier tries that is shown, in bytes, and longest notes.
const MAX_DIFF: usize = 1500;
const MAX_NOTES: usize = 1000;

/// The task and what earlier iterations noted.
pub(super) fn task(run: &Run) -> String {
    let notes = failure::trim(run.notes.trim(), MAX_NOTES);
    let notes = if notes.is_empty() { notes } else { format!("Notes from earlier tries:\n{notes}\n\n") };
    format!("{notes}{}\n\n", run.prompt.trim())
}

/// The part of the test that failed.
pub(super) fn test(selection: &Selection, most: usize) -> Option<String> {
    let test = &selection.read.first()?.source;
    let failure = selection.failure.as_ref();
    let failing = failure.map(|failure| failure.tests.as_slice()).unwrap_or_default();
    let mut blocks = fragment::blocks(&test.text, failing);
    if let Some(name) = missing_name(selection).filter(|_| blocks.is_empty()) {
        blocks = fragment::innermost(&test.text).into_iter().filter(|block| block.contains(name)).collect();
    }
    let mut excerpt = String::new();
    for block in blocks {
        if excerpt.len() + block.len() + 2 <= most {
            excerpt.push_str(&block);
            excerpt.push_str("\n\n");
        }
    }
    if excerpt.is_empty() && test.text.len() <= most {
        excerpt.push_str(&test.text);
    }
    let excerpt = excerpt.trim_end();
    let heading = if failure.is_some() { "This test fails" } else { "This is the test" };
    (!excerpt.is_empty()).then(|| format!("{heading}, in {}:\n{}\n", test.path, fenced(&test.path, excerpt)))
}

/// What the check said.
pub(super) fn check(run: &Run, selection: &Selection, most: usize) -> Option<String> {
    let report = run.last_check.as_ref()?;
    let late = if report.timed_out { " did not end in time; there may be an endless loop. It said" } else { " says" };
    let output = failure::trim(&selection.failure.as_ref()?.text, most);
    (report.timed_out || !output.trim().is_empty())
        .then(|| format!("`{}`{late}:\n{}\n", run.check, fenced("", output.trim_end())))
}

/// What earlier iterations changed, when it is short.
pub(super) fn tried(run: &Run) -> Option<String> {
    let diff = run.diff.trim();
    (!diff.is_empty() && !run.fresh && diff.len() <= MAX_DIFF)
        .then(|| format!("This change was made already and is not enough:\n{}\n", fenced("x.diff", diff)))
}

/// What to answer.
pub(super) fn instruction(selection: &Selection, paths: &[&str], whole: bool) -> String {
    let fails = selection.failure.is_some();
    if !whole {
        let example = paths.first().copied().unwrap_or("path/to/file");
        let what = if fails { "Fix the bug" } else { "Change the code" };
        return format!(
            "{what}. Answer with one or more blocks of this form. The SEARCH part is copied exactly from the file, and is \
             in it only once:\n\n{example}\n<<<<<<< SEARCH\nold lines\n=======\nnew lines\n>>>>>>> REPLACE\n"
        );
    }
    let missing = missing_name(selection);
    match (paths, &selection.missing[..]) {
        ([], []) => {
            "Write the path of the file on one line, and below it the whole file in one code block.\n".to_owned()
        }
        ([], [new]) => format!("Write the file {new}, in one code block.\n"),
        ([only], []) => match (missing, fails) {
            (Some(name), _) => {
                format!(
                    "{only} has no `{name}` yet. Write the whole file {only} with `{name}` added, in one code block.\n"
                )
            }
            (None, true) => {
                format!("{only} has a bug. Write the whole file {only} with the bug fixed, in one code block.\n")
            }
            (None, false) => format!("Write the whole file {only} with this done, in one code block.\n"),
        },
        (paths, new) => {
            let all: Vec<&str> = paths.iter().copied().chain(new.iter().map(String::as_str)).collect();
            let what = match (missing, fails) {
                (Some(name), _) => format!("There is no `{name}` yet. It belongs into"),
                (None, true) => "The bug is in".to_owned(),
                (None, false) => "Change".to_owned(),
            };
            format!(
                "{what} {}. Write the path of the file you change on one line, and below it the whole new file in one code \
                 block.\n",
                all.join(" or ")
            )
        }
    }
}

/// What is added for the second try.
pub(super) fn reminder(whole: bool, unusable: &str) -> String {
    let form = if whole {
        "Write the whole corrected file in one code block."
    } else {
        "Answer with search/replace blocks, the SEARCH part copied exactly from the file."
    };
    format!("\nYour last answer could not be used: {unusable}. {form}\n")
}

/// The name the tests want and no shown file has.
fn missing_name(selection: &Selection) -> Option<&str> {
    let names = selection.failure.as_ref()?.missing_names.iter();
    let mut absent = names.filter(|name| !selection.edit.iter().any(|candidate| defines(&candidate.source.text, name)));
    absent.next().map(String::as_str)
}

fn defines(text: &str, name: &str) -> bool {
    super::select::definitions(text).any(|defined| defined == name)
}

fn language(path: &str) -> &str {
    match path.rsplit_once('.').map_or("", |(_, ending)| ending) {
        "py" => "python",
        "rs" => "rust",
        "js" | "mjs" | "cjs" => "javascript",
        "ts" => "typescript",
        "rb" => "ruby",
        "sh" => "bash",
        "kt" => "kotlin",
        "cs" => "csharp",
        ending => ending,
    }
}

/// `text` between fences longer than any in it.
pub(super) fn fenced(path: &str, text: &str) -> String {
    let marks = |line: &str| line.trim_start().chars().take_while(|&c| c == '`').count();
    let fence = "`".repeat(3.max(text.lines().map(marks).max().unwrap_or(0) + 1));
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{fence}{}\n{text}{end}{fence}\n", language(path))
}
