//! The words around the files and the output. They were chosen by measuring (`tests/model.rs`).
//!
//! For a model of 0.5 billion parameters the file comes last, and of the test only what failed: shown a whole test it
//! repeats the test. It may explain before the code; told not to, it repaired one of six where it had repaired five.

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
    let prompt = run.prompt.trim();
    let end = if prompt.contains('\n') { "\n\n" } else { " " };
    format!("{notes}{prompt}{end}")
}

/// The sections of a prompt.
pub(super) struct Wording<'a> {
    run: &'a Run,
    selection: &'a Selection,
    /// The name the tests want and no offered file has.
    missing: Option<&'a str>,
    fails: bool,
}

impl<'a> Wording<'a> {
    pub(super) fn of(run: &'a Run, selection: &'a Selection) -> Self {
        let missing = selection.missing_name.as_deref();
        Self { run, selection, missing, fails: selection.failure.is_some() }
    }

    /// Whether the file comes before the test.
    pub(super) fn file_first(&self) -> bool {
        self.missing.is_some()
    }

    pub(super) fn file(&self, path: &str, text: &str, parts: bool, alone: bool) -> String {
        let what = if parts { "Parts of the file" } else { "The file" };
        let state = if alone && self.fails && self.missing.is_none() { " has a bug" } else { "" };
        let verb = if parts && !state.is_empty() { ", which has a bug" } else { state };
        format!("{what} {path}{verb}:\n{}\n", fenced(path, text))
    }

    /// The part of the test that failed.
    pub(super) fn test(&self, most: usize) -> Option<String> {
        let test = &self.selection.read.first()?.source;
        let failure = self.selection.failure.as_ref();
        let failing = failure.map(|failure| failure.tests.as_slice()).unwrap_or_default();
        let mut blocks = fragment::blocks(&test.text, failing);
        if let Some(name) = self.missing.filter(|_| blocks.is_empty()) {
            // The tests of what is there show how it is meant to be used; they go when there is no room.
            blocks = fragment::innermost(&test.text);
            if blocks.iter().map(|block| block.len() + 2).sum::<usize>() > most {
                blocks.retain(|block| block.contains(name));
            }
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
        let heading = match self.missing {
            Some(name) => format!("It has no `{name}` yet. The test that needs it"),
            None if self.fails => "This test fails".to_owned(),
            None => "This is the test".to_owned(),
        };
        (!excerpt.is_empty()).then(|| format!("{heading}:\n{}\n", fenced(&test.path, excerpt)))
    }

    /// What the check said. That a name is missing is said in better words.
    pub(super) fn output(&self, most: usize) -> Option<String> {
        let report = self.run.last_check.as_ref()?;
        let late = if report.timed_out { "It did not end in time; there may be an endless loop.\n" } else { "" };
        let output = failure::trim(&self.selection.failure.as_ref()?.text, most);
        let said = self.missing.is_none() && !output.trim().is_empty();
        let output = if said { fenced("", output.trim_end()) } else { String::new() };
        (report.timed_out || said).then(|| format!("{late}{output}\n"))
    }

    /// What earlier iterations changed, when it is short.
    pub(super) fn tried(&self) -> Option<String> {
        let diff = self.run.diff.trim();
        (!diff.is_empty() && !self.run.fresh && diff.len() <= MAX_DIFF)
            .then(|| format!("This change was made already and is not enough:\n{}\n", fenced("x.diff", diff)))
    }

    /// What to answer.
    pub(super) fn instruction(&self, paths: &[&str], whole: bool) -> String {
        if !whole {
            let example = paths.first().copied().unwrap_or("path/to/file");
            let what = if self.fails { "Fix the bug" } else { "Change the code" };
            return format!(
                "{what}. Answer with one or more blocks of this form. The SEARCH part is copied exactly from the file, \
                 and is in it only once:\n\n{example}\n<<<<<<< SEARCH\nold lines\n=======\nnew lines\n>>>>>>> REPLACE\n"
            );
        }
        let with = match (self.missing, self.fails) {
            (Some(name), _) => format!("with `{name}` added"),
            (None, true) => "with the bug fixed".to_owned(),
            (None, false) => "with this done".to_owned(),
        };
        match (paths, &self.selection.missing[..]) {
            ([], []) => {
                "Write the path of the file on one line, and below it the whole file in one code block.\n".to_owned()
            }
            ([], [new]) => format!("Write the file {new}, in one code block.\n"),
            ([only], []) => format!("Write the whole file {only} {with}, in one code block.\n"),
            (paths, new) => {
                let all: Vec<&str> = paths.iter().copied().chain(new.iter().map(String::as_str)).collect();
                let fault = if self.fails && self.missing.is_none() {
                    format!("The bug is in {}. ", all.join(" or "))
                } else {
                    String::new()
                };
                format!(
                    "{fault}Write the path of the file that has to change on one line, and below it the whole file {with}, \
                     in one code block.\n"
                )
            }
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
