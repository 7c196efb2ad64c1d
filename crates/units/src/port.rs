//! The port to a service manager: everything that watches units or acts on them goes through [`Manager`].
//!
//! ```text
//! whoever watches ── Manager ─┬─ Systemd    D-Bus and the journal's files
//!                             └─ Children   the child-process supervisor behind `lares up`
//! ```
//!
//! What one of the two cannot know is an `Option`, never a made-up value.

mod entry;
mod event;
mod facts;
mod id;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

pub use entry::{Entry, Field, Origin, Question, SETTLE};
pub use event::{Event, EventKind, JobOutcome, StateChange};
pub use facts::{
    ActiveState, Facts, Job, Listed, LoadState, Memory, Relations, RestartSettings, RunResult, Standing, Times,
};
pub use id::{InvocationId, UnitId, UnitIdError};

use crate::feed::Feed;

/// What somebody wants done with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// Start it; nothing happens when it is active.
    Start,
    /// Stop it.
    Stop,
    /// Stop it if it runs, and start it.
    Restart,
    /// Forget that it failed, and how often it was started.
    ResetFailed,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::ResetFailed => "reset-failed",
        })
    }
}

/// Why a manager did not do or tell what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum ManagerError {
    /// There is no such unit.
    #[error("there is no unit {0}")]
    Unknown(UnitId),
    /// The unit is masked: somebody forbade starting it.
    #[error("unit {0} is masked; `systemctl unmask {0}` allows it again")]
    Masked(UnitId),
    /// The manager does not allow it to whoever asks.
    #[error("not allowed to {verb} {unit}: {reason}")]
    Denied {
        /// The unit.
        unit: UnitId,
        /// What was asked.
        verb: Verb,
        /// What the manager said.
        reason: String,
    },
    /// Another job for the unit, or for one that it needs, is queued, and this one would cancel it.
    #[error("a job that is queued already is in the way of {verb} {unit}: {reason}")]
    Conflict {
        /// The unit.
        unit: UnitId,
        /// What was asked.
        verb: Verb,
        /// What the manager said.
        reason: String,
    },
    /// The manager refused for another reason: the unit's file is bad, it cannot be started by hand, the machine shuts down.
    #[error("the service manager refuses to {verb} {unit}: {reason}")]
    Refused {
        /// The unit.
        unit: UnitId,
        /// What was asked.
        verb: Verb,
        /// What the manager said.
        reason: String,
    },
    /// The job did not end in the time it was given; it is still queued or running.
    #[error("{verb} {unit} has not ended within {} s", .waited.as_secs_f64())]
    Patience {
        /// The unit.
        unit: UnitId,
        /// What was asked.
        verb: Verb,
        /// How long was waited.
        waited: Duration,
    },
    /// The connection went away while the job was under way: how it ended is not known. Ask for the unit's facts.
    #[error("the connection was lost while {verb} {unit} was under way; how it ended is not known")]
    Interrupted {
        /// The unit.
        unit: UnitId,
        /// What was asked.
        verb: Verb,
    },
    /// The manager cannot be reached, or is on its way out.
    #[error("the service manager cannot be reached: {0}")]
    Unavailable(String),
    /// The manager's answer is none that this program knows, or an error it has no name for.
    #[error("the service manager answers what is not understood: {0}")]
    Protocol(String),
    /// The journal cannot be read.
    #[error("the journal cannot be read: {0}")]
    Journal(String),
}

impl ManagerError {
    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Interrupted { .. } | Self::Patience { .. } | Self::Conflict { .. })
    }
}

/// A service manager.
///
/// Nothing here waits without a bound: what takes patience says how long, everything else is answered or given up within
/// seconds ([`ManagerError::Unavailable`]).
#[async_trait]
pub trait Manager: fmt::Debug + Send + Sync {
    /// Units with names like these (`*` and `?` stand for any text and any letter), loaded ones only, in the order of their
    /// names; all of them when `patterns` is empty.
    async fn list(&self, patterns: &[&str]) -> Result<Vec<Listed>, ManagerError>;

    /// Everything known about one unit.
    async fn facts(&self, unit: &UnitId) -> Result<Facts, ManagerError>;

    /// Starts a unit and waits for the end of the job. Anything but [`JobOutcome::Done`] means that it is not up.
    async fn start(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError>;

    /// Stops a unit and waits for the end of the job.
    async fn stop(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError>;

    /// Restarts a unit, or starts it if it is down, and waits for the end of the job.
    async fn restart(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError>;

    /// Makes a failed unit inactive and forgets how often it was started, so that a start limit is no longer in the way.
    async fn reset_failed(&self, unit: &UnitId) -> Result<(), ManagerError>;

    /// From now on [`Manager::events`] and [`Manager::entries`] tell of these units too. Gives each as it is now, in the
    /// order asked for; a unit that is not there is [`LoadState::NotFound`] and is told of when it appears.
    ///
    /// Call [`Manager::events`] first, and nothing is lost in between.
    async fn watch(&self, units: &[UnitId]) -> Result<Vec<Listed>, ManagerError>;

    /// Ends what [`Manager::watch`] began.
    async fn unwatch(&self, units: &[UnitId]);

    /// What happens to the watched units and to the manager, from now on.
    fn events(&self) -> Feed<Event>;

    /// The last journal entries that answer a question, oldest first.
    async fn recent(&self, question: &Question) -> Result<Vec<Arc<Entry>>, ManagerError>;

    /// What the watched units write, what the manager says of them, and the kernel's lines, from now on.
    async fn entries(&self) -> Result<Feed<Arc<Entry>>, ManagerError>;
}
