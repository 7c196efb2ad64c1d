//! The prompt: the task, the failing output, the test, and the files to edit, within the bytes there are.
//!
//! Nothing is cut silently. A file that cannot be shown or answered whole is shown in parts that say so, with
//! search/replace blocks asked for; when not even that fits, the error gives the numbers.

use std::collections::BTreeSet;

use super::failure;
use super::fragment;
use super::listing::Source;
use super::resolve::Offer;
use super::select::{Candidate, Selection};
use crate::backend::{BackendError, Run};

/// The role of the model.
pub(super) const SYSTEM: &str =
    "You are an expert programmer. You fix code so that its tests pass. You answer with code only.";

/// Bytes a token of code has at least, on average: Qwen's and Llama's tokenizers give 3.2 to 4.
const BYTES_PER_TOKEN: usize = 3;
/// Tokens of the chat template around the messages.
const TEMPLATE_TOKENS: usize = 64;
/// Tokens an answer has beside the file.
const ANSWER_SLACK: usize = 128;
/// Least tokens of an answer by search/replace blocks.
const BLOCKS_TOKENS: usize = 512;
/// Part of the prompt the failing output may take, and the test.
const OUTPUT_PART: usize = 4;
const TEST_PART: usize = 3;
/// Most files offered; a small model loses its way among more.
const MAX_OFFERED: usize = 3;
/// Lines shown around a line that is meant.
const AROUND: usize = 20;
/// Longest diff of earlier tries that is shown, in bytes, and notes.
const MAX_DIFF: usize = 1500;
const MAX_NOTES: usize = 1000;

/// What there is room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Budget {
    /// Bytes.
    pub(super) max_prompt: usize,
    /// Tokens of prompt and answer together.
    pub(super) window: u32,
    /// Tokens.
    pub(super) max_answer: u32,
    /// Whether whole files are asked for.
    pub(super) whole: bool,
}

/// A prompt, and what the answer may change.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) text: String,
    pub(super) offer: Offer,
    /// Tokens.
    pub(super) max_answer: u32,
    whole: bool,
}

/// How a file is shown.
enum View<'a> {
    Whole(&'a Source),
    Parts(&'a Source, String),
}

impl Prompt {
    pub(super) fn build(run: &Run, selection: &Selection, budget: &Budget) -> Result<Self, BackendError> {
        let head = head(run);
        let fixed = SYSTEM.len() + head.len() + instruction_room();
        let window = (budget.window as usize).saturating_sub(TEMPLATE_TOKENS);
        // The window is shared: every byte of a file is there once to read and, when it is asked for whole, once more to write.
        let room = |answer: usize| {
            budget.max_prompt.min(window.saturating_sub(answer) * BYTES_PER_TOKEN).saturating_sub(fixed)
        };
        let max_answer = budget.max_answer as usize;
        if room(BLOCKS_TOKENS.min(max_answer)) == 0 {
            let available =
                budget.max_prompt.min(window.saturating_sub(BLOCKS_TOKENS.min(max_answer)) * BYTES_PER_TOKEN);
            return Err(BackendError::DoesNotFit { needed: fixed, available });
        }
        let plan = if budget.whole { whole_files(selection, &room, max_answer) } else { None };
        let (views, answer, whole) = match plan {
            Some((views, answer)) => (views, answer, true),
            None => {
                let answer = BLOCKS_TOKENS.max(window / 4).min(max_answer);
                let (views, whole) = shown_files(selection, room(answer), budget.whole)?;
                (views, answer, whole)
            }
        };
        let shown: usize = views.iter().map(|view| view.text().len()).sum();
        let left = room(answer).saturating_sub(shown);
        let text = assemble(run, selection, &head, &views, left, whole);
        let offer = Offer {
            edit: views.iter().map(|view| view.source().clone()).collect(),
            new: selection.missing.clone(),
            paths: selection.paths.clone(),
            tests_too: selection.tests_too,
            tests: selection.read.iter().map(|candidate| candidate.source.clone()).collect(),
        };
        // What the prompt does not use of the window is the answer's.
        let used = (text.len() + SYSTEM.len()) / BYTES_PER_TOKEN;
        let answer = answer.max(window.saturating_sub(used).min(max_answer));
        Ok(Self { text, offer, max_answer: u32::try_from(answer).unwrap_or(u32::MAX), whole })
    }

    /// What is added for the second try.
    pub(super) fn reminder(&self, unusable: &str) -> String {
        let form = if self.whole {
            "Answer with the path on one line and then the whole corrected file in one code block."
        } else {
            "Answer with search/replace blocks only, the search part copied exactly from the file."
        };
        format!(
            "\n\nYour last answer could not be used: {unusable}. {form} Do not explain. The tests still fail, so the code has to change.\n"
        )
    }
}

impl View<'_> {
    fn source(&self) -> &Source {
        match self {
            Self::Whole(source) | Self::Parts(source, _) => source,
        }
    }

    fn text(&self) -> &str {
        match self {
            Self::Whole(source) => &source.text,
            Self::Parts(_, parts) => parts,
        }
    }
}

fn instruction_room() -> usize {
    /// The instruction with a path in it, and the headings.
    const BYTES: usize = 700;
    BYTES
}

fn tokens(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// The best files that can be shown and answered whole, with the tokens of the answer; `None` when not even the best.
fn whole_files<'a>(
    selection: &'a Selection,
    room: &dyn Fn(usize) -> usize,
    max_answer: usize,
) -> Option<(Vec<View<'a>>, usize)> {
    let mut views: Vec<View<'a>> = Vec::new();
    let mut bytes = 0;
    let best = selection.edit.first().map_or(0, |candidate| candidate.score);
    for candidate in offered(selection) {
        let size = bytes + candidate.source.text.len();
        let answer = tokens(size) + ANSWER_SLACK;
        // Files beside the first are shown only where half of the room stays for the output and the test.
        let most = if views.is_empty() { room(answer) } else { room(answer) / 2 };
        if answer <= max_answer && size <= most && (views.is_empty() || 2 * candidate.score >= best) {
            bytes = size;
            views.push(View::Whole(&candidate.source));
        } else if views.is_empty() {
            return None;
        }
    }
    let answer = (tokens(bytes) + ANSWER_SLACK).min(max_answer).max(BLOCKS_TOKENS.min(max_answer));
    Some((views, answer))
}

fn offered(selection: &Selection) -> impl Iterator<Item = &Candidate> {
    selection.edit.iter().take(MAX_OFFERED)
}

/// The best files whole, or in parts where they are too long to be shown. The flag: whole files can be asked for
/// because there is none to edit.
fn shown_files(selection: &Selection, room: usize, whole: bool) -> Result<(Vec<View<'_>>, bool), BackendError> {
    let mut views: Vec<View<'_>> = Vec::new();
    let mut left = room;
    for candidate in offered(selection) {
        let length = candidate.source.text.len();
        // Half of the room is for the output and the test, unless the file is all that can be shown.
        let parts = if length <= left / 2 { None } else { parts(candidate, &selection.names, left / 2) };
        if let Some(parts) = parts {
            left = left.saturating_sub(parts.len());
            views.push(View::Parts(&candidate.source, parts));
        } else if length <= left / 2 || views.is_empty() && length <= left {
            left -= length;
            views.push(View::Whole(&candidate.source));
        } else if views.is_empty() {
            return Err(BackendError::DoesNotFit { needed: length, available: room });
        }
    }
    let none = views.is_empty();
    Ok((views, none && whole))
}

/// The passages of a long file that are meant: around lines the output names, and definitions of names in question.
fn parts(candidate: &Candidate, names: &BTreeSet<String>, most: usize) -> Option<String> {
    let lines: Vec<&str> = candidate.source.text.lines().collect();
    let named = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| super::select::definitions(line).next().is_some_and(|name| names.contains(name)));
    let wanted = candidate.lines.iter().map(|line| line.saturating_sub(1)).chain(named.map(|(at, _)| at));
    let mut kept: BTreeSet<usize> = BTreeSet::new();
    let mut used = 0;
    for at in wanted.filter(|&at| at < lines.len()) {
        let passage: Vec<usize> =
            (at.saturating_sub(AROUND)..(at + AROUND).min(lines.len())).filter(|line| !kept.contains(line)).collect();
        // Each passage has a heading.
        let cost = 60 + passage.iter().map(|&line| lines[line].len() + 1).sum::<usize>();
        if used + cost > most {
            continue;
        }
        used += cost;
        kept.extend(passage);
    }
    if kept.is_empty() {
        return None;
    }
    let mut shown = String::new();
    let mut last: Option<usize> = None;
    for &at in &kept {
        if last.is_none_or(|last| at > last + 1) {
            shown.push_str(&format!("[lines from {} of {}]\n", at + 1, lines.len()));
        }
        shown.push_str(lines[at]);
        shown.push('\n');
        last = Some(at);
    }
    Some(shown)
}

fn head(run: &Run) -> String {
    let notes = failure::trim(run.notes.trim(), MAX_NOTES);
    let notes = if notes.is_empty() { String::new() } else { format!("\n\nNotes from earlier tries:\n{notes}") };
    format!("{}{notes}\n", run.prompt.trim())
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

/// A fence longer than any in the text.
fn fenced(path: &str, text: &str) -> String {
    let longest =
        text.lines().map(|line| line.trim_start().chars().take_while(|&c| c == '`').count()).max().unwrap_or(0);
    let fence = "`".repeat(3.max(longest + 1));
    let end = if text.ends_with('\n') { "" } else { "\n" };
    format!("{fence}{}\n{text}{end}{fence}\n", language(path))
}

fn assemble(run: &Run, selection: &Selection, head: &str, views: &[View<'_>], left: usize, whole: bool) -> String {
    let mut text = head.to_owned();
    let mut left = left;
    let add = |text: &mut String, section: String, left: &mut usize| {
        if section.len() <= *left {
            *left -= section.len();
            text.push_str(&section);
        }
    };
    let output = selection.failure.as_ref().map(|failure| failure::trim(&failure.text, left / OUTPUT_PART + 400));
    let shown_test = test_excerpt(selection, left / TEST_PART + 200);
    if let Some((path, excerpt)) = shown_test {
        add(
            &mut text,
            format!("\nThe test, {path}. It is right and stays as it is:\n{}", fenced(&path, &excerpt)),
            &mut left,
        );
    }
    let timed_out = run.last_check.as_ref().is_some_and(|check| check.timed_out);
    if timed_out {
        add(&mut text, format!("\n`{}` did not end in time: there may be an endless loop.\n", run.check), &mut left);
    }
    if let Some(output) = output.filter(|output| !output.trim().is_empty()) {
        add(&mut text, format!("\n`{}` fails:\n{}", run.check, fenced("", &output)), &mut left);
    }
    if !run.diff.trim().is_empty() && !run.fresh {
        let diff = run.diff.trim();
        let section = format!("\nThis was tried and is not enough:\n{}", fenced("x.diff", diff));
        if diff.len() <= MAX_DIFF {
            add(&mut text, section, &mut left);
        }
    }
    for view in views {
        let path = &view.source().path;
        let heading = match view {
            View::Whole(_) => format!("The file {path} as it is"),
            View::Parts(..) => format!("Parts of the file {path}"),
        };
        text.push_str(&format!("\n{heading}:\n{}", fenced(path, view.text())));
    }
    text.push('\n');
    text.push_str(&instruction(selection, views, whole));
    text
}

/// The test that failed: whole, or its beginning and the failing functions.
fn test_excerpt(selection: &Selection, most: usize) -> Option<(String, String)> {
    let test = &selection.read.first()?.source;
    if test.text.len() <= most {
        return Some((test.path.clone(), test.text.clone()));
    }
    let failing = selection.failure.as_ref().map(|failure| failure.tests.as_slice()).unwrap_or_default();
    let mut excerpt = String::new();
    for block in fragment::blocks(&test.text, failing) {
        if excerpt.len() + block.len() + 2 > most {
            continue;
        }
        excerpt.push_str(&block);
        excerpt.push_str("\n\n");
    }
    (!excerpt.is_empty()).then(|| (format!("{} (in parts)", test.path), excerpt.trim_end().to_owned() + "\n"))
}

fn instruction(selection: &Selection, views: &[View<'_>], whole: bool) -> String {
    let paths: Vec<&str> = views.iter().map(|view| view.source().path.as_str()).collect();
    let new = &selection.missing;
    if !whole {
        let example = paths.first().copied().unwrap_or("path/to/file");
        return format!(
            "Fix the code. Answer with one or more blocks of this form and nothing else. The SEARCH part is copied exactly \
             from the file and is in it only once:\n\n{example}\n<<<<<<< SEARCH\nold lines\n=======\nnew lines\n>>>>>>> REPLACE\n"
        );
    }
    let example = |path: &str| format!("{path}\n```{}\n...\n```\n", language(path));
    match (&paths[..], &new[..]) {
        ([], [new]) => format!(
            "Write the file {new}. Answer in this form, with all of its code and nothing else:\n\n{}",
            example(new)
        ),
        ([], []) => {
            "Write what is missing. Answer with the path on one line and then the whole file in one code block.\n"
                .to_owned()
        }
        ([only], []) => format!(
            "Find the bug in {only} and fix it. Answer in this form, with the whole corrected file and nothing else:\n\n{}",
            example(only)
        ),
        (paths, new) => {
            let all: Vec<&str> = paths.iter().copied().chain(new.iter().map(String::as_str)).collect();
            format!(
                "Fix the bug, in {}. Answer with each file you change, whole, in this form and with nothing else:\n\n{}",
                all.join(" or "),
                example(all[0])
            )
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::backend::CheckReport;
    use crate::builtin::failure::Failure;
    use proptest::prelude::*;
    use std::path::Path;
    use uuid::Uuid;

    fn candidate(path: &str, text: &str, score: u32, lines: Vec<usize>) -> Candidate {
        Candidate { source: Source { path: path.to_owned(), text: text.to_owned() }, score, lines }
    }

    fn selection(edit: Vec<Candidate>, read: Vec<Candidate>, output: &str) -> Selection {
        Selection { edit, read, failure: Some(Failure::read(output, Path::new("/wt"))), ..Selection::default() }
    }

    fn run(output: &str) -> Run {
        let mut run = Run::new(Uuid::nil(), "Make the tests pass.", "/wt", "python3 -m unittest");
        run.last_check = Some(CheckReport { exit: 1, output: output.to_owned(), timed_out: false });
        run
    }

    const BUDGET: Budget = Budget { max_prompt: 12 << 10, window: 8192, max_answer: 2048, whole: true };

    #[test]
    fn a_small_repair_reads_like_this() {
        let output = "FAIL: test_add (test_calc.T)\nAssertionError: -1 != 3\n";
        let selection = selection(
            vec![candidate("calc.py", "def add(a, b):\n    return a - b\n", 100, vec![])],
            vec![candidate("test_calc.py", "from calc import add\nassert add(1, 2) == 3\n", 50, vec![])],
            output,
        );
        let prompt = Prompt::build(&run(output), &selection, &BUDGET).unwrap();
        insta::assert_snapshot!(prompt.text);
        assert!(prompt.whole);
    }

    #[test]
    fn a_file_too_long_to_answer_whole_is_asked_for_in_blocks() {
        let long: String = (0..400).map(|n| format!("def f{n}():\n    return {n}\n")).collect();
        let output = "  File \"long.py\", line 300, in f149\nAssertionError\n";
        let selection = selection(vec![candidate("long.py", &long, 60, vec![300])], vec![], output);
        let prompt = Prompt::build(&run(output), &selection, &BUDGET).unwrap();
        assert!(!prompt.whole && prompt.text.contains("<<<<<<< SEARCH"));
        assert!(
            prompt.text.contains("[lines from 280 of 800]") && prompt.text.contains("def f149():"),
            "{}",
            prompt.text
        );
        assert!(prompt.text.len() <= BUDGET.max_prompt);
    }

    #[test]
    fn what_cannot_fit_is_an_error_with_the_numbers() {
        let long = "x = 1\n".repeat(10_000);
        let selection = selection(vec![candidate("long.py", &long, 60, vec![])], vec![], "");
        let error = Prompt::build(&run(""), &selection, &BUDGET).unwrap_err().to_string();
        assert!(error.contains("60000 bytes"), "{error}");
        let mut wordy = run("");
        wordy.prompt = "word ".repeat(9000);
        assert!(matches!(Prompt::build(&wordy, &selection, &BUDGET), Err(BackendError::DoesNotFit { .. })));
    }

    proptest! {
        #[test]
        fn no_prompt_is_longer_than_allowed(
            file in "([a-z ]{0,40}\n){1,150}", test in "([a-z ]{0,40}\n){0,150}", output in "([a-z ]{0,60}\n){0,100}",
            max_prompt in 1500usize..20_000, window in 1024u32..16_384, whole in any::<bool>(),
        ) {
            let selection = selection(
                vec![candidate("a.py", &file, 50, vec![3]), candidate("b.py", &test, 40, vec![])],
                vec![candidate("test_a.py", &test, 50, vec![])],
                &output,
            );
            let budget = Budget { max_prompt, window, max_answer: 2048, whole };
            if let Ok(prompt) = Prompt::build(&run(&output), &selection, &budget) {
                prop_assert!(prompt.text.len() + SYSTEM.len() <= max_prompt, "{} over {max_prompt}", prompt.text.len());
                let tokens = (prompt.text.len() + SYSTEM.len()) / BYTES_PER_TOKEN + prompt.max_answer as usize;
                prop_assert!(tokens <= window as usize, "{tokens} over {window}");
            }
        }
    }
}
