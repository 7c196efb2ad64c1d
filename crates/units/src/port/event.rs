//! What a manager tells without being asked.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::facts::{RunResult, Standing, words};
use super::id::{InvocationId, UnitId};
use crate::status::Exit;

words! {
    /// How a job ended.
    JobOutcome {
        /// As wanted.
        Done = "done",
        /// Another job took its place.
        Canceled = "canceled",
        /// It took longer than the manager allows.
        Timeout = "timeout",
        /// The unit failed.
        Failed = "failed",
        /// A unit that it needs failed; it was not even tried.
        Dependency = "dependency",
        /// There was nothing to do, or a condition kept it from starting.
        Skipped = "skipped",
        /// The unit cannot do that.
        Invalid = "invalid",
        /// An assertion of the unit does not hold.
        Assert = "assert",
        /// The machine cannot run units of this kind.
        Unsupported = "unsupported",
        /// The unit was forgotten before it came to it.
        Collected = "collected",
        /// The unit starts once a boot only.
        Once = "once",
        /// The unit is frozen.
        Frozen = "frozen",
        /// Too many units of its slice run already.
        Concurrency = "concurrency",
    }
}

/// A unit's state changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StateChange {
    /// Which unit.
    pub unit: UnitId,
    /// Where it was, as far as this manager saw; none for the first that is heard of it.
    pub from: Option<Standing>,
    /// Where it is now. The same as `from` when only its run is another one: it was restarted while nobody could see it.
    pub to: Standing,
    /// How the run went, at that moment; later it may have been reset.
    pub result: Option<RunResult>,
    /// How its main process ended, if it did in this run.
    pub main_exit: Option<Exit>,
    /// Which run.
    pub invocation: Option<InvocationId>,
    /// Automatic restarts so far.
    pub restarts: Option<u32>,
    /// Its main process, while there is one.
    pub main_pid: Option<u32>,
    /// The number of the job queued for it.
    pub job: Option<u32>,
    /// When, on CLOCK_MONOTONIC of the machine; none where the manager does not say.
    pub at: Option<Duration>,
    /// Why, where the manager has words for it.
    pub cause: Option<String>,
    /// Not seen as it happened, but found when comparing after a gap; steps in between are lost.
    pub found_late: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EventKind {
    /// A watched unit's state changed.
    Changed(Box<StateChange>),
    /// A job of a watched unit ended.
    JobRemoved {
        /// The unit.
        unit: UnitId,
        /// The job's number; none where jobs have none.
        job: Option<u32>,
        /// How it ended.
        outcome: JobOutcome,
    },
    /// The manager loaded a watched unit.
    Appeared(UnitId),
    /// The manager forgot a watched unit.
    Gone(UnitId),
    /// The manager began to read all units' files again; until it ends, states are not to be trusted.
    ReloadBegan,
    /// It has read them.
    ReloadEnded,
    /// So many changes came faster than this process could take them in, before any reader had them.
    Missed(u64),
    /// The manager cannot be heard any more. Jobs under way end as [`super::ManagerError::Interrupted`].
    Disconnected {
        /// Why.
        reason: String,
    },
    /// It can be heard again, and all watched units have been looked at: every difference came before this as a
    /// [`EventKind::Changed`] with `found_late`.
    Resynchronised {
        /// How long it could not be heard.
        gap: Duration,
    },
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// When this process heard of it.
    pub heard: Instant,
    /// What.
    pub kind: EventKind,
}

impl Event {
    /// Something heard of now.
    pub(crate) fn now(kind: EventKind) -> Self {
        Self { heard: Instant::now(), kind }
    }

    /// The unit it is about; none when it is about the manager.
    pub fn unit(&self) -> Option<&UnitId> {
        match &self.kind {
            EventKind::Changed(change) => Some(&change.unit),
            EventKind::JobRemoved { unit, .. } | EventKind::Appeared(unit) | EventKind::Gone(unit) => Some(unit),
            EventKind::ReloadBegan
            | EventKind::ReloadEnded
            | EventKind::Missed(_)
            | EventKind::Disconnected { .. }
            | EventKind::Resynchronised { .. } => None,
        }
    }
}
