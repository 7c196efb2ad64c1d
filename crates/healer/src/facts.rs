//! Everything that is known of a unit at one moment, as plain data. Whoever watches the machine fills it in; what is
//! decided follows from this alone.

use serde::{Deserialize, Serialize};

use crate::classify::Diagnosis;
use crate::moment::Moment;
pub use crate::patterns::Remedy as Lead;
use crate::symptom::Symptom;

/// Most lines that are kept as evidence.
const LINES: usize = 20;
/// Longest line that is kept, in characters.
const LINE: usize = 500;

/// `LoadState` of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Load {
    /// As it should be.
    #[default]
    Loaded,
    /// There is no such unit.
    NotFound,
    /// Its file makes no sense to systemd.
    BadSetting,
    /// Its file cannot be read.
    Error,
    /// An administrator forbids to start it.
    Masked,
}

/// `ActiveState` of a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Active {
    /// It runs. `reloading` and `refreshing` count as this.
    #[default]
    Active,
    /// On its way up, or waiting for an automatic restart.
    Activating,
    /// On its way down.
    Deactivating,
    /// Down.
    Inactive,
    /// Down because of a failure.
    Failed,
}

impl Active {
    /// Whether nothing of it runs.
    pub const fn is_down(self) -> bool {
        matches!(self, Self::Inactive | Self::Failed)
    }
}

/// What the unit's probe says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Probe {
    /// There is none.
    #[default]
    None,
    /// It has not ended yet since the unit came up.
    Pending,
    /// It answers.
    Green,
    /// It does not.
    Red {
        /// Failures in a row.
        times: u32,
    },
}

/// Who listens on a port that the unit wants.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// A process of an earlier run of the same unit, in its control group or with an old `INVOCATION_ID` of it, that is
    /// neither its main process nor below it.
    Orphan,
    /// A process of the unit's present run.
    Itself,
    /// A process of this unit.
    Unit(String),
    /// A process of no unit.
    Nobody,
}

/// A process that listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id; 0 where somebody listens whom nobody here may look at.
    pub pid: i32,
    /// `starttime` of `/proc/PID/stat`: with the id it names one process for ever.
    pub started: u64,
    /// Its command name.
    pub command: String,
    /// Whose it is.
    pub owner: Owner,
}

/// The file system the unit writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Where it is mounted.
    pub mount: String,
    /// Free bytes for the unit's user.
    pub free: u64,
    /// Whether that is too little to work with.
    pub full: bool,
}

/// Memory of the unit's control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Memory {
    /// `MemoryPeak`, bytes.
    pub peak: Option<u64>,
    /// `MemoryMax`, bytes; `None`: no limit.
    pub limit: Option<u64>,
    /// Kills for memory within the last hour, the one at hand included.
    pub kills: u32,
    /// Percent of the last ten seconds in which something on the machine waited for memory (`some avg10` of
    /// `/proc/pressure/memory`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<u32>,
}

/// A unit that this one needs, directly or through others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dependency {
    /// Its name.
    pub unit: String,
    /// What it needs itself.
    pub needs: Vec<String>,
    /// Its state.
    pub active: Active,
    /// `InvocationID` of its present or last run.
    pub invocation: String,
    /// Its probe.
    pub probe: Probe,
    /// Whether it may be acted on: the configuration names it, and nobody masked, paused or stopped it.
    pub ours: bool,
}

/// The last change of the system generation.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Switch {
    /// Number of the generation that came.
    pub generation: u64,
    /// Number of the one before it.
    pub previous: u64,
    /// Whether every symptom of the unit began after it, and soon.
    pub began_with_it: bool,
    /// Whether the unit's own closure changed in it.
    pub closure_changed: bool,
    /// Units whose closure changed in it and that failed since, this one included.
    pub failed_units: u32,
    /// Files in the store that define the unit and are others now, as `old → new`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<String>,
}

/// A pattern that matched lines of the run at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Match {
    /// Name of the pattern.
    pub pattern: String,
    /// What it leads to.
    pub lead: Lead,
    /// The lines.
    pub evidence: Vec<String>,
    /// Port the lines name.
    pub port: Option<u16>,
}

impl Match {
    /// What the classifier found in these lines.
    pub fn of(found: &Diagnosis, lines: &[&str]) -> Self {
        let shown = found.supporting.iter().filter_map(|index| lines.get(*index)).take(LINES);
        Self {
            pattern: found.best.pattern.clone(),
            lead: found.best.remedy,
            evidence: shown.map(|line| line.chars().take(LINE).collect()).collect(),
            port: found.best.evidence.get("port").and_then(|port| port.parse().ok()),
        }
    }
}

/// The file the lines name, as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its path.
    pub path: String,
    /// What is the matter with it.
    pub state: FileState,
    /// Owner, group and mode as `ls -l` shows them; empty when there is no file.
    pub access: String,
    /// The nearest path that exists, when this one does not.
    pub nearest: Option<String>,
    /// Name under which the configuration declares it as a model with a hash, so that it can be fetched.
    pub declared: Option<String>,
}

/// What is the matter with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileState {
    /// Nothing: it is there, whole, and the unit's user may use it.
    Good,
    /// It is not there.
    Missing,
    /// The unit's user may not use it.
    Forbidden,
    /// Shorter than its header says, or not what its hash says.
    Corrupt,
}

/// The lock a database is refused over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// Unit of the database.
    pub database: String,
    /// Other units that use it and may be acted on.
    pub clients: Vec<String>,
    /// Who holds it.
    pub holder: LockHolder,
    /// Whether the database's unit may be acted on.
    pub ours: bool,
}

/// Who holds a lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockHolder {
    /// A process that uses processor time or input and output.
    Working {
        /// Its id.
        pid: i32,
    },
    /// A process that lives and does nothing.
    Idle {
        /// Its id.
        pid: i32,
    },
    /// A process that is gone.
    Dead,
    /// Nobody: the lock is free now.
    Free,
    /// It could not be found out.
    Unknown,
}

/// When the first of some symptoms was noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Noticed {
    /// When it happened, by the service manager's own stamp where there is one; else when it was heard of.
    pub began: Moment,
    /// Microseconds from that stamp until it was heard of.
    pub heard_after_us: Option<u64>,
}

/// A unit at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Facts {
    /// Its name.
    pub unit: String,
    /// What was seen since the last facts of it.
    pub symptoms: Vec<Symptom>,
    /// When the first of them was noticed; unset: only now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub noticed: Option<Noticed>,
    /// `LoadState`.
    pub load: Load,
    /// `ActiveState`.
    pub active: Active,
    /// `InvocationID` of the present or last run.
    pub invocation: String,
    /// `Result`.
    pub result: String,
    /// Status of the last main process, when it exited by itself.
    pub exit_status: Option<i32>,
    /// `NRestarts`.
    pub restarts: u32,
    /// Failures in a row that were alike and came within a second of the start.
    pub quick_failures: u32,
    /// Whether the service manager will start it again by itself: `Restart=` covers this end and no limit is reached.
    pub manager_restarts: bool,
    /// Whether a job for it waits or runs.
    pub job_queued: bool,
    /// Whether somebody asked the service manager to stop it, and we did not.
    pub stopped_by_operator: bool,
    /// Whether a pause is in force for it.
    pub paused: bool,
    /// Whether the machine goes down.
    pub shutting_down: bool,
    /// Whether `nixos-rebuild` or `switch-to-configuration` runs.
    pub rebuilding: bool,
    /// Its probe.
    pub probe: Probe,
    /// Who listens on the port that the matched pattern names.
    pub port_holder: Option<Holder>,
    /// First free port of the range the unit may move to.
    pub free_port: Option<u16>,
    /// Units that are told the port of this one, and have to be started again when it moves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub told_port: Vec<String>,
    /// The file system it writes to.
    pub disk: Option<Disk>,
    /// Its memory.
    pub memory: Memory,
    /// What it needs, all the way down.
    pub dependencies: Vec<Dependency>,
    /// The last change of generation, if there was one.
    pub switch: Option<Switch>,
    /// Pattern that matched lines of this run.
    pub matched: Option<Match>,
    /// The file those lines name.
    pub file: Option<File>,
    /// The lock those lines are about.
    pub lock: Option<Lock>,
    /// What an unknown failure looks like: the fingerprint of its lines.
    pub fingerprint: Option<String>,
    /// What the unit itself said last in this run while it is not up, without what may be a secret: at most 20 lines of
    /// at most 500 characters, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub said: Vec<String>,
}

impl Facts {
    /// A unit that runs and of which nothing bad is known.
    pub fn healthy(unit: &str) -> Self {
        Self { unit: unit.to_owned(), ..Self::default() }
    }

    /// Whether it runs and its probe, if any, answers.
    pub fn is_up(&self) -> bool {
        self.load == Load::Loaded && self.active == Active::Active && matches!(self.probe, Probe::None | Probe::Green)
    }

    /// What the failure is known by: the pattern, else the fingerprint, else nothing.
    pub fn known_as(&self) -> &str {
        self.matched.as_ref().map(|m| m.pattern.as_str()).or(self.fingerprint.as_deref()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::classify::{Classifier, Entry};

    #[test]
    fn a_line_of_the_journal_becomes_a_match_with_its_port() {
        let lines = ["starting", "OSError: [Errno 98] Address already in use: ('127.0.0.1', 8080)"];
        let found = Classifier::builtin().diagnose(&lines.map(Entry::text)).unwrap();
        let matched = Match::of(&found, &lines);
        assert_eq!((matched.lead, matched.port), (Lead::ReassignPort, Some(8080)));
        assert_eq!(matched.evidence, [lines[1]]);
    }
}
