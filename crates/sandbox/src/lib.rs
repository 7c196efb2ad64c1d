//! Confinement: what a run may touch, and the two stages of the launcher that sees to it.
//!
//! A run is started through a *launcher*: this same program, entered by [`launcher_main`]. The launcher's first stage
//! (`guard`) stays outside the confinement, adopts every process of the run and ends them all when the command
//! ends, when it is told to, or when the process that started it is gone. Its second stage (`enter`) confines itself
//! (namespaces where the kernel lets it, resource limits, Landlock) and becomes the command.

mod descendants;
mod enter;
mod guard;
mod paths;
mod root;
mod rules;
mod start;
mod wire;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lares_config::{Network, Sandbox, SandboxMode};
use serde::{Deserialize, Serialize};

pub use descendants::end_sessions;
pub use paths::{expand, home, is_system, links, remove};
pub use start::{Scratch, Streams, start};
pub use wire::{Refusal, Report, Spec};

/// Files of a person that no run reads, though they lie in directories a run may read. `~` is the home directory.
const ALWAYS_HIDDEN: [&str; 7] = [
    "~/.cargo/credentials",
    "~/.cargo/credentials.toml",
    "~/.local/share/keyrings",
    "~/.local/share/kwalletd",
    "~/.local/share/containers",
    "~/.local/state/lares",
    "~/.npm/_logs",
];

/// What one run may touch. The system's own programs and libraries may always be read and executed.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Whether a run without Landlock is refused.
    pub mode: SandboxMode,
    /// Further paths that may be read and executed. Paths that do not exist are skipped.
    pub read: Vec<PathBuf>,
    /// Paths that may be written too: the worktree and what the configuration lists.
    pub write: Vec<PathBuf>,
    /// Paths that stay out of reach although they lie below one of `read`: the state directory.
    pub hidden: Vec<PathBuf>,
    /// What may be reached over the network.
    pub reach: Reach,
    /// Directory in which the run's private home and temporary directory are made. `None`: the system's.
    pub scratch: Option<PathBuf>,
}

/// What a run reaches over the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reach {
    /// Nothing, not even loopback.
    Nothing,
    /// TCP connections to these ports; no listening.
    Ports(Vec<u16>),
    /// Whatever the machine reaches.
    Host,
}

impl Policy {
    /// The policy of a check that runs in `worktree`.
    pub fn for_check(sandbox: &Sandbox, worktree: &Path) -> Self {
        let reach = match sandbox.check_network {
            Network::None => Reach::Nothing,
            Network::Host => Reach::Host,
        };
        Self::new(sandbox, worktree, reach)
    }

    /// The policy of an agent that edits `worktree` and talks to the coordinator on `coordinator_port`, nothing else.
    pub fn for_agent(sandbox: &Sandbox, worktree: &Path, coordinator_port: u16) -> Self {
        Self::new(sandbox, worktree, Reach::Ports(vec![coordinator_port]))
    }

    /// The policy of a program that lives long and works in no worktree, such as a tool server: `read` and `write`
    /// (`~` is the home directory), and nothing that the configuration lists for checks.
    pub fn for_service(sandbox: &Sandbox, read: &[PathBuf], write: &[PathBuf], network: Network) -> Self {
        let reach = match network {
            Network::None => Reach::Nothing,
            Network::Host => Reach::Host,
        };
        Self {
            mode: sandbox.mode,
            read: expanded(read),
            write: expanded(write),
            hidden: expanded(&ALWAYS_HIDDEN.map(PathBuf::from)),
            reach,
            scratch: None,
        }
    }

    fn new(sandbox: &Sandbox, worktree: &Path, reach: Reach) -> Self {
        Self {
            mode: sandbox.mode,
            read: expanded(&sandbox.read),
            write: std::iter::once(worktree.to_owned()).chain(expanded(&sandbox.write)).collect(),
            hidden: expanded(&ALWAYS_HIDDEN.map(PathBuf::from)),
            reach,
            scratch: None,
        }
    }

    /// Also lets the run read `path`, for example the git directory a worktree belongs to.
    #[must_use]
    pub fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.read.push(path.into());
        self
    }

    /// Keeps `path` out of reach although it may lie below a readable one. The worktree and what is listed for
    /// writing stay reachable even below it.
    #[must_use]
    pub fn hide(mut self, path: impl Into<PathBuf>) -> Self {
        self.hidden.push(path.into());
        self
    }
}

fn expanded(listed: &[PathBuf]) -> Vec<PathBuf> {
    let home_directory = home();
    listed.iter().filter_map(|path| expand(path, home_directory.as_deref())).collect()
}

/// How to start the launcher: a program and the arguments that make it call [`launcher_main`].
#[derive(Debug, Clone, PartialEq)]
pub struct Launcher {
    /// The program.
    pub program: PathBuf,
    /// What comes before the launcher's own arguments, for example `sandbox`.
    pub args: Vec<String>,
}

impl Launcher {
    /// The running program, entered by `args`.
    ///
    /// # Errors
    /// When the kernel does not say which file this process runs.
    pub fn current(args: &[&str]) -> std::io::Result<Self> {
        Ok(Self { program: std::env::current_exe()?, args: args.iter().map(|&arg| arg.to_owned()).collect() })
    }
}

/// Argument of the launcher's second stage.
const ENTER: &str = "--enter";
/// Argument with which the second stage only tries whether namespaces work here.
const PROBE: &str = "--probe";

/// Entry point of the launcher. Call it first thing in `main`, before any thread exists; `args` is what follows
/// [`Launcher::args`].
pub fn launcher_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match args.into_iter().next() {
        None => guard::main(),
        Some(stage) if stage == ENTER => enter::main(false),
        Some(stage) if stage == PROBE => enter::main(true),
        Some(_) => {
            eprintln!("this starts the confined commands of a task; it is not meant to be called by hand");
            ExitCode::FAILURE
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// It exited with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl std::fmt::Display for Exit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(number) {
                Ok(signal) => write!(f, "killed by {signal}"),
                Err(_) => write!(f, "killed by signal {number}"),
            },
        }
    }
}

/// Which parts of the confinement held, for logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// Version of the Landlock ABI that was used; 0 without Landlock.
    pub landlock: u32,
    /// Whether the run had a root directory, a network and an IPC namespace of its own.
    pub namespaces: bool,
}
