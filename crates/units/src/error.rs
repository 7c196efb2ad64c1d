//! What can go wrong between the supervisor and whoever uses it; a unit that fails is not an error here but its state.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::journal::LogLine;
use crate::name::UnitName;
use crate::status::State;

/// Why a supervisor could not be set up. Nothing was started then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SetupError {
    /// Two specs share a name.
    #[error("two units are called {0}: give each its own name")]
    Duplicate(UnitName),
    /// A unit comes after one that does not exist.
    #[error("unit {unit} comes after {after}, which does not exist")]
    UnknownAfter {
        /// The unit.
        unit: UnitName,
        /// What it names in `after`.
        after: UnitName,
    },
    /// Units wait for each other in a circle.
    #[error("these units wait for each other: {}", chain(.0))]
    Cycle(Vec<UnitName>),
    /// A probe cannot work.
    #[error("the probe of unit {unit} cannot work: {reason}")]
    Probe {
        /// The unit.
        unit: UnitName,
        /// Why.
        reason: String,
    },
    /// `setpriv` is not on PATH.
    #[error("setpriv is not on PATH: install util-linux, it ties the units to the life of the supervisor")]
    SetprivMissing,
    /// There is a `setpriv` that lacks what is needed.
    #[error("{path} has no option --pdeathsig: put setpriv of util-linux (2.33 or later) first on PATH")]
    SetprivUnfit {
        /// Where it was found.
        path: PathBuf,
    },
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] std::io::Error),
}

/// Why a start, stop or restart that somebody asked for did not come to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// There is no such unit.
    #[error("no unit is called {name:?}{}", suggestion(.nearest.as_ref()))]
    Unknown {
        /// What was asked for.
        name: String,
        /// The unit whose name is closest, if one is close.
        nearest: Option<UnitName>,
    },
    /// The supervisor is on its way out.
    #[error("the supervisor is shutting down; start it again first")]
    ShuttingDown,
    /// The unit was started, but is not active. The supervisor goes on trying.
    #[error("{0}")]
    NotActive(Box<UnreadyUnit>),
    /// The unit did not stop, not even after SIGKILL.
    #[error("unit {unit} is still there after SIGKILL (process {pid:?}); it probably waits in the kernel for a device")]
    NotStopped {
        /// The unit.
        unit: UnitName,
        /// Its main process.
        pid: Option<u32>,
    },
}

/// A unit that is not active, and the end of what it had to say.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnreadyUnit {
    /// Which unit.
    pub unit: UnitName,
    /// Where it is.
    pub state: State,
    /// Why.
    pub cause: String,
    /// Its last log lines, oldest first.
    pub lines: Vec<Arc<LogLine>>,
}

impl fmt::Display for UnreadyUnit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unit {} is {}: {}", self.unit, self.state, self.cause)?;
        for line in &self.lines {
            write!(f, "\n    {}", line.text)?;
        }
        Ok(())
    }
}

/// Not every unit became active in time.
#[derive(Debug, thiserror::Error)]
#[error("not ready:{}", .units.iter().map(|unit| format!("\n  {unit}")).collect::<String>())]
pub struct NotReady {
    /// The units that are not active.
    pub units: Vec<UnreadyUnit>,
}

fn chain(units: &[UnitName]) -> String {
    units.iter().map(UnitName::as_str).collect::<Vec<_>>().join(" after ")
}

fn suggestion(nearest: Option<&UnitName>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean {name}?"))
}
