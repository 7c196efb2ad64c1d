//! The child-process supervisor behind `lares up`: it starts units in order, keeps them running, and leaves nothing behind.
//!
//! A [`UnitSpec`] says what to run and when it is ready; [`Supervisor`] runs it. The names follow the service manager's
//! (unit, state, start/stop/restart, a stream of changes, a stream of log lines), so that systemd can stand behind the same words.
//!
//! ```text
//! supervisor ── one task a unit: runner ── machine   what happens next (pure)
//!     │                           ├─────── spawn     start, signal and reap a process group
//!     │                           ├─────── probe     ask whether it works
//!     │                           └─────── journal   its output: ring, followers, logfile
//!     └─ order: who starts after whom, who stops when     usage: what it costs
//! ```

mod error;
mod feed;
mod inherited;
mod journal;
mod logfile;
mod machine;
mod name;
mod order;
mod probe;
mod runner;
mod spawn;
mod spec;
mod status;
mod supervisor;
mod usage;

pub use error::{ControlError, NotReady, SetupError, UnreadyUnit};
pub use feed::{Feed, FeedItem, LogFeed};
pub use journal::{LogLine, LogStream};
pub use name::{NameError, UnitName};
pub use probe::{Check, Probe};
pub use spec::{Credentials, Liveness, StopSignal, UnitSpec};
pub use status::{Change, Exit, State, UnitStatus};
pub use supervisor::{Settings, Supervisor};
pub use usage::Usage;
