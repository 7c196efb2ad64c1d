//! The prompt: the task, the failing output, the test, and the files to edit, within the bytes there are.
//!
//! Nothing is cut silently. A file that cannot be shown or answered whole is shown in parts that say so, with
//! search/replace blocks asked for; when not even that fits, the error gives the numbers.

use std::collections::BTreeSet;

use super::listing::Source;
use super::resolve::Offer;
use super::select::{Candidate, Selection};
use super::wording::{self, Wording};
use crate::backend::{BackendError, Run};

/// Bytes a token of code has at least, on average: Qwen's and Llama's tokenizers give 3.2 to 4.
const BYTES_PER_TOKEN: usize = 3;
/// Tokens of the chat template around the messages.
const TEMPLATE_TOKENS: usize = 64;
/// Tokens an answer has beside the file: an explanation before it.
const ANSWER_SLACK: usize = 384;
/// How much longer than the files an answer may get, and the tokens on top: enough to add functions and to explain,
/// too little to ramble on for minutes.
const ANSWER_GROWTH: usize = 2;
const ANSWER_MORE: usize = 512;
/// Least tokens of an answer by search/replace blocks.
const BLOCKS_TOKENS: usize = 512;
/// Part of the prompt the failing output may take, and the test.
const OUTPUT_PART: usize = 4;
const TEST_PART: usize = 3;
/// Most files offered; a small model loses its way among more.
const MAX_OFFERED: usize = 3;
/// Lines shown around a line that is meant.
const AROUND: usize = 20;
/// Bytes the instruction and the headings of the files have at most.
const INSTRUCTION: usize = 900;
/// A file beside the best is in question when it has at least this part of its points, or so many: a module that an
/// imported module imports.
const ALSO_MEANT: u32 = 5;
const IN_QUESTION: u32 = 30;

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
    /// Whether the model is so small that it is asked for one file at a time.
    pub(super) small: bool,
}

/// A prompt, and what the answer may change.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) text: String,
    pub(super) offer: Offer,
    /// Tokens.
    pub(super) max_answer: u32,
    /// Whether whole files are asked for.
    pub(super) whole: bool,
}

/// How a file is shown.
enum View<'a> {
    Whole(&'a Source),
    Parts(&'a Source, String),
}

impl Prompt {
    /// The prompt for a turn: from 0, each one asks a small model for the next file in question.
    pub(super) fn build(run: &Run, selection: &Selection, budget: &Budget, turn: u32) -> Result<Self, BackendError> {
        let candidates = offered(selection, budget.small, turn as usize);
        let task = wording::task(run);
        let fixed = wording::SYSTEM.len() + task.len() + INSTRUCTION;
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
        let plan = if budget.whole { whole_files(&candidates, &room, max_answer) } else { None };
        let (views, answer, whole) = match plan {
            Some((views, answer)) => (views, answer, true),
            None => {
                let answer = BLOCKS_TOKENS.max(window / 4).min(max_answer);
                let (views, whole) = shown_files(selection, &candidates, room(answer), budget.whole)?;
                (views, answer, whole)
            }
        };
        let shown: usize = views.iter().map(|view| view.text().len()).sum();
        let left = room(answer).saturating_sub(shown);
        let text = assemble(run, selection, &task, &views, left, whole);
        let offer = Offer {
            edit: views.iter().map(|view| view.source().clone()).collect(),
            new: selection.missing.clone(),
            paths: selection.paths.clone(),
            tests_too: selection.tests_too,
            wanted: selection.missing_name.clone(),
            tests: selection.read.iter().map(|candidate| candidate.source.clone()).collect(),
        };
        // What the prompt does not use of the window is the answer's.
        let used = tokens(text.len() + wording::SYSTEM.len());
        let useful = ANSWER_GROWTH * tokens(shown) + ANSWER_MORE;
        let answer = answer.max(window.saturating_sub(used).min(max_answer).min(useful));
        Ok(Self { text, offer, max_answer: u32::try_from(answer).unwrap_or(u32::MAX), whole })
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

fn tokens(bytes: usize) -> usize {
    bytes.div_ceil(BYTES_PER_TOKEN)
}

/// The best files that can be shown and answered whole, with the tokens of the answer; `None` when not even the best.
fn whole_files<'a>(
    candidates: &[&'a Candidate],
    room: &dyn Fn(usize) -> usize,
    max_answer: usize,
) -> Option<(Vec<View<'a>>, usize)> {
    let mut views: Vec<View<'a>> = Vec::new();
    let mut bytes = 0;
    for candidate in candidates {
        let size = bytes + candidate.source.text.len();
        let answer = tokens(size) + ANSWER_SLACK;
        // Files beside the first are shown only where half of the room stays for the output and the test.
        let most = if views.is_empty() { room(answer) } else { room(answer) / 2 };
        if answer <= max_answer && size <= most {
            bytes = size;
            views.push(View::Whole(&candidate.source));
        } else if views.is_empty() {
            return None;
        }
    }
    let answer = (tokens(bytes) + ANSWER_SLACK).min(max_answer).max(BLOCKS_TOKENS.min(max_answer));
    Some((views, answer))
}

/// The files in question: all of them, or for a small model one, unless the task names several.
fn offered(selection: &Selection, small: bool, turn: usize) -> Vec<&Candidate> {
    let best = selection.edit.first().map_or(0, |candidate| candidate.score);
    let close = |candidate: &&Candidate| {
        candidate.named || candidate.score >= IN_QUESTION || ALSO_MEANT * candidate.score >= best
    };
    let files: Vec<&Candidate> = selection.edit.iter().filter(close).take(MAX_OFFERED).collect();
    let named: Vec<&Candidate> = files.iter().copied().filter(|candidate| candidate.named).collect();
    if !small || files.is_empty() {
        return files;
    }
    if named.len() > 1 { named } else { vec![files[turn % files.len()]] }
}

/// The best files whole, or in parts where they are too long to be shown. The flag: whole files can be asked for
/// because there is none to edit.
fn shown_files<'a>(
    selection: &Selection,
    candidates: &[&'a Candidate],
    room: usize,
    whole: bool,
) -> Result<(Vec<View<'a>>, bool), BackendError> {
    let mut views: Vec<View<'a>> = Vec::new();
    let mut left = room;
    for candidate in candidates {
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

fn assemble(run: &Run, selection: &Selection, task: &str, views: &[View<'_>], left: usize, whole: bool) -> String {
    let words = Wording::of(run, selection);
    let paths: Vec<&str> = views.iter().map(|view| view.source().path.as_str()).collect();
    let files: String = views
        .iter()
        .map(|view| {
            let parts = matches!(view, View::Parts(..));
            words.file(&view.source().path, view.text(), parts, paths.len() == 1)
        })
        .collect();
    let mut left = left;
    let mut around = String::new();
    for section in [words.test(left / TEST_PART + 200), words.output(left / OUTPUT_PART + 400), words.tried()] {
        if let Some(section) = section.filter(|section| section.len() <= left) {
            left -= section.len();
            around.push_str(&section);
        }
    }
    let (first, second) = if words.file_first() { (&files, &around) } else { (&around, &files) };
    format!("{first}{second}{task}{}", words.instruction(&paths, whole))
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
        Candidate { source: Source { path: path.to_owned(), text: text.to_owned() }, score, lines, named: false }
    }

    fn selection(edit: Vec<Candidate>, read: Vec<Candidate>, output: &str) -> Selection {
        Selection { edit, read, failure: Some(Failure::read(output, Path::new("/wt"))), ..Selection::default() }
    }

    fn run(output: &str) -> Run {
        let mut run = Run::new(Uuid::nil(), "Make the tests pass.", "/wt", "python3 -m unittest");
        run.last_check = Some(CheckReport { exit: 1, output: output.to_owned(), timed_out: false });
        run
    }

    const BUDGET: Budget = Budget { max_prompt: 12 << 10, window: 8192, max_answer: 2048, whole: true, small: true };

    #[test]
    fn a_small_repair_reads_like_this() {
        let output = "FAIL: test_add (test_calc.T)\nAssertionError: -1 != 3\n";
        let selection = selection(
            vec![candidate("calc.py", "def add(a, b):\n    return a - b\n", 100, vec![])],
            vec![candidate("test_calc.py", "from calc import add\nassert add(1, 2) == 3\n", 50, vec![])],
            output,
        );
        let prompt = Prompt::build(&run(output), &selection, &BUDGET, 0).unwrap();
        insta::assert_snapshot!(prompt.text);
        assert!(prompt.whole);
    }

    #[test]
    fn a_file_too_long_to_answer_whole_is_asked_for_in_blocks() {
        let long: String = (0..400).map(|n| format!("def f{n}():\n    return {n}\n")).collect();
        let output = "  File \"long.py\", line 300, in f149\nAssertionError\n";
        let selection = selection(vec![candidate("long.py", &long, 60, vec![300])], vec![], output);
        let prompt = Prompt::build(&run(output), &selection, &BUDGET, 0).unwrap();
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
        let error = Prompt::build(&run(""), &selection, &BUDGET, 0).unwrap_err().to_string();
        assert!(error.contains("60000 bytes"), "{error}");
        let mut wordy = run("");
        wordy.prompt = "word ".repeat(9000);
        assert!(matches!(Prompt::build(&wordy, &selection, &BUDGET, 0), Err(BackendError::DoesNotFit { .. })));
    }

    proptest! {
        #[test]
        fn no_prompt_is_longer_than_allowed(
            file in "([a-z ]{0,40}\n){1,150}", test in "([a-z ]{0,40}\n){0,150}", output in "([a-z ]{0,60}\n){0,100}",
            max_prompt in 1500usize..20_000, window in 1024u32..16_384, whole in any::<bool>(), small in any::<bool>(), turn in 0u32..4,
        ) {
            let selection = selection(
                vec![candidate("a.py", &file, 50, vec![3]), candidate("b.py", &test, 40, vec![])],
                vec![candidate("test_a.py", &test, 50, vec![])],
                &output,
            );
            let budget = Budget { max_prompt, window, max_answer: 2048, whole, small };
            if let Ok(prompt) = Prompt::build(&run(&output), &selection, &budget, turn) {
                prop_assert!(prompt.text.len() + wording::SYSTEM.len() <= max_prompt, "{} over {max_prompt}", prompt.text.len());
                let tokens = (prompt.text.len() + wording::SYSTEM.len()) / BYTES_PER_TOKEN + prompt.max_answer as usize;
                prop_assert!(tokens <= window as usize, "{tokens} over {window}");
            }
        }
    }
}
