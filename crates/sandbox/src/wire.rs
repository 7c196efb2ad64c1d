//! What is said between the process that wants a run, the guard and the stage that becomes the command.
//!
//! Each pair talks over a socket that is standard input of the younger one: first the [`Spec`] with its length before
//! it (so that nothing behind it is read too early), later any byte means "stop", and the end of the stream means the
//! other side is gone. Answers come back as JSON, one object a line. Nothing of it is in an argument list or a file.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lares_config::SandboxMode;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use super::{Confinement, Exit, Launcher, Policy, Reach};

/// More than any command line the kernel takes, with its environment.
const MAX_SPEC: u32 = 16 << 20;

/// Everything both stages need to know. It may hold secrets, in `environment`.
#[derive(Clone, Serialize, Deserialize)]
pub struct Spec {
    /// Arguments that make this program call the launcher's entry point.
    pub reenter: Vec<String>,
    /// The program: a path, or a name looked up in `PATH` of `environment`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Directory it starts in.
    pub directory: PathBuf,
    /// Its whole environment.
    pub environment: BTreeMap<String, String>,
    /// Whether a run without Landlock is refused.
    pub mode: SandboxMode,
    /// Further paths that may be read and executed.
    pub read: Vec<PathBuf>,
    /// Paths that may be written too.
    pub write: Vec<PathBuf>,
    /// Paths that stay out of reach although they lie below one of `read`.
    pub hidden: Vec<PathBuf>,
    /// What may be reached over the network.
    pub reach: Reach,
    /// Private directory of the run, with `home`, `tmp` and `root` in it; the guard removes it.
    pub scratch: PathBuf,
    /// Bytes of address space of each process.
    pub max_memory: u64,
    /// Count only what can be written towards `max_memory`: runtimes with WebAssembly reserve far more than they use.
    pub may_reserve: bool,
    /// Bytes of the largest file.
    pub max_file: u64,
    /// Processes and threads of the run together.
    pub max_processes: u32,
    /// How often they are counted.
    pub count_every: Duration,
    /// Whether a descriptor for the command's standard input follows; without, it is `/dev/null`.
    pub stdin: bool,
    /// Between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether the second stage makes namespaces; the guard fills it in.
    pub namespaces: bool,
    /// Process id of the guard; it fills it in.
    pub guard: i32,
}

/// What to run and where, without what it is told: environment and arguments may hold secrets.
impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spec")
            .field("program", &self.program)
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Spec {
    /// `program` under `policy`, started in its private home without arguments, environment or limits: those are to be
    /// set.
    pub fn new(launcher: &Launcher, policy: &Policy, scratch: &Path, program: PathBuf) -> Self {
        Self {
            reenter: launcher.args.clone(),
            program,
            args: Vec::new(),
            directory: scratch.join("home"),
            environment: BTreeMap::new(),
            mode: policy.mode,
            read: policy.read.clone(),
            write: policy.write.clone(),
            hidden: policy.hidden.clone(),
            reach: policy.reach.clone(),
            scratch: scratch.to_owned(),
            max_memory: u64::MAX,
            may_reserve: false,
            max_file: u64::MAX,
            max_processes: u32::MAX,
            count_every: Duration::from_millis(100),
            stdin: false,
            grace: Duration::from_secs(2),
            namespaces: false,
            guard: 0,
        }
    }

    /// The bytes to send.
    pub(super) fn frame(&self) -> io::Result<Vec<u8>> {
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
pub enum Report {
    /// The command runs, as the leader of this session.
    Started {
        /// Process id of its leader.
        session: i32,
    },
    /// The run is over and no process of it is left, unless `survivors` says otherwise.
    Ended {
        /// How the command ended.
        exit: Exit,
        /// It was ended because it had more processes than allowed.
        over_processes: bool,
        /// A process waits in the kernel and did not die.
        survivors: bool,
        /// Bytes of the largest process.
        peak_memory: u64,
        /// What it was confined by.
        confinement: Confinement,
    },
    /// Nothing ran.
    Refused(Refusal),
}

/// Why nothing ran.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
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

/// Sends a descriptor, with one byte that carries it.
pub(super) fn send_descriptor(to: BorrowedFd<'_>, descriptor: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(io::Error::other("there is no room for a descriptor"));
    }
    sendmsg(to, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes what [`send_descriptor`] sent.
pub(super) fn receive_descriptor(from: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    recvmsg(from, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let received = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    received.ok_or_else(|| io::Error::other("no descriptor came"))
}
