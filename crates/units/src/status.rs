//! What the supervisor tells about its units; these types go out as JSON.

use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::name::UnitName;
use crate::usage::Usage;

/// Where a unit is in its life; the words are the service manager's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not running, and not meant to.
    Inactive,
    /// On its way up: waiting for other units, started but not ready yet, or about to be started again.
    Activating,
    /// Running and ready.
    Active,
    /// Asked to stop, not gone yet.
    Deactivating,
    /// Failed several times in a row; the next try comes after the longest delays.
    Failed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Inactive => "inactive",
            Self::Activating => "activating",
            Self::Active => "active",
            Self::Deactivating => "deactivating",
            Self::Failed => "failed",
        })
    }
}

/// How a unit's main process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Exit {
    /// It ended by itself.
    Code {
        /// Its exit status.
        code: i32,
    },
    /// A signal ended it.
    Signal {
        /// The signal's number.
        signal: i32,
    },
    /// It could not be started at all.
    NotStarted {
        /// Why.
        error: String,
    },
    /// It is gone, but the kernel would not tell how.
    Unknown {
        /// What the kernel said instead.
        error: String,
    },
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code { code } => write!(f, "exited with code {code}"),
            Self::Signal { signal } => match Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            Self::NotStarted { error } => write!(f, "could not be started: {error}"),
            Self::Unknown { error } => write!(f, "ended in an unknown way: {error}"),
        }
    }
}

/// A unit as it is now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UnitStatus {
    /// Its name.
    pub name: UnitName,
    /// What it does.
    pub description: String,
    /// Anything worth showing next to it, such as an address.
    pub detail: Option<String>,
    /// Where it is in its life.
    pub state: State,
    /// Why it is there, in words.
    pub cause: String,
    /// Since when.
    pub since: Timestamp,
    /// Its main process, while there is one.
    pub pid: Option<u32>,
    /// How often it was started again without anybody asking, since the supervisor started.
    pub restarts: u64,
    /// How its main process ended the last time.
    pub last_exit: Option<Exit>,
    /// From the start of the current process to readiness. Milliseconds in JSON.
    #[serde(rename = "ready_after_ms", with = "milliseconds")]
    pub ready_after: Option<Duration>,
    /// The last outage: from the moment its death or sickness was noticed until it was ready again. Milliseconds in JSON.
    #[serde(rename = "last_recovery_ms", with = "milliseconds")]
    pub last_recovery: Option<Duration>,
    /// What its processes use now; none while it has no process.
    pub usage: Option<Usage>,
    /// Log lines that did not reach its log file because the disk was full or too slow.
    pub log_lines_dropped: u64,
}

/// A unit went from one state to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Change {
    /// Which unit.
    pub unit: UnitName,
    /// Where it was.
    pub from: State,
    /// Where it is now.
    pub to: State,
    /// When.
    pub at: Timestamp,
    /// Why, in words.
    pub cause: String,
}

/// Durations in JSON as milliseconds with microseconds behind the point.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|value| value.as_micros() as f64 / 1000.0).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        Option::<f64>::deserialize(deserializer)?
            .map(|value| Duration::try_from_secs_f64(value / 1000.0).map_err(serde::de::Error::custom))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_status_goes_through_json_unchanged() {
        let status = UnitStatus {
            name: UnitName::new("llama").unwrap(),
            description: "model server".into(),
            detail: Some("127.0.0.1:8080".into()),
            state: State::Active,
            cause: "ready".into(),
            since: "2026-01-02T03:04:05Z".parse().unwrap(),
            pid: Some(42),
            restarts: 3,
            last_exit: Some(Exit::Signal { signal: 9 }),
            ready_after: Some(Duration::from_micros(1_234_500)),
            last_recovery: None,
            usage: None,
            log_lines_dropped: 0,
        };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["state"], "active");
        assert_eq!(json["ready_after_ms"], 1234.5);
        assert_eq!(json["last_exit"], serde_json::json!({"kind": "signal", "signal": 9}));
        assert_eq!(serde_json::from_value::<UnitStatus>(json).unwrap(), status);
    }

    #[test]
    fn an_exit_reads_as_words() {
        assert_eq!(Exit::Signal { signal: 9 }.to_string(), "killed by SIGKILL");
        assert_eq!(Exit::Code { code: 3 }.to_string(), "exited with code 3");
    }
}
