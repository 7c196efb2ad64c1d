//! What is in the journal about a unit, and how to ask for it.

use std::borrow::Cow;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::id::{InvocationId, UnitId};

/// A line written at the moment of death comes into the journal up to this much after the news of the death.
pub const SETTLE: Duration = Duration::from_millis(50);

/// Who wrote an entry; it comes from what the journal itself vouches for, not from what the writer claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// A process of the unit.
    Unit,
    /// The manager, about the unit.
    Manager,
    /// The kernel; which unit it is about, if any, stands in the text only.
    Kernel,
}

/// One field of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Field {
    /// Its name. Those that begin with `_` come from the journal, the others from whoever wrote the entry.
    pub name: String,
    /// Its content; bytes that are not UTF-8 are replaced.
    pub value: String,
    /// Whether more followed than is kept.
    pub cut: bool,
}

/// One entry of the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Entry {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// When, on CLOCK_MONOTONIC of that boot; none where it is not known.
    pub monotonic: Option<Duration>,
    /// Who wrote it.
    pub origin: Origin,
    /// The unit it is about; none for the kernel's.
    pub unit: Option<UnitId>,
    /// The run it is about. It can be missing for a process that ended at once.
    pub invocation: Option<InvocationId>,
    /// The text.
    pub message: String,
    /// 0 (emergency) to 7 (debug).
    pub priority: Option<u8>,
    /// The process that wrote it.
    pub pid: Option<u32>,
    /// All fields, `MESSAGE` too, in the order of the journal. Empty for the child-process supervisor.
    pub fields: Vec<Field>,
}

impl Entry {
    /// The first field of this name.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|field| field.name == name).map(|field| field.value.as_str())
    }

    /// Whether the text of some field is not all there.
    pub fn is_cut(&self) -> bool {
        self.fields.iter().any(|field| field.cut)
    }

    /// The text on one line.
    pub fn line(&self) -> Cow<'_, str> {
        if self.message.contains('\n') { self.message.replace('\n', " ⏎ ").into() } else { (&self.message).into() }
    }
}

/// Which entries to look for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// About this unit.
    pub unit: UnitId,
    /// Of this run; entries of the unit that name no run count if they are in the window. Unset: of every run.
    pub invocation: Option<InvocationId>,
    /// The window's beginning by the wall clock; unset: as far back as the journal goes, but then only for entries that
    /// name the run.
    pub since: Option<Timestamp>,
    /// The window's end; unset: now.
    pub until: Option<Timestamp>,
    /// The kernel's lines of the window as well.
    pub kernel: bool,
    /// At most so many, the last ones.
    pub count: usize,
    /// How long to wait for lines that are on their way. Zero: not at all.
    pub settle: Duration,
}

impl Question {
    /// The last 100 entries of a unit, without waiting.
    pub fn new(unit: UnitId) -> Self {
        Self { unit, invocation: None, since: None, until: None, kernel: false, count: 100, settle: Duration::ZERO }
    }

    /// The last 100 entries of a run that has just ended, with the kernel's lines since `since`, after waiting for the last
    /// words of it.
    pub fn about_the_end(unit: UnitId, invocation: Option<InvocationId>, since: Option<Timestamp>) -> Self {
        Self { invocation, since, kernel: since.is_some(), settle: SETTLE, ..Self::new(unit) }
    }
}
