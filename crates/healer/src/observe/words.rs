//! What the service manager's and the kernel's own lines tell of a unit: how its last run ended, whether somebody asked
//! for that, and whether a process was killed in it or elsewhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use lares_units::port::{Entry, InvocationId, Manager, ManagerError, Origin, Question, UnitId};

use crate::clock;

/// `MESSAGE_ID` of what systemd says of units (`systemd/sd-messages.h`).
const STARTING: &str = "7d4958e842da4a758f6c1cdc7b36dcc5";
const STARTED: &str = "39f53479d3a045ac8e11786248231fbf";
const STOPPING: &str = "de5b426a63be47a7b6ac3eaac82e2f6f";
const STOPPED: &str = "9d1aaa27d60140bd96365438aad20286";
const SKIPPED: &str = "0e4284a0caca4bfc81c0bb6786972673";
/// A process exited, the unit failed, the unit succeeded.
const ENDED: [&str; 3] =
    ["98e322203f7a4ed290d09fe03c09fe15", "d9b373ed55a64feb8242e02dbe79a49c", "7ad2d189f7e94e70a38c781354912448"];
/// Units are stopped within so much after the end of what they are bound to.
const AFTER_THE_OTHER: SignedDuration = SignedDuration::from_secs(3);
/// Systemd waits so long by default for a unit to stop, and a little longer for what it kills then.
const STOPPING_TAKES: SignedDuration = SignedDuration::from_secs(100);
/// Most lines that are read around a stop: a program may say a lot on its way down.
const MANY: usize = 5000;
/// Units that are bound to one another in a row.
const BOUND: usize = 8;

/// How the last run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Nothing tells.
    Unsaid,
    /// A job to stop it.
    Asked {
        /// When.
        at: Timestamp,
    },
    /// By itself, well or badly.
    Own {
        /// When.
        at: Timestamp,
    },
    /// Its own condition (`ExecCondition=`) kept it from running.
    Skipped,
    /// It was not started because of a unit that it requires.
    Dependency,
}

/// The end as these lines, oldest first, tell it, and the run it was of.
pub(super) fn end(entries: &[Arc<Entry>]) -> (End, Option<InvocationId>) {
    let (mut end, mut run) = (End::Unsaid, None);
    for entry in entries.iter().filter(|entry| entry.origin == Origin::Manager) {
        run = entry.invocation.or(run);
        let at = entry.at;
        end = match (entry.field("MESSAGE_ID"), entry.field("JOB_TYPE"), end) {
            _ if entry.field("JOB_RESULT") == Some("dependency") => End::Dependency,
            // Of a unit that was skipped it is said that it was started.
            (Some(STARTED), _, End::Skipped) | (Some(SKIPPED), ..) => End::Skipped,
            (Some(STARTING | STARTED), ..) => End::Unsaid,
            // A restart begins with the same words and ends with others.
            (Some(STOPPED), Some("restart"), _) => End::Own { at },
            (Some(STOPPING | STOPPED), _, End::Asked { at }) => End::Asked { at },
            (Some(STOPPING | STOPPED), ..) => End::Asked { at },
            (Some(id), _, End::Unsaid) if ENDED.contains(&id) => End::Own { at },
            (_, _, end) => end,
        };
    }
    (end, run)
}

/// The same, when there were more lines than are read at once and the word on the stop may lie before them. `left` is
/// when the unit was no longer active.
pub(super) async fn end_in_many_words(
    manager: &dyn Manager,
    unit: &UnitId,
    found: End,
    left: Option<Timestamp>,
) -> Result<End, ManagerError> {
    let End::Own { at } = found else { return Ok(found) };
    let around = SignedDuration::from_secs(2);
    let (since, until) = match left {
        Some(left) => (left - around, left + around),
        None => (at - STOPPING_TAKES, at),
    };
    let question = Question { since: Some(since), until: Some(until), count: MANY, ..Question::new(unit.clone()) };
    let (end, _) = end(&manager.recent(&question).await?);
    Ok(if matches!(end, End::Asked { .. }) { end } else { found })
}

/// Whether a stop at this moment was somebody's wish, and not because a unit ended that this one is bound to
/// (`BindsTo=`): systemd stops it with the same words.
pub(super) async fn is_a_wish(manager: &dyn Manager, bound_to: &[UnitId], at: Timestamp) -> Result<bool, ManagerError> {
    let (mut bound_to, mut at) = (bound_to.to_vec(), at);
    for _ in 0..BOUND {
        let mut because = None;
        for other in bound_to.iter().filter(|other| other.kind() == Some("service")) {
            let (since, until) = (at - AFTER_THE_OTHER, at);
            let question =
                Question { since: Some(since), until: Some(until), count: MANY, ..Question::new(other.clone()) };
            match end(&manager.recent(&question).await?).0 {
                End::Own { .. } => return Ok(false),
                End::Asked { at } => because = because.or(Some((other.clone(), at))),
                _ => {}
            }
        }
        let Some((other, stopped)) = because else { return Ok(true) };
        (bound_to, at) = (manager.facts(&other).await?.relations.binds_to, stopped);
    }
    Ok(true)
}

/// When something happened that the service manager put on its own clock.
pub(super) fn wall(moment: Duration) -> Timestamp {
    let (_, ago) = clock::stamped(moment);
    Timestamp::now() - SignedDuration::try_from(ago).unwrap_or(SignedDuration::ZERO)
}

/// How long ago a line was written. Its moment of the boot counts where it has one: the wall clock may have been set.
pub(super) fn age(entry: &Entry, now: Timestamp) -> Duration {
    match entry.monotonic {
        Some(moment) => clock::stamped(moment).1,
        None => Duration::try_from(now.duration_since(entry.at)).unwrap_or(Duration::ZERO),
    }
}

/// The processes that the kernel killed for memory in this unit, as far as its lines tell. Each kill has a line with the
/// control group and the process.
pub(super) fn killed_in(unit: &str, entries: &[Arc<Entry>]) -> BTreeSet<u32> {
    let kernel = entries.iter().filter(|entry| entry.origin == Origin::Kernel);
    kernel.filter(|entry| names(&entry.message, unit)).filter_map(|entry| number(&entry.message, "pid=")).collect()
}

/// Whether a line of the kernel is about this unit: it names its control group, or a process of it.
pub(super) fn is_about(entry: &Entry, unit: &str, processes: &BTreeSet<u32>) -> bool {
    let text = &entry.message;
    let process = ["pid=", "rocess "].iter().find_map(|word| number(text, word));
    names(text, unit) || process.is_some_and(|process| processes.contains(&process))
}

/// Whether a text has the unit as a whole part of a path.
fn names(text: &str, unit: &str) -> bool {
    let after = |place: usize| text[place + unit.len()..].chars().next();
    text.match_indices(unit)
        .any(|(place, _)| text[..place].ends_with('/') && after(place).is_none_or(|next| "/, ".contains(next)))
}

/// The number after a word.
fn number(text: &str, word: &str) -> Option<u32> {
    let rest = &text[text.find(word)? + word.len()..];
    rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::fake::{kernel, said, word};
    use super::*;

    const RUN: &str = "00ff102030405060708090a0b0c0d0e0";

    fn ended(lines: &[(&str, &str, &str)]) -> End {
        let entries: Vec<Arc<Entry>> = lines
            .iter()
            .zip(1..)
            .map(|((id, kind, result), at)| {
                word(at, RUN, "…", &[("MESSAGE_ID", id), ("JOB_TYPE", kind), ("JOB_RESULT", result)])
            })
            .collect();
        let (end, run) = end(&entries);
        assert_eq!(run.map(|run| run.to_string()).as_deref(), (!lines.is_empty()).then_some(RUN));
        end
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn systemds_words_on_an_end_are_understood() {
        let [exited, failed, succeeded] = ENDED;
        let started = (STARTED, "start", "done");
        assert_eq!(ended(&[]), End::Unsaid);
        assert_eq!(ended(&[started]), End::Unsaid);
        assert_eq!(ended(&[started, (succeeded, "", "")]), End::Own { at: at(2) });
        assert_eq!(ended(&[started, (exited, "", ""), (failed, "", "")]), End::Own { at: at(2) });
        let stopping = (STOPPING, "stop", "");
        assert_eq!(ended(&[started, stopping]), End::Asked { at: at(2) });
        assert_eq!(
            ended(&[started, stopping, (succeeded, "", ""), (STOPPED, "stop", "done")]),
            End::Asked { at: at(2) }
        );
        // It did not end well when it was asked to.
        assert_eq!(ended(&[started, stopping, (exited, "", ""), (failed, "", "")]), End::Asked { at: at(2) });
        // Stopped while it waited for an automatic restart, or was on its way up.
        assert_eq!(ended(&[started, (exited, "", ""), (STOPPED, "stop", "done")]), End::Asked { at: at(3) });
        // A restart, in the middle and after it.
        let restart = [started, stopping, (succeeded, "", ""), (STOPPED, "restart", "done")];
        assert_eq!(ended(&restart), End::Own { at: at(4) });
        assert_eq!(ended(&[&restart[..], &[started]].concat()), End::Unsaid);
        assert_eq!(ended(&[(STARTING, "start", ""), (SKIPPED, "", ""), started]), End::Skipped);
        assert_eq!(ended(&[started, stopping, ("be02cf", "start", "dependency")]), End::Dependency);
    }

    #[test]
    fn a_service_cannot_put_words_into_systemds_mouth() {
        let mut forged = (*word(2, RUN, "Stopping app.service...", &[("MESSAGE_ID", STOPPING)])).clone();
        forged.origin = Origin::Unit;
        let entries = [word(1, RUN, "…", &[("MESSAGE_ID", ENDED[0])]), Arc::new(forged)];
        assert_eq!(end(&entries).0, End::Own { at: at(1) });
    }

    #[test]
    fn kills_are_told_apart_by_their_control_group() {
        let kill = |unit: &str, pid: u32| {
            kernel(
                1,
                &format!(
                    "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,oom_memcg=/system.slice/{unit},task_memcg=/system.slice/{unit},task=python3,pid={pid},uid=0"
                ),
            )
        };
        let killed =
            |pid: u32| kernel(1, &format!("Memory cgroup out of memory: Killed process {pid} (python3) total-vm:1kB"));
        let entries = [kill("app.service", 7), killed(7), kill("my-app.service", 8), killed(8), said(1, RUN, "pid=9")];
        let processes = killed_in("app.service", &entries);
        assert_eq!(processes, BTreeSet::from([7]));
        let about: Vec<bool> = entries[..4].iter().map(|entry| is_about(entry, "app.service", &processes)).collect();
        assert_eq!(about, [true, true, false, false]);
    }
}
