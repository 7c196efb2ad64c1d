//! What to do next on a task, from what was tried on it: a pure function.
//!
//! A round sets out from the base commit and is followed by two repairs, each shown what the check said. The first
//! round samples at temperature 0, later ones at 0.6 to 0.8. Most of what test feedback gives comes in the first two
//! repairs, and fresh samples beat further repairs at equal cost; hence the shape.

use std::time::Duration;

use lares_store::tasks::{Approach, Outcome};

use crate::score::Score;

/// Repairs after each fresh start.
const REPAIRS: usize = 2;
/// Temperatures of the rounds after the first one, taken in turn.
const RESAMPLE_TEMPERATURES: [f64; 3] = [0.6, 0.7, 0.8];
/// Temperature of a repair whose forerunner changed nothing: at 0 it would most likely do the same again.
const NUDGE_TEMPERATURE: f64 = 0.4;
/// Runs the agent may fail to carry out one after the other; then it is not the task that is hard.
const AGENT_FAILURES: usize = 3;
/// Interruptions one after the other; then the iteration itself is what brings the worker down.
const INTERRUPTIONS: usize = 10;

/// One iteration that has ended, as far as it bears on the next one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Attempt {
    pub(crate) number: u32,
    pub(crate) approach: Approach,
    pub(crate) outcome: Outcome,
    /// Whether there is a commit to go on from.
    pub(crate) has_checkpoint: bool,
    pub(crate) score: Option<Score>,
    /// What the agent said, for the reason when it fails again and again.
    pub(crate) summary: String,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Next {
    /// From the base commit, at temperature 0.
    First,
    /// From the checkpoint of iteration `of` (`None`: the base commit), with what the check said about it.
    Repair { of: Option<u32>, temperature: f64 },
    /// From the base commit again.
    Resample { temperature: f64 },
    /// No further try.
    GiveUp(String),
    /// Iteration `of` passed the check.
    Done { of: u32 },
}

impl Next {
    /// How the iteration is called in the store, when there is one.
    pub(crate) fn approach(&self) -> Option<(Approach, f64)> {
        match self {
            Self::First => Some((Approach::First, 0.0)),
            Self::Repair { temperature, .. } => Some((Approach::Repair, *temperature)),
            Self::Resample { temperature } => Some((Approach::Resample, *temperature)),
            Self::GiveUp(_) | Self::Done { .. } => None,
        }
    }
}

/// Decides. `time_left` is what remains of the task's timeout.
pub(crate) fn decide(history: &[Attempt], max_iterations: u32, time_left: Duration) -> Next {
    if let Some(passed) = history.iter().find(|attempt| attempt.outcome == Outcome::Passed) {
        return Next::Done { of: passed.number };
    }
    let interrupted = history.iter().rev().take_while(|a| a.outcome == Outcome::Interrupted).count();
    if interrupted >= INTERRUPTIONS {
        return Next::GiveUp(format!(
            "{interrupted} iterations in a row were interrupted; something in them brings the worker down"
        ));
    }
    // An interrupted iteration says nothing about the task: it neither counts nor steers.
    let history: Vec<&Attempt> =
        history.iter().filter(|a| !matches!(a.outcome, Outcome::Interrupted | Outcome::Running)).collect();
    let failures: Vec<_> = history.iter().rev().take_while(|a| a.outcome == Outcome::AgentFailed).collect();
    if failures.len() >= AGENT_FAILURES {
        return Next::GiveUp(format!("the agent failed {} times in a row: {}", failures.len(), failures[0].summary));
    }
    if history.len() >= max_iterations as usize {
        return Next::GiveUp(format!("the check did not pass in {}", iterations(history.len())));
    }
    if time_left.is_zero() {
        return Next::GiveUp(format!("the check did not pass in time; {} ran", iterations(history.len())));
    }
    let Some(start) = history.iter().rposition(|a| a.approach != Approach::Repair) else {
        return if history.is_empty() { Next::First } else { repair(&history) };
    };
    let round = &history[start..];
    let idle = round.iter().rev().take_while(|a| a.outcome != Outcome::Failed).count();
    if round.len() > REPAIRS || idle > 1 {
        let rounds = history.iter().filter(|a| a.approach != Approach::Repair).count();
        let turn = rounds.saturating_sub(1) % RESAMPLE_TEMPERATURES.len();
        return Next::Resample { temperature: RESAMPLE_TEMPERATURES[turn] };
    }
    repair(round)
}

/// Repairs what is best in this round: going on from a repair that broke more than it mended loses what was there.
fn repair(round: &[&Attempt]) -> Next {
    let of = round
        .iter()
        .filter(|a| a.outcome == Outcome::Failed && a.has_checkpoint)
        .max_by_key(|a| (a.score, a.number))
        .map(|a| a.number);
    let changed = round.last().is_some_and(|a| a.outcome == Outcome::Failed);
    Next::Repair { of, temperature: if changed { 0.0 } else { NUDGE_TEMPERATURE } }
}

/// The candidate to keep when the task is given up: most tests passing, the later one of two alike.
pub(crate) fn best(history: &[Attempt]) -> Option<u32> {
    history
        .iter()
        .filter(|a| a.has_checkpoint && matches!(a.outcome, Outcome::Failed | Outcome::Passed))
        .max_by_key(|a| (a.outcome == Outcome::Passed, a.score, a.number))
        .map(|a| a.number)
}

fn iterations(n: usize) -> String {
    if n == 1 { "1 iteration".to_owned() } else { format!("{n} iterations") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn attempt(number: u32, approach: Approach, outcome: Outcome) -> Attempt {
        Attempt {
            number,
            approach,
            outcome,
            has_checkpoint: matches!(outcome, Outcome::Failed | Outcome::Passed),
            score: None,
            summary: String::new(),
        }
    }

    /// Plays a task whose iterations end as `outcomes` says and returns what was decided each time.
    fn play(outcomes: &[Outcome], max: u32) -> (Vec<Next>, Vec<Attempt>) {
        let (mut history, mut decided) = (Vec::new(), Vec::new());
        for number in 1..=1000 {
            let next = decide(&history, max, HOUR);
            decided.push(next.clone());
            let Some((approach, _)) = next.approach() else { break };
            let outcome = outcomes[(number as usize - 1) % outcomes.len()];
            history.push(attempt(number, approach, outcome));
        }
        (decided, history)
    }

    #[test]
    fn a_hard_task_is_repaired_twice_then_sampled_afresh() {
        let (decided, _) = play(&[Outcome::Failed], 7);
        let repair = |of| Next::Repair { of: Some(of), temperature: 0.0 };
        assert_eq!(
            decided,
            [
                Next::First,
                repair(1),
                repair(2),
                Next::Resample { temperature: 0.6 },
                repair(4),
                repair(5),
                Next::Resample { temperature: 0.7 },
                Next::GiveUp("the check did not pass in 7 iterations".to_owned()),
            ]
        );
    }

    #[test]
    fn a_repair_that_made_it_worse_is_not_built_on() {
        let mut history =
            vec![attempt(1, Approach::First, Outcome::Failed), attempt(2, Approach::Repair, Outcome::Failed)];
        history[0].score = Some(Score { passed: 3, failed: 1 });
        history[1].score = Some(Score { passed: 0, failed: 1 });
        assert_eq!(decide(&history, 9, HOUR), Next::Repair { of: Some(1), temperature: 0.0 });
        assert_eq!(best(&history), Some(1));
    }

    #[test]
    fn an_agent_that_changes_nothing_is_nudged_once_then_sampled_afresh() {
        let (decided, _) = play(&[Outcome::NoChange], 3);
        assert_eq!(decided[1], Next::Repair { of: None, temperature: NUDGE_TEMPERATURE });
        assert_eq!(decided[2], Next::Resample { temperature: 0.6 });
        assert!(matches!(decided[3], Next::GiveUp(_)));
    }

    #[test]
    fn an_agent_that_keeps_failing_ends_the_task_with_its_words() {
        let mut history: Vec<_> = (1..=3).map(|n| attempt(n, Approach::First, Outcome::AgentFailed)).collect();
        history[2].summary = "the model is not known".to_owned();
        let Next::GiveUp(reason) = decide(&history, 9, HOUR) else { panic!("expected to give up") };
        assert!(reason.ends_with("the model is not known"), "{reason}");
    }

    #[test]
    fn interruptions_do_not_use_up_iterations() {
        let history: Vec<_> = (1..=9).map(|n| attempt(n, Approach::First, Outcome::Interrupted)).collect();
        assert_eq!(decide(&history, 2, HOUR), Next::First);
    }

    #[test]
    fn no_time_left_ends_it() {
        let history = [attempt(1, Approach::First, Outcome::Failed)];
        assert!(matches!(decide(&history, 9, Duration::ZERO), Next::GiveUp(reason) if reason.contains("in time")));
    }

    fn outcome() -> impl Strategy<Value = Outcome> {
        proptest::sample::select(vec![
            Outcome::Failed,
            Outcome::NoChange,
            Outcome::AgentFailed,
            Outcome::Interrupted,
            Outcome::Passed,
        ])
    }

    proptest! {
        #[test]
        fn it_ends_and_only_a_passed_check_is_done(outcomes in prop::collection::vec(outcome(), 1..60), max in 1u32..30) {
            let (decided, history) = play(&outcomes, max);
            let ran = history.iter().filter(|a| a.outcome != Outcome::Interrupted).count();
            prop_assert!(ran <= max as usize);
            match decided.last().unwrap() {
                Next::Done { of } => {
                    prop_assert_eq!(history.last().unwrap().outcome, Outcome::Passed);
                    prop_assert_eq!(history.last().unwrap().number, *of);
                }
                Next::GiveUp(_) => prop_assert!(history.iter().all(|a| a.outcome != Outcome::Passed)),
                other => prop_assert!(false, "did not end: {:?}", other),
            }
        }

        #[test]
        fn a_repair_builds_on_a_checkpoint_of_its_own_round(outcomes in prop::collection::vec(outcome(), 1..40)) {
            let (decided, history) = play(&outcomes, 30);
            for (index, next) in decided.iter().enumerate() {
                let Next::Repair { of: Some(of), .. } = next else { continue };
                let before = &history[..index];
                let start = before.iter().rposition(|a| a.approach != Approach::Repair
                    && a.outcome != Outcome::Interrupted).unwrap();
                prop_assert!(before[start..].iter().any(|a| a.number == *of && a.has_checkpoint));
            }
        }

        #[test]
        fn temperatures_stay_in_range(outcomes in prop::collection::vec(outcome(), 1..40)) {
            for next in play(&outcomes, 30).0 {
                match next {
                    Next::Resample { temperature } => prop_assert!((0.6..=0.8).contains(&temperature)),
                    Next::Repair { temperature, .. } => prop_assert!((0.0..0.6).contains(&temperature)),
                    _ => {}
                }
            }
        }
    }
}
