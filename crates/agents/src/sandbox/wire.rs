//! What is said between the process that wants a run, the guard and the stage that becomes the command.
//!
//! Each pair talks over a socket that is standard input of the younger one: first the [`Spec`] with its length before
//! it (so that nothing behind it is read too early), later any byte means "stop", and the end of the stream means the
//! other side is gone. Answers come back as JSON, one object a line. Nothing of it is in an argument list or a file.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use lares_config::SandboxMode;
use serde::{Deserialize, Serialize};

use super::{Confinement, Exit, Reach};

/// More than any command line the kernel takes, with its environment.
const MAX_SPEC: u32 = 16 << 20;

/// Everything both stages need to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Arguments that make this program call the launcher's entry point.
    pub reenter: Vec<String>,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub directory: PathBuf,
    pub environment: BTreeMap<String, String>,
    pub mode: SandboxMode,
    pub read: Vec<PathBuf>,
    pub write: Vec<PathBuf>,
    pub hidden: Vec<PathBuf>,
    pub reach: Reach,
    /// Private directory of the run, with `home`, `tmp` and `root` in it; the guard removes it.
    pub scratch: PathBuf,
    /// Bytes of address space of each process.
    pub max_memory: u64,
    /// Bytes of the largest file.
    pub max_file: u64,
    pub max_processes: u32,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether the second stage makes namespaces; the guard fills it in.
    pub namespaces: bool,
    /// Process id of the guard; it fills it in.
    pub guard: i32,
}

impl Spec {
    /// The bytes to send.
    pub(crate) fn frame(&self) -> io::Result<Vec<u8>> {
        let body = serde_json::to_vec(self)?;
        let length = u32::try_from(body.len()).ok().filter(|&length| length <= MAX_SPEC);
        let length = length.ok_or_else(|| io::Error::other("the command is longer than any the kernel takes"))?;
        Ok([&length.to_be_bytes()[..], &body].concat())
    }

    pub(super) fn receive(mut from: impl Read) -> io::Result<Self> {
        let mut length = [0; 4];
        from.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        if length > MAX_SPEC {
            return Err(io::Error::other("what came is no description of a run"));
        }
        let mut body = vec![0; length as usize];
        from.read_exact(&mut body)?;
        Ok(serde_json::from_slice(&body)?)
    }
}

/// What the guard reports.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Report {
    /// The command runs, as the leader of this session.
    Started { session: i32 },
    /// The run is over and no process of it is left, unless `survivors` says otherwise.
    Ended {
        exit: Exit,
        over_processes: bool,
        survivors: bool,
        /// Bytes of the largest process.
        peak_memory: u64,
        confinement: Confinement,
    },
    /// Nothing ran.
    Refused(Refusal),
}

/// Why nothing ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Refusal {
    /// The kernel cannot confine the run as asked.
    Confinement(String),
    /// The command could not be started.
    Command(String),
    /// The launcher itself failed.
    Launcher(String),
}

/// Sends one object as a line; a reader that is gone is no error, its absence is noticed elsewhere.
pub(super) fn send(mut to: &UnixStream, what: &impl Serialize) {
    if let Ok(mut line) = serde_json::to_vec(what) {
        line.push(b'\n');
        let _ = to.write_all(&line);
    }
}

/// The socket this process was given as standard input.
pub(super) fn stdin_socket() -> io::Result<UnixStream> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.local_addr()?;
    Ok(socket)
}
