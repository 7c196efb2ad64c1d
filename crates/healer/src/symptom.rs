//! What was seen first: the reason an incident begins.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing that is wrong with a unit. It comes from a signal of the service manager, a line of the journal or a
/// probe; `failed` may last only a millisecond, so it is taken from the signal and not looked up afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Symptom {
    /// It failed with a result that has no symptom of its own (`protocol`, `resources`, `exec-condition`, …).
    Failed {
        /// `Result` of the unit.
        result: String,
    },
    /// The service manager refuses to start it once more.
    StartLimitHit,
    /// The kernel or systemd-oomd killed the main process, or only a child of it.
    OomKill {
        /// Whether it was the main process.
        main: bool,
    },
    /// It did not tell the watchdog that it is alive.
    Watchdog,
    /// It did not start or stop in time.
    Timeout,
    /// The main process ended with this status.
    ExitCode {
        /// From 1 to 255.
        status: i32,
    },
    /// A signal ended the main process.
    Signal {
        /// Number of the signal.
        signal: i32,
    },
    /// It runs and does not answer.
    ProbeFailing {
        /// Probes that failed in a row.
        times: u32,
        /// What the last one said.
        error: String,
    },
    /// The service manager restarts it again and again without ever calling it failed.
    RestartLoop {
        /// Restarts seen.
        restarts: u32,
    },
    /// It should run and does not, and nothing failed.
    InactiveUnexpectedly,
    /// Its start was called off because a unit it requires did not start.
    DependencyFailed,
}

impl Symptom {
    /// What systemd's `Result` and `ExecMainStatus` stand for; `None` for `success`.
    pub fn of_result(result: &str, status: i32) -> Option<Self> {
        Some(match result {
            "success" | "" => return None,
            "start-limit-hit" => Self::StartLimitHit,
            "oom-kill" => Self::OomKill { main: true },
            "watchdog" => Self::Watchdog,
            "timeout" => Self::Timeout,
            "exit-code" => Self::ExitCode { status },
            "signal" | "core-dump" => Self::Signal { signal: status },
            other => Self::Failed { result: other.to_owned() },
        })
    }
}

impl Symptom {
    /// Whether it is a number that goes up while the same goes on.
    pub(crate) const fn counts(&self) -> bool {
        matches!(self, Self::ProbeFailing { .. } | Self::RestartLoop { .. })
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { result } => write!(f, "failed with result {result}"),
            Self::StartLimitHit => write!(f, "start limit hit"),
            Self::OomKill { main: true } => write!(f, "main process killed for memory"),
            Self::OomKill { main: false } => write!(f, "a child process killed for memory"),
            Self::Watchdog => write!(f, "watchdog not served"),
            Self::Timeout => write!(f, "timed out"),
            Self::ExitCode { status } => write!(f, "exited with status {status}"),
            Self::Signal { signal } => write!(f, "killed by signal {signal}"),
            Self::ProbeFailing { times, error } => write!(f, "{times} probes in a row failed: {error}"),
            Self::RestartLoop { restarts } => write!(f, "restarted {restarts} times without coming up"),
            Self::InactiveUnexpectedly => write!(f, "inactive although it should run"),
            Self::DependencyFailed => write!(f, "not started: a unit it requires failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_systemd_become_symptoms() {
        assert_eq!(Symptom::of_result("success", 0), None);
        assert_eq!(Symptom::of_result("exit-code", 78), Some(Symptom::ExitCode { status: 78 }));
        assert_eq!(Symptom::of_result("core-dump", 11), Some(Symptom::Signal { signal: 11 }));
        assert_eq!(Symptom::of_result("resources", 0), Some(Symptom::Failed { result: "resources".into() }));
        assert_eq!(
            Symptom::of_result("oom-kill", 9).map(|s| s.to_string()).as_deref(),
            Some("main process killed for memory")
        );
    }
}
