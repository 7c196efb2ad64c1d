//! What an iteration tells the agent, and what it makes of the agent's answer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use lares_agents::{Backend, BackendError, CheckReport, Run};
use lares_config::Config;
use lares_store::tasks::{Iteration, Outcome, Task};

use crate::protect::Protection;

/// Most bytes of what earlier iterations left: a few lines each, and small models read no more than that.
const MAX_NOTES: usize = 2048;
/// Iterations the notes go back.
const NOTES_BACK: usize = 6;
/// Exit code shown to the agent for a check that was ended, as a shell's `timeout` gives it.
const ENDED: i32 = 124;

/// Chooses the agent for a task by the backend's name and the model the task asks for; the error says what there is.
pub type Backends = Arc<dyn Fn(&str, Option<&str>) -> Result<Arc<dyn Backend>, String> + Send + Sync>;

/// What came of asking the agent.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It worked; what it changed is in the worktree.
    Worked(lares_agents::Outcome),
    /// It could not; why, in words for the log and the next iteration.
    Failed(String),
    /// The model cannot be reached now.
    Away(String),
    /// It was told to stop.
    Stopped,
}

impl Answer {
    pub(crate) fn of(result: Result<lares_agents::Outcome, BackendError>) -> Self {
        match result {
            Ok(outcome) => Self::Worked(outcome),
            Err(BackendError::Cancelled) => Self::Stopped,
            // Asked again it would take as long again, so this counts as an iteration.
            Err(error @ BackendError::TimedOut(_)) => Self::Failed(error.to_string()),
            Err(error) if error.is_transient() => Self::Away(error.to_string()),
            Err(error) => Self::Failed(error.to_string()),
        }
    }
}

/// Where an iteration sets out.
pub(crate) struct Start<'a> {
    pub(crate) number: u32,
    pub(crate) temperature: f64,
    pub(crate) fresh: bool,
    /// The iteration it builds on; `None`: the base.
    pub(crate) onto: Option<&'a Iteration>,
    /// The patch from the base to there.
    pub(crate) diff: String,
    pub(crate) timeout: Duration,
}

/// Puts together what the agent is given.
pub(crate) fn brief(
    config: &Config,
    task: &Task,
    history: &[Iteration],
    protection: &Protection,
    worktree: &Path,
    start: Start<'_>,
) -> Run {
    let (exit, output) = match start.onto {
        Some(iteration) => (iteration.check_exit, iteration.check_output.clone()),
        None => (task.base_check_exit, task.base_check_output.clone().unwrap_or_default()),
    };
    let mut run = Run::new(task.id, task.prompt.clone(), worktree, task.check_command.clone());
    run.notes = notes(history);
    run.diff = start.diff;
    run.last_check = Some(CheckReport { exit: exit.unwrap_or(ENDED), output, timed_out: exit.is_none() });
    run.iteration = start.number;
    run.temperature = start.temperature as f32;
    run.seed = Some(seed(task, start.number));
    run.fresh = start.fresh;
    run.window = window(config, task.model.as_deref());
    run.timeout = start.timeout;
    run.protected = protection.restored.iter().map(Into::into).collect();
    run
}

/// Another one for each iteration, the same when an interrupted one is repeated.
fn seed(task: &Task, number: u32) -> u32 {
    let (_, low) = task.id.as_u64_pair();
    // Truncation is meant: any 32 bits will do.
    (low as u32).wrapping_add(number)
}

fn window(config: &Config, model: Option<&str>) -> Option<u32> {
    let name = model.or_else(|| config.builtin_model())?;
    let model = config
        .models
        .get(name)
        .or_else(|| config.models.values().find(|model| model.aliases.iter().any(|alias| alias == name)))?;
    Some(model.context_size)
}

/// What earlier iterations tried, one line each, the last ones.
fn notes(history: &[Iteration]) -> String {
    let mut lines = Vec::new();
    let mut length = 0;
    for iteration in history.iter().rev().filter(|i| !matches!(i.outcome, Outcome::Interrupted | Outcome::Running)) {
        let line = note(iteration);
        length += line.len() + 1;
        if lines.len() == NOTES_BACK || length > MAX_NOTES {
            break;
        }
        lines.push(line);
    }
    lines.reverse();
    lines.join("\n")
}

fn note(iteration: &Iteration) -> String {
    let number = iteration.number;
    let said: String = iteration.summary.lines().next().unwrap_or_default().chars().take(300).collect();
    match iteration.outcome {
        Outcome::NoChange => format!(
            "Try {number} changed nothing ({said}). Only a change that makes the check exit with 0 counts; words do not."
        ),
        Outcome::AgentFailed => format!("Try {number} came to nothing: {said}"),
        _ => {
            let tests = match (iteration.tests_passed, iteration.tests_failed) {
                (Some(passed), Some(failed)) => format!(", {passed} of {} tests passed", passed.saturating_add(failed)),
                _ => String::new(),
            };
            let exit =
                iteration.check_exit.map_or_else(|| "was ended".to_owned(), |code| format!("exited with {code}"));
            format!("Try {number} changed {}; the check {exit}{tests}. {said}", iteration.changed_files.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use jiff::Timestamp;
    use lares_store::tasks::Approach;
    use uuid::Uuid;

    use super::*;

    fn iteration(number: u32, outcome: Outcome) -> Iteration {
        Iteration {
            task_id: Uuid::nil(),
            number,
            fence: 1,
            backend: "test".to_owned(),
            approach: Approach::First,
            temperature: 0.0,
            started_at: Timestamp::UNIX_EPOCH,
            finished_at: None,
            outcome,
            summary: "did things".to_owned(),
            changed_files: vec!["a.py".to_owned()],
            checkpoint_commit: None,
            check_exit: Some(1),
            check_output: String::new(),
            check_duration: None,
            agent_duration: None,
            prompt_tokens: None,
            completion_tokens: None,
            tests_passed: Some(1),
            tests_failed: Some(2),
        }
    }

    #[test]
    fn an_agent_that_changed_nothing_is_told_so() {
        let notes = notes(&[iteration(1, Outcome::Failed), iteration(2, Outcome::NoChange)]);
        assert_eq!(
            notes,
            "Try 1 changed a.py; the check exited with 1, 1 of 3 tests passed. did things\n\
             Try 2 changed nothing (did things). Only a change that makes the check exit with 0 counts; words do not."
        );
    }

    #[test]
    fn notes_stay_short_however_long_the_history() {
        let history: Vec<_> = (1..200).map(|n| iteration(n, Outcome::Failed)).collect();
        let notes = notes(&history);
        assert!(notes.len() <= MAX_NOTES);
        assert!(notes.lines().last().unwrap().starts_with("Try 199 "));
    }

    #[test]
    fn a_model_that_is_away_costs_no_iteration_and_one_that_is_unknown_does() {
        let away = BackendError::Refused { status: 503, message: "loading".to_owned() };
        assert!(matches!(Answer::of(Err(away)), Answer::Away(_)));
        let unknown = BackendError::Refused { status: 404, message: "no such model".to_owned() };
        assert!(matches!(Answer::of(Err(unknown)), Answer::Failed(_)));
        assert!(matches!(Answer::of(Err(BackendError::TimedOut(Duration::ZERO))), Answer::Failed(_)));
    }
}
