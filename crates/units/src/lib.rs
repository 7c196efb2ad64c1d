//! Units and who runs them: the port to a service manager ([`port::Manager`]), systemd behind it ([`Systemd`]), and the
//! child-process supervisor of `lares up`, which starts units in order, keeps them running, and leaves nothing behind.
//!
//! A [`UnitSpec`] says what to run and when it is ready; [`Supervisor`] runs it; [`Children`] makes it a manager.
//!
//! ```text
//! supervisor ── one task a unit: runner ── machine   what happens next (pure)
//!     │                           ├─────── spawn     start, signal and reap a process group
//!     │                           ├─────── probe     ask whether it works
//!     │                           └─────── journal   its output: ring, followers, logfile
//!     └─ order: who starts after whom, who stops when     usage: what it costs
//! ```

mod children;
mod error;
mod feed;
mod inherited;
mod journal;
mod logfile;
mod machine;
mod name;
mod order;
pub mod port;
mod probe;
mod runner;
mod spawn;
mod spec;
mod status;
mod supervisor;
mod systemd;
mod usage;

pub use children::Children;
pub use error::{ControlError, NotReady, SetupError, UnreadyUnit};
pub use feed::{Feed, FeedItem, LogFeed};
pub use journal::{LogLine, LogStream};
pub use name::{NameError, UnitName};
pub use probe::{Check, Probe};
pub use spec::{Credentials, Liveness, StopSignal, UnitSpec};
pub use status::{Change, Exit, State, UnitStatus};
pub use supervisor::{Settings, Supervisor};
pub use systemd::{Systemd, SystemdSettings};
pub use usage::Usage;

/// Doors for fuzz targets to what is private.
#[cfg(fuzzing)]
pub mod fuzzing {
    /// Reads all of a file of the journal.
    pub fn journal_file(path: &std::path::Path) {
        crate::systemd::read_all(path);
    }
}
