//! What a unit is, as whoever composes the stack describes it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::name::UnitName;
use crate::probe::Probe;

/// The uid and gid a unit runs as; only a supervisor running as root can change them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credentials {
    /// User id.
    pub uid: u32,
    /// Primary group id; further groups are those the user database knows for the uid, or none.
    pub gid: u32,
}

impl From<(u32, u32)> for Credentials {
    fn from((uid, gid): (u32, u32)) -> Self {
        Self { uid, gid }
    }
}

/// The signal that asks a unit to stop by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StopSignal {
    /// SIGTERM, what most programs expect.
    #[default]
    Terminate,
    /// SIGINT; PostgreSQL's "fast shutdown".
    Interrupt,
    /// SIGQUIT.
    Quit,
}

impl StopSignal {
    pub(crate) fn signal(self) -> Signal {
        match self {
            Self::Terminate => Signal::SIGTERM,
            Self::Interrupt => Signal::SIGINT,
            Self::Quit => Signal::SIGQUIT,
        }
    }
}

/// How an active unit is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Liveness {
    /// Time between two probes of an active unit.
    pub interval: Duration,
    /// So many failures in a row make the unit sick: it is stopped and started again.
    pub failures: u32,
}

impl Liveness {
    /// Rare enough to cost nothing, often enough that a hung unit is back within half a minute.
    pub const INTERVAL: Duration = Duration::from_secs(5);
    /// One lost probe is a busy machine and two can be one long stall; three in a row, each with its own
    /// time limit, last longer than any healthy unit is silent.
    pub const FAILURES: u32 = 3;
}

impl Default for Liveness {
    fn default() -> Self {
        Self { interval: Self::INTERVAL, failures: Self::FAILURES }
    }
}

/// One program to keep running. Make one with [`UnitSpec::new`], then set the fields that differ.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct UnitSpec {
    /// Its name; unique among the units of a supervisor.
    pub name: UnitName,
    /// What it does, in a few words, for people.
    pub description: String,
    /// Anything worth showing next to it, such as the address it listens on.
    pub detail: Option<String>,
    /// The program: a path, or a name to look up on PATH.
    pub program: PathBuf,
    /// Its arguments. They are visible to every user of the machine, so no secrets.
    pub args: Vec<OsString>,
    /// Variables added to the supervisor's own environment. Also visible in `/proc`, so no secrets.
    pub env: BTreeMap<OsString, OsString>,
    /// Working directory; unset: the supervisor's.
    pub cwd: Option<PathBuf>,
    /// Who it runs as; unset: whoever the supervisor runs as.
    pub user: Option<Credentials>,
    /// What asks it to stop, and what the kernel sends it when the supervisor dies.
    pub stop_signal: StopSignal,
    /// Units that must be active before this one is started. They are also stopped after it.
    pub after: Vec<UnitName>,
    /// How to tell that it is ready, and later that it still works.
    pub probe: Probe,
    /// How an active unit is watched.
    pub liveness: Liveness,
    /// Longest wait for readiness; unset: the supervisor's setting.
    pub start_timeout: Option<Duration>,
    /// Longest wait for it to stop by itself; unset: the supervisor's setting.
    pub stop_timeout: Option<Duration>,
}

impl UnitSpec {
    /// A unit without arguments, active as soon as its process runs.
    pub fn new(name: UnitName, program: impl Into<PathBuf>) -> Self {
        Self {
            description: name.to_string(),
            name,
            detail: None,
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            stop_signal: StopSignal::default(),
            after: Vec::new(),
            probe: Probe::Alive,
            liveness: Liveness::default(),
            start_timeout: None,
            stop_timeout: None,
        }
    }

    /// The same unit with these arguments added.
    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }
}
