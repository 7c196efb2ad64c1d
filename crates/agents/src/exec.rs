//! Running one command under limits: a check, or the program of an agent.
//!
//! The command runs behind the launcher of [`crate::sandbox`]. Its output is read all the time and kept within a
//! bound, so one that writes gigabytes fills neither memory nor disk; whatever ends the run ends all its processes.

mod capture;
mod environment;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use lares_config::Sandbox;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::sandbox::{self, Confinement, Exit, Launcher, Policy, Refusal, Report, Scratch, Spec, Streams};
use capture::Capture;

/// Between SIGTERM and SIGKILL at the end of a run's time.
const GRACE: Duration = Duration::from_secs(2);
/// Longest the guard may take beyond that to end everything; it waits 10 s for processes that do not die.
const GUARD_MARGIN: Duration = Duration::from_secs(15);
/// Longest wait for output that is still in the pipe when everything has ended.
const DRAIN: Duration = Duration::from_secs(1);
/// How often the processes of a run are counted: a fork bomb is stopped before anybody notices.
const COUNT_EVERY: Duration = Duration::from_millis(100);
/// How much is read at a time: the size of a pipe.
const READ_SIZE: usize = 64 << 10;

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The program: a path, or a name looked up in `PATH`.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Directory it starts in.
    pub directory: PathBuf,
    /// Environment on top of the few variables every run gets; wins over them.
    pub environment: BTreeMap<String, String>,
}

impl Command {
    /// `line` as `/bin/sh` understands it.
    pub fn shell(line: &str, directory: &Path) -> Self {
        Self {
            program: PathBuf::from("/bin/sh"),
            args: vec!["-c".to_owned(), line.to_owned()],
            directory: directory.to_owned(),
            environment: BTreeMap::new(),
        }
    }
}

/// How much a run may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Bytes of address space of each process.
    pub max_memory: u64,
    /// Bytes of the largest file it writes.
    pub max_file: u64,
    /// Processes and threads of the run together.
    pub max_processes: u32,
    /// Bytes of output kept, half from its beginning and half from its end.
    pub max_output: usize,
    /// Longest it may run; then SIGTERM, and SIGKILL two seconds later.
    pub timeout: Duration,
}

impl Limits {
    /// The configured limits, with `timeout` on the wall clock.
    pub fn new(sandbox: &Sandbox, timeout: Duration) -> Self {
        Self {
            max_memory: sandbox.max_memory.bytes(),
            max_file: sandbox.max_file.bytes(),
            max_processes: sandbox.max_processes,
            max_output: sandbox.max_output.as_usize(),
            timeout,
        }
    }
}

/// What came of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// How the command ended, or was ended.
    pub exit: Exit,
    /// It was ended because its time was over.
    pub timed_out: bool,
    /// It was ended because of a shutdown or a cancellation.
    pub cancelled: bool,
    /// It was ended because it had more processes than allowed.
    pub over_processes: bool,
    /// Standard output and standard error, as they came; where bytes were dropped a line says how many.
    pub output: Vec<u8>,
    /// Bytes it wrote in all.
    pub output_bytes: u64,
    /// How long it ran.
    pub duration: Duration,
    /// Bytes of memory of its largest process.
    pub peak_memory: u64,
    /// What it was confined by.
    pub confinement: Confinement,
}

impl Output {
    /// Whether it ended by itself with exit code 0.
    pub fn success(&self) -> bool {
        self.exit == Exit::Code(0) && !self.timed_out && !self.cancelled && !self.over_processes
    }

    /// The output as text; bytes that are none are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

/// Why a command did not run, or why nobody knows how it ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExecError {
    /// The kernel cannot confine it as configured.
    #[error("{0}")]
    Confinement(String),
    /// The command itself could not be started.
    #[error("cannot start {0}")]
    Command(String),
    /// The launcher could not be started or failed.
    #[error("cannot run the launcher {program}: {reason}", program = program.display())]
    Launcher {
        /// The launcher.
        program: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// The launcher was killed from outside; what was left of the run has been killed too.
    #[error("the launcher of this command was killed (out of memory?), so how it ended is not known; run it again")]
    Lost,
    /// The run's private directory cannot be made.
    #[error("cannot make a temporary directory in {directory}: {source}", directory = directory.display())]
    Scratch {
        /// Where it was to be.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A pipe, a socket or the like failed.
    #[error("cannot talk to the launcher: {0}")]
    Io(#[from] io::Error),
}

/// Why the run was told to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stop {
    Time,
    Cancelled,
}

/// Runs `command` as `policy` and `limits` say, until it ends or `shutdown` is cancelled. When it returns, no process
/// of the run is left; dropping the future ends them too.
///
/// # Errors
/// [`ExecError`]; a command that ran and failed is no error.
pub async fn run(
    launcher: &Launcher,
    policy: &Policy,
    command: &Command,
    limits: &Limits,
    shutdown: &CancellationToken,
) -> Result<Output, ExecError> {
    let parent = policy.scratch.clone().unwrap_or_else(std::env::temp_dir);
    let scratch = Scratch::make(&parent).await.map_err(|source| ExecError::Scratch { directory: parent, source })?;
    let spec = spec(launcher, policy, command, limits, scratch.path());
    let mut run = Started::start(launcher, &spec).await?;
    let result = run.follow(launcher, limits, shutdown).await;
    if !matches!(result, Ok(_) | Err(ExecError::Confinement(_) | ExecError::Command(_))) {
        run.abandon().await;
    }
    scratch.remove().await;
    result
}

fn spec(launcher: &Launcher, policy: &Policy, command: &Command, limits: &Limits, scratch: &Path) -> Spec {
    let mut environment = environment::of_run(scratch, &policy.reach);
    environment.extend(command.environment.clone());
    Spec {
        args: command.args.clone(),
        directory: command.directory.clone(),
        environment,
        max_memory: limits.max_memory,
        max_file: limits.max_file,
        max_processes: limits.max_processes,
        count_every: COUNT_EVERY,
        grace: GRACE,
        ..Spec::new(launcher, policy, scratch, command.program.clone())
    }
}

/// A launcher that runs.
struct Started {
    launcher: tokio::process::Child,
    control: tokio::net::unix::OwnedWriteHalf,
    reports: tokio::io::Lines<BufReader<tokio::net::unix::OwnedReadHalf>>,
    output: pipe::Receiver,
    /// Sessions the run's processes are in, for when the guard is lost.
    sessions: Vec<i32>,
    at: Instant,
}

impl Started {
    async fn start(launcher: &Launcher, spec: &Spec) -> Result<Self, ExecError> {
        let (reader, writer) = io::pipe()?;
        let streams = Streams { stdin: None, stdout: writer.try_clone()?.into(), stderr: writer.into() };
        let at = Instant::now();
        let (child, control) = sandbox::start(launcher, spec, streams)
            .await
            .map_err(|error| ExecError::Launcher { program: launcher.program.clone(), reason: error.to_string() })?;
        let (reports, control) = control.into_split();
        Ok(Self {
            sessions: child.id().and_then(|pid| i32::try_from(pid).ok()).into_iter().collect(),
            launcher: child,
            control,
            reports: BufReader::new(reports).lines(),
            output: pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?,
            at,
        })
    }

    async fn follow(
        &mut self,
        launcher: &Launcher,
        limits: &Limits,
        shutdown: &CancellationToken,
    ) -> Result<Output, ExecError> {
        let mut capture = Capture::new(limits.max_output);
        let mut buffer = vec![0; READ_SIZE];
        let mut open = true;
        let mut stop = None;
        let mut deadline = tokio::time::Instant::from_std(self.at) + limits.timeout;
        let report = loop {
            tokio::select! {
                read = self.output.read(&mut buffer), if open => match read {
                    Ok(0) | Err(_) => open = false,
                    Ok(count) => capture.push(&buffer[..count]),
                },
                line = self.reports.next_line() => match line.ok().flatten().map(|line| serde_json::from_str(&line)) {
                    Some(Ok(Report::Started { session })) => self.sessions.push(session),
                    Some(Ok(report)) => break report,
                    Some(Err(_)) | None => return Err(self.lost(launcher, &capture).await),
                },
                () = shutdown.cancelled(), if stop.is_none() => {
                    stop = Some(Stop::Cancelled);
                    deadline = self.ask_to_stop().await;
                }
                () = sleep_until(deadline) => {
                    if stop.is_some() {
                        return Err(ExecError::Lost);
                    }
                    stop = Some(Stop::Time);
                    deadline = self.ask_to_stop().await;
                }
            }
        };
        let duration = self.at.elapsed();
        let drain = async {
            while open {
                match self.output.read(&mut buffer).await {
                    Ok(0) | Err(_) => open = false,
                    Ok(count) => capture.push(&buffer[..count]),
                }
            }
        };
        // A process outside the run that was handed the pipe could hold it open.
        let _ = timeout(DRAIN, drain).await;
        let _ = timeout(GUARD_MARGIN, self.launcher.wait()).await;
        match report {
            Report::Refused(Refusal::Confinement(why)) => Err(ExecError::Confinement(why)),
            Report::Refused(Refusal::Command(why)) => Err(ExecError::Command(why)),
            Report::Refused(Refusal::Launcher(reason)) => {
                Err(ExecError::Launcher { program: launcher.program.clone(), reason })
            }
            Report::Started { .. } => Err(ExecError::Lost),
            Report::Ended { exit, over_processes, survivors, peak_memory, confinement } => {
                if survivors {
                    tracing::warn!("a process of this run did not die on SIGKILL; it waits in the kernel");
                }
                let output_bytes = capture.total();
                let output = capture.finish();
                let (timed_out, cancelled) = (stop == Some(Stop::Time), stop == Some(Stop::Cancelled));
                Ok(Output {
                    exit,
                    timed_out,
                    cancelled,
                    over_processes,
                    output,
                    output_bytes,
                    duration,
                    peak_memory,
                    confinement,
                })
            }
        }
    }

    /// Asks the guard to end the run; when it has to be over.
    async fn ask_to_stop(&mut self) -> tokio::time::Instant {
        let _ = timeout(DRAIN, self.control.write_all(b"stop")).await;
        tokio::time::Instant::now() + GRACE + GUARD_MARGIN
    }

    /// The launcher ended without a report: it was killed, or it is not a launcher.
    async fn lost(&mut self, launcher: &Launcher, capture: &Capture) -> ExecError {
        let status = timeout(GUARD_MARGIN, self.launcher.wait()).await;
        match status {
            Ok(Ok(status)) if status.code().is_some() => ExecError::Launcher {
                program: launcher.program.clone(),
                reason: format!("{status} without a report; it said: {}", capture.first_line()),
            },
            _ => ExecError::Lost,
        }
    }

    /// Kills what can still be found of a run whose guard is lost.
    async fn abandon(&mut self) {
        let _ = self.launcher.start_kill();
        let _ = timeout(GUARD_MARGIN, self.launcher.wait()).await;
        let sessions = self.sessions.clone();
        let _ = tokio::task::spawn_blocking(move || sandbox::end_sessions(&sessions)).await;
    }
}
