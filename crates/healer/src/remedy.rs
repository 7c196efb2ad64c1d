//! What may be done: a closed set of typed remedies, each a short list of typed steps.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::facts::Facts;

/// One way to bring a unit back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Remedy {
    /// Bring it up afresh, whatever state it is in.
    Restart,
    /// Bring these up in this order, each until it answers, then the unit.
    RestartDependencies {
        /// What is down, what others need first.
        units: Vec<String>,
    },
    /// Restart the database and then everything that uses it.
    RestartDatabase {
        /// Its unit.
        database: String,
        /// Units that use it besides this one.
        clients: Vec<String>,
    },
    /// End a process that an earlier run of the same unit left, then bring the unit up.
    EndOrphan {
        /// Its id.
        pid: i32,
        /// Its `starttime`; another process with the same id is not touched.
        started: u64,
    },
    /// Let the unit listen elsewhere until the next boot, then bring it up.
    ReassignPort {
        /// The port that is taken.
        from: u16,
        /// The port it gets.
        to: u16,
    },
    /// Give it more memory until the next boot, then bring it up.
    RaiseMemory {
        /// New `MemoryMax`, bytes.
        to: u64,
    },
    /// Fetch a model that the configuration declares with a hash, then bring the unit up.
    FetchModel {
        /// Its name in the configuration.
        model: String,
    },
    /// Stop it: running it does more harm than not.
    Stop,
    /// Go back to an earlier system generation. A person is always asked.
    Rollback {
        /// Generation to leave.
        from: u64,
        /// Generation to go to.
        to: u64,
    },
}

impl Remedy {
    /// The name it has in tables, metrics and the journal.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Restart => "restart",
            Self::RestartDependencies { .. } => "restart_dependencies",
            Self::RestartDatabase { .. } => "restart_database",
            Self::EndOrphan { .. } => "end_orphan",
            Self::ReassignPort { .. } => "reassign_port",
            Self::RaiseMemory { .. } => "raise_memory",
            Self::FetchModel { .. } => "fetch_model",
            Self::Stop => "stop",
            Self::Rollback { .. } => "rollback",
        }
    }

    /// The steps, in order, for the unit these facts are of.
    pub fn steps(&self, facts: &Facts) -> Vec<Step> {
        let unit = || facts.unit.clone();
        let up = |steps: Vec<Step>| [steps, bring_up(&facts.unit, facts.active.is_down())].concat();
        match self {
            Self::Restart => up(Vec::new()),
            Self::RestartDependencies { units } => {
                let down = |unit: &str| facts.dependencies.iter().any(|d| d.unit == unit && d.active.is_down());
                let each =
                    |unit: &String| [bring_up(unit, down(unit)), vec![Step::Await { unit: unit.clone() }]].concat();
                up(units.iter().flat_map(each).collect())
            }
            Self::RestartDatabase { database, clients } => {
                let mut steps = vec![Step::Restart { unit: database.clone() }, Step::Await { unit: database.clone() }];
                steps.extend(clients.iter().map(|unit| Step::Restart { unit: unit.clone() }));
                up(steps)
            }
            Self::EndOrphan { pid, started } => up(vec![Step::EndProcess { pid: *pid, started: *started }]),
            Self::ReassignPort { from, to } => {
                let mut steps = up(vec![Step::SetPort { unit: unit(), from: *from, to: *to }]);
                steps.extend(facts.told_port.iter().map(|unit| Step::Restart { unit: unit.clone() }));
                steps
            }
            Self::RaiseMemory { to } => up(vec![Step::SetMemoryMax { unit: unit(), bytes: *to }]),
            Self::FetchModel { model } => up(vec![Step::FetchModel { model: model.clone() }]),
            Self::Stop => vec![Step::Stop { unit: unit() }],
            Self::Rollback { to, .. } => vec![Step::Rollback { to: *to }],
        }
    }
}

/// `ResetFailedUnit` comes before `StartUnit`, else the start limit refuses it.
fn bring_up(unit: &str, down: bool) -> Vec<Step> {
    let unit = unit.to_owned();
    if down {
        vec![Step::ResetFailed { unit: unit.clone() }, Step::Start { unit }]
    } else {
        vec![Step::Restart { unit }]
    }
}

/// One thing that is done, whole or not at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Step {
    /// Forget the failure and the start counter.
    ResetFailed {
        /// Which unit.
        unit: String,
    },
    /// Start it.
    Start {
        /// Which unit.
        unit: String,
    },
    /// Stop and start it.
    Restart {
        /// Which unit.
        unit: String,
    },
    /// Stop it.
    Stop {
        /// Which unit.
        unit: String,
    },
    /// Wait until a dependency is up. Nothing is done for this one but looking.
    Await {
        /// Which unit.
        unit: String,
    },
    /// End one process, if it still is that process.
    EndProcess {
        /// Its id.
        pid: i32,
        /// Its `starttime`.
        started: u64,
    },
    /// A runtime drop-in that changes the port, and what depends on it is told.
    SetPort {
        /// Which unit.
        unit: String,
        /// The port it had.
        from: u16,
        /// The port it gets.
        to: u16,
    },
    /// `MemoryMax`, at runtime.
    SetMemoryMax {
        /// Which unit.
        unit: String,
        /// Bytes.
        bytes: u64,
    },
    /// Download, verify and put into place.
    FetchModel {
        /// Its name in the configuration.
        model: String,
    },
    /// Switch to this system generation.
    Rollback {
        /// Its number.
        to: u64,
    },
}

impl Step {
    /// The unit it changes, if it changes one.
    pub fn unit(&self) -> Option<&str> {
        match self {
            Self::ResetFailed { unit }
            | Self::Start { unit }
            | Self::Restart { unit }
            | Self::Stop { unit }
            | Self::SetPort { unit, .. }
            | Self::SetMemoryMax { unit, .. } => Some(unit),
            Self::Await { .. } | Self::EndProcess { .. } | Self::FetchModel { .. } | Self::Rollback { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ResetFailed { unit } => write!(f, "reset-failed {unit}"),
            Self::Start { unit } => write!(f, "start {unit}"),
            Self::Restart { unit } => write!(f, "restart {unit}"),
            Self::Stop { unit } => write!(f, "stop {unit}"),
            Self::Await { unit } => write!(f, "wait for {unit}"),
            Self::EndProcess { pid, .. } => write!(f, "end process {pid}"),
            Self::SetPort { unit, from, to } => write!(f, "move {unit} from port {from} to {to}"),
            Self::SetMemoryMax { unit, bytes } => write!(f, "set MemoryMax of {unit} to {bytes} bytes"),
            Self::FetchModel { model } => write!(f, "fetch model {model}"),
            Self::Rollback { to } => write!(f, "switch to generation {to}"),
        }
    }
}
