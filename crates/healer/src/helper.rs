//! The root helper: what the healer needs and systemd lets no other user do, and nothing besides.
//!
//! It is a process of its own (`lares serve helper`). systemd starts it when somebody connects to its socket, and it leaves
//! when nobody does any more.
//!
//! ```text
//! healer ── Client ── socket ── serve ─┬─ polkit       may this caller do this?
//!                                      ├─ rules        does the configuration allow it, with what is there now?
//!                                      └─ drop-ins, processes, generations, systemd
//! ```
//!
//! One JSON object a line each way: a [`Verb`], then its [`Answer`]. The caller is never believed: the helper reads the
//! configuration itself, looks at the unit itself, and writes down every call.

mod bus;
mod client;
mod dropin;
mod generation;
mod process;
mod rules;
mod server;

use lares_units::port::UnitId;
use serde::{Deserialize, Serialize};

use crate::facts::Holder;

pub use client::{Client, HelperError};
pub(crate) use dropin::is_moved;
pub use server::{ServeError, serve};

/// Longest request or answer, in bytes.
const LINE: u64 = 64 << 10;

/// What may be asked of the helper; a closed set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Verb {
    /// Who listens on a TCP port. Takes root to look into the processes of other users.
    Holder {
        /// The unit that wants the port; whose the holder is, is said from its side.
        unit: UnitId,
        /// The port.
        port: u16,
    },
    /// End a process that an earlier run of the unit left behind: SIGTERM, five seconds later SIGKILL.
    EndProcess {
        /// The unit.
        unit: UnitId,
        /// Its id.
        pid: i32,
        /// Its `starttime`, in clock ticks since boot; another process with the same id is not touched.
        started: u64,
    },
    /// Raise `MemoryMax` until the next boot.
    SetMemoryMax {
        /// The unit.
        unit: UnitId,
        /// Bytes.
        bytes: u64,
    },
    /// Let the unit listen elsewhere until the next boot, and tell the units that the configuration says need to know. It
    /// counts from their next start.
    SetPort {
        /// The unit.
        unit: UnitId,
        /// The port it gets.
        to: u16,
    },
    /// Switch back to an earlier system generation. The answer comes when that has begun.
    RollBack {
        /// Its number.
        to: u64,
    },
}

impl Verb {
    /// Its name on the wire and in the journal.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Holder { .. } => "holder",
            Self::EndProcess { .. } => "end_process",
            Self::SetMemoryMax { .. } => "set_memory_max",
            Self::SetPort { .. } => "set_port",
            Self::RollBack { .. } => "roll_back",
        }
    }

    /// polkit's action for it.
    pub const fn action(&self) -> &'static str {
        match self {
            Self::Holder { .. } => "org.lares.healer.holder",
            Self::EndProcess { .. } => "org.lares.healer.end-process",
            Self::SetMemoryMax { .. } => "org.lares.healer.set-memory-max",
            Self::SetPort { .. } => "org.lares.healer.set-port",
            Self::RollBack { .. } => "org.lares.healer.roll-back",
        }
    }

    /// The unit it is about; none for a roll back, which is about the whole system.
    pub const fn unit(&self) -> Option<&UnitId> {
        match self {
            Self::Holder { unit, .. }
            | Self::EndProcess { unit, .. }
            | Self::SetMemoryMax { unit, .. }
            | Self::SetPort { unit, .. } => Some(unit),
            Self::RollBack { .. } => None,
        }
    }
}

/// What the helper answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Done,
    /// Who listens; none: nobody does.
    Holder {
        /// The process.
        holder: Option<Holder>,
    },
    /// polkit does not allow it to this caller, or could not be asked.
    NotAllowed {
        /// Why.
        reason: String,
    },
    /// The configuration does not provide for it, or it would harm.
    Refused {
        /// Why.
        reason: String,
    },
    /// It was tried in vain.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Answer {
    /// Its name on the wire and in the journal.
    const fn name(&self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Holder { .. } => "holder",
            Self::NotAllowed { .. } => "not_allowed",
            Self::Refused { .. } => "refused",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
enum Obstacle {
    #[error("{0}")]
    NotAllowed(String),
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Failed(String),
}

impl From<Obstacle> for Answer {
    fn from(obstacle: Obstacle) -> Self {
        match obstacle {
            Obstacle::NotAllowed(reason) => Self::NotAllowed { reason },
            Obstacle::Refused(reason) => Self::Refused { reason },
            Obstacle::Failed(reason) => Self::Failed { reason },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;
    use crate::facts::Owner;

    fn units() -> impl Strategy<Value = UnitId> {
        "[A-Za-z0-9:_.\\\\@-]{1,60}\\.service".prop_map(|name| UnitId::new(name).unwrap())
    }

    fn verbs() -> impl Strategy<Value = Verb> {
        prop_oneof![
            (units(), any::<u16>()).prop_map(|(unit, port)| Verb::Holder { unit, port }),
            (units(), any::<i32>(), any::<u64>()).prop_map(|(unit, pid, started)| Verb::EndProcess {
                unit,
                pid,
                started
            }),
            (units(), any::<u64>()).prop_map(|(unit, bytes)| Verb::SetMemoryMax { unit, bytes }),
            (units(), any::<u16>()).prop_map(|(unit, to)| Verb::SetPort { unit, to }),
            any::<u64>().prop_map(|to| Verb::RollBack { to }),
        ]
    }

    proptest! {
        #[test]
        fn a_verb_goes_through_one_line(verb in verbs()) {
            let line = serde_json::to_string(&verb).unwrap();
            prop_assert!(!line.contains('\n'));
            let name = format!("{{\"verb\":\"{}\"", verb.name());
            prop_assert!(line.starts_with(&name));
            prop_assert_eq!(serde_json::from_str::<Verb>(&line).unwrap(), verb);
        }

        #[test]
        fn no_line_at_all_makes_it_panic(line in any::<Vec<u8>>()) {
            let _ = serde_json::from_slice::<Verb>(&line);
        }
    }

    #[test]
    fn only_what_is_meant_is_read() {
        for good in [
            r#"{"verb":"holder","unit":"app.service","port":9000}"#,
            r#"{"port":9000,"verb":"holder","unit":"app.service"}"#,
            r#"{"verb":"roll_back","to":41}"#,
        ] {
            assert!(serde_json::from_str::<Verb>(good).is_ok(), "{good}");
        }
        for bad in [
            r#"{"verb":"exec","command":"id"}"#,
            r#"{"verb":"roll_back","to":41,"profile":"/tmp/x"}"#,
            r#"{"verb":"roll_back","to":-1}"#,
            r#"{"verb":"set_port","unit":"app.service","to":70000}"#,
            r#"{"verb":"set_port","unit":"../app.service","to":9000}"#,
            r#"{"verb":"set_port","unit":"a/b.service","to":9000}"#,
            r#"{"verb":"set_port","unit":"a.service\nb","to":9000}"#,
            r#"{"verb":"set_memory_max","unit":"app.service"}"#,
            r#"{"unit":"app.service","port":9000}"#,
            r#"["holder"]"#,
            "",
        ] {
            assert!(serde_json::from_str::<Verb>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_go_through_one_line() {
        let holder = Holder { pid: 7, started: 9, command: "a\nb".into(), owner: Owner::Unit("x.service".into()) };
        for answer in [
            Answer::Done,
            Answer::Holder { holder: None },
            Answer::Holder { holder: Some(holder) },
            Obstacle::Refused("no\n".into()).into(),
        ] {
            let line = serde_json::to_string(&answer).unwrap();
            assert!(line.starts_with(&format!("{{\"answer\":\"{}\"", answer.name())) && !line.contains('\n'), "{line}");
            assert_eq!(serde_json::from_str::<Answer>(&line).unwrap(), answer);
        }
    }
}
