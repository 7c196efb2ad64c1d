//! A unit as its manager describes it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::id::{InvocationId, UnitId};
use crate::status::{Exit, State};

/// An enum of the manager's words, with a variant for those of versions to come.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A word that this program does not know.
            Other(String),
        }

        impl $name {
            /// The manager's word for it.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $word,)*
                    Self::Other(word) => word,
                }
            }
        }

        impl From<&str> for $name {
            fn from(word: &str) -> Self {
                match word {
                    $($word => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl From<String> for $name {
            fn from(word: String) -> Self {
                Self::from(word.as_str())
            }
        }

        impl From<$name> for String {
            fn from(word: $name) -> Self {
                word.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.as_str())
            }
        }
    };
}
pub(super) use words;

words! {
    /// Whether the unit's definition was found and makes sense.
    LoadState {
        /// It was.
        Loaded = "loaded",
        /// There is no such unit.
        NotFound = "not-found",
        /// Its file says what cannot be.
        BadSetting = "bad-setting",
        /// Its file cannot be read.
        Error = "error",
        /// Somebody forbade starting it.
        Masked = "masked",
        /// It is another name of another unit.
        Merged = "merged",
        /// Not looked at yet.
        Stub = "stub",
    }
}

words! {
    /// Where a unit is in its life.
    ActiveState {
        /// Running and ready.
        Active = "active",
        /// Running, and reading its configuration again.
        Reloading = "reloading",
        /// Not running, without a failure.
        Inactive = "inactive",
        /// Not running, because it failed.
        Failed = "failed",
        /// On its way up, or waiting for its next automatic restart.
        Activating = "activating",
        /// On its way down.
        Deactivating = "deactivating",
        /// Its directory or device is being tended to.
        Maintenance = "maintenance",
        /// Running, and being given new mounts.
        Refreshing = "refreshing",
    }
}

impl From<State> for ActiveState {
    fn from(state: State) -> Self {
        match state {
            State::Inactive => Self::Inactive,
            State::Activating => Self::Activating,
            State::Active => Self::Active,
            State::Deactivating => Self::Deactivating,
            State::Failed => Self::Failed,
        }
    }
}

words! {
    /// How the last run of a unit ended, or goes so far. The next start resets it.
    RunResult {
        /// Nothing is wrong; also while it runs.
        Success = "success",
        /// Something it needs could not be had: its user, a file, a directory.
        Resources = "resources",
        /// It did not speak as its type promises.
        Protocol = "protocol",
        /// It did not start or stop in time.
        Timeout = "timeout",
        /// It ended with an exit status that means failure.
        ExitCode = "exit-code",
        /// A signal ended it.
        Signal = "signal",
        /// It dumped core.
        CoreDump = "core-dump",
        /// It did not say in time that it is alive.
        Watchdog = "watchdog",
        /// It was started too often in too short a time.
        StartLimitHit = "start-limit-hit",
        /// A process of it was ended for want of memory.
        OomKill = "oom-kill",
        /// Its own condition kept it from starting.
        ExecCondition = "exec-condition",
    }
}

impl RunResult {
    /// Whether something went wrong.
    pub fn is_failure(&self) -> bool {
        !matches!(self, Self::Success | Self::ExecCondition)
    }
}

/// Where a unit is in its life, coarse and fine.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Standing {
    /// The state that all kinds of units share.
    pub active: ActiveState,
    /// The state that its kind has: `running`, `auto-restart`, `start-pre`, … The child-process supervisor has the same word
    /// here as in `active`, but `auto-restart` between a failure and the next try.
    pub sub: String,
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.active, self.sub)
    }
}

/// A job in the manager's queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: u32,
    /// What it will do: `start`, `stop`, `restart`, …; none where only the number is known.
    pub kind: Option<String>,
}

/// A unit in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Listed {
    /// Its own name, which is what events carry, even when it was asked for by another name (an alias).
    pub unit: UnitId,
    /// What it does.
    pub description: String,
    /// Whether its definition was found.
    pub load: LoadState,
    /// Where it is in its life.
    pub standing: Standing,
    /// The job queued for it.
    pub job: Option<Job>,
}

/// Memory of a unit's control group, in bytes. The child-process supervisor knows only the present use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// In use now.
    pub current: Option<u64>,
    /// The most there was since the start (systemd 255 and later).
    pub peak: Option<u64>,
    /// Where the kernel ends processes; none without a limit.
    pub max: Option<u64>,
    /// Where the kernel slows the unit down; none without a limit.
    pub high: Option<u64>,
}

/// When a unit is started again without anybody asking.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RestartSettings {
    /// `no`, `on-failure`, `always`, …; `always` for the child-process supervisor.
    pub policy: String,
    /// Wait before it.
    pub delay: Duration,
    /// So many starts …
    pub limit_burst: Option<u32>,
    /// … within this time, and there are no more. Zero: no limit.
    pub limit_interval: Option<Duration>,
}

impl RestartSettings {
    /// Whether the manager starts the unit again after a failure.
    pub fn restarts_failures(&self) -> bool {
        !matches!(self.policy.as_str(), "" | "no" | "on-success")
    }
}

/// Who a unit depends on and who depends on it, by systemd's names for both directions.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Relations {
    /// It does not run without these.
    pub requires: Vec<UnitId>,
    /// These do not run without it.
    pub required_by: Vec<UnitId>,
    /// It is not even started unless these run.
    pub requisite: Vec<UnitId>,
    /// These are not even started unless it runs.
    pub requisite_of: Vec<UnitId>,
    /// These are started with it, and may fail.
    pub wants: Vec<UnitId>,
    /// These start it.
    pub wanted_by: Vec<UnitId>,
    /// It ends when one of these does, for whatever reason.
    pub binds_to: Vec<UnitId>,
    /// These end when it does.
    pub bound_by: Vec<UnitId>,
    /// It is stopped and restarted with these.
    pub part_of: Vec<UnitId>,
    /// These are stopped and restarted with it.
    pub consists_of: Vec<UnitId>,
    /// These are kept up while it is up.
    pub upholds: Vec<UnitId>,
    /// These keep it up.
    pub upheld_by: Vec<UnitId>,
    /// It starts after these.
    pub after: Vec<UnitId>,
    /// It starts before these.
    pub before: Vec<UnitId>,
    /// These are started when it fails.
    pub on_failure: Vec<UnitId>,
    /// Sockets, timers and paths that start it.
    pub triggered_by: Vec<UnitId>,
}

impl Relations {
    /// Units that have to be up for this one to be: `Requires=`, `Requisite=` and `BindsTo=`, each once.
    pub fn needed(&self) -> Vec<UnitId> {
        once(&[&self.requires, &self.requisite, &self.binds_to])
    }

    /// Units that need this one, each once.
    pub fn needed_by(&self) -> Vec<UnitId> {
        once(&[&self.required_by, &self.requisite_of, &self.bound_by])
    }
}

fn once(lists: &[&Vec<UnitId>]) -> Vec<UnitId> {
    let mut found: Vec<UnitId> = Vec::new();
    for unit in lists.iter().copied().flatten() {
        if !found.contains(unit) {
            found.push(unit.clone());
        }
    }
    found
}

/// Moments of a unit's life on CLOCK_MONOTONIC: time since boot, without suspend. None: it has not happened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Times {
    /// It left `inactive`: the beginning of this run.
    pub inactive_exit: Option<Duration>,
    /// It became active.
    pub active_enter: Option<Duration>,
    /// It was no longer active.
    pub active_exit: Option<Duration>,
    /// It became inactive or failed.
    pub inactive_enter: Option<Duration>,
    /// Its state changed.
    pub state_change: Option<Duration>,
    /// Its main process was started.
    pub main_start: Option<Duration>,
    /// Its main process ended.
    pub main_exit: Option<Duration>,
    /// The beginning of this run by the wall clock, which may have been set since; for looking into the journal.
    pub began: Option<jiff::Timestamp>,
}

/// Everything known about one unit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Facts {
    /// Its own name.
    pub unit: UnitId,
    /// What it does.
    pub description: String,
    /// Whether its definition was found.
    pub load: LoadState,
    /// Why it was not.
    pub load_error: Option<String>,
    /// Where it is in its life.
    pub standing: Standing,
    /// How its last run ended.
    pub result: Option<RunResult>,
    /// How its main process ended the last time; none while none has.
    pub main_exit: Option<Exit>,
    /// Its main process.
    pub main_pid: Option<u32>,
    /// Automatic restarts since somebody started it. The child-process supervisor counts from its own start.
    pub restarts: Option<u32>,
    /// Its present or last run.
    pub invocation: Option<InvocationId>,
    /// Whether it starts at boot: `enabled`, `static`, `masked`, …
    pub file_state: Option<String>,
    /// The job queued for it.
    pub job: Option<Job>,
    /// Its control group, below where cgroup2 is mounted.
    pub cgroup: Option<String>,
    /// Its memory.
    pub memory: Memory,
    /// Processes ended by the kernel for want of memory since the start (systemd 259 and later).
    pub oom_kills: Option<u64>,
    /// What happens when one is: `stop`, `kill`, `continue`.
    pub oom_policy: Option<String>,
    /// When it is started again without anybody asking.
    pub restart: RestartSettings,
    /// The file that defines it.
    pub fragment: Option<PathBuf>,
    /// Files that add to it.
    pub drop_ins: Vec<PathBuf>,
    /// Whether those files changed since they were read.
    pub needs_reload: Option<bool>,
    /// The program that its main process runs.
    pub program: Option<PathBuf>,
    /// Its kind of start: `simple`, `notify`, `oneshot`, …
    pub kind: Option<String>,
    /// Who depends on whom.
    pub relations: Relations,
    /// When what happened.
    pub times: Times,
}

impl Facts {
    /// Whether somebody forbade starting it.
    pub fn is_masked(&self) -> bool {
        self.load == LoadState::Masked || self.file_state.as_deref().is_some_and(|state| state.starts_with("masked"))
    }
}
