//! Running a tool server that speaks on its standard streams, confined, and ending it with all it started.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lares_sandbox::{Launcher, Policy, Refusal, Report, Scratch, Spec, Streams};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf, pipe};
use tokio::process::Child;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::PoolSettings;
use super::lines::{Line, Lines};
use super::{secret, unreadable};
use crate::definition::ServerName;
use crate::port::Program;

/// After its standard input is closed a server may end by itself for so long.
const POLITE: Duration = Duration::from_millis(700);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_millis(1300);
/// Until the guard has ended everything after that; then it is killed itself.
const GUARD_MARGIN: Duration = Duration::from_millis(700);
/// How often the processes of a server are counted: it lives long, and looking costs.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// Longest line of standard error, in bytes.
const MAX_LINE: usize = 1 << 10;
/// So many lines of standard error are logged in each [`RATE_WINDOW`].
const RATE: u32 = 20;
/// The window of [`RATE`].
const RATE_WINDOW: Duration = Duration::from_secs(10);
/// Used when the daemon has no PATH.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin:/run/current-system/sw/bin";

/// A server that was started: its streams, and what ends it.
pub(super) struct Started {
    pub(super) stdin: pipe::Sender,
    pub(super) stdout: pipe::Receiver,
    pub(super) process: Process,
    /// Values that must not be in a message of ours.
    pub(super) secrets: Vec<String>,
}

/// A server's processes.
pub(super) struct Process {
    launcher: Child,
    control: OwnedWriteHalf,
    reports: tokio::io::Lines<BufReader<OwnedReadHalf>>,
    /// Sessions its processes are in, for when the guard is lost.
    sessions: Vec<i32>,
    scratch: Option<Scratch>,
    stderr: JoinHandle<()>,
    last_line: Arc<Mutex<String>>,
}

/// Starts `program` as a person wrote it down.
pub(super) async fn start(server: &ServerName, program: &Program, settings: &PoolSettings) -> Result<Started, String> {
    let Some((name, args)) = program.command.split_first() else {
        return Err("it has no command".to_owned());
    };
    let from_files = secret::read_all(&program.env_files).await?;
    let secrets = from_files.values().cloned().collect();
    let sandbox = &settings.sandbox;
    let mut policy = Policy::for_service(sandbox, &program.read, &program.write, program.network);
    policy.hidden.extend(settings.hidden.iter().cloned());
    let scratch = Scratch::make(&std::env::temp_dir())
        .await
        .map_err(|error| format!("cannot make its private directory: {error}"))?;
    let mut environment = environment(scratch.path());
    if let Some(home) = &program.home {
        make_home(home).await.map_err(|error| format!("cannot make its home directory {}: {error}", home.display()))?;
        environment.insert("HOME".to_owned(), home.to_string_lossy().into_owned());
        policy.write.push(home.clone());
    }
    environment.extend(program.env.clone());
    environment.extend(from_files);
    let mut spec = Spec {
        args: args.to_vec(),
        environment,
        max_memory: sandbox.max_memory.bytes(),
        may_reserve: true,
        max_file: sandbox.max_file.bytes(),
        max_processes: sandbox.max_processes,
        count_every: COUNT_EVERY,
        grace: GRACE,
        ..Spec::new(&settings.launcher, &policy, scratch.path(), name.into())
    };
    if let Some(directory) = &program.directory {
        spec.directory.clone_from(directory);
    }
    match spawn(server, &settings.launcher, &spec, scratch, secrets, settings.start_timeout).await {
        Err(NotStarted::Command(why)) => {
            let missing = missing(program).await.unwrap_or_else(|| {
                "if the program is there, it may lie outside what a tool server may read (`read`)".to_owned()
            });
            Err(format!("cannot start {why}; {missing}"))
        }
        Err(NotStarted::Other(why)) => Err(why),
        Ok(started) => Ok(started),
    }
}

/// Why a program does not run.
enum NotStarted {
    /// The program itself could not be executed.
    Command(String),
    /// Something else.
    Other(String),
}

/// What a program would have to read and may not, as a hint; `None`: nothing that can be seen.
pub(super) async fn missing(program: &Program) -> Option<String> {
    let paths: Vec<String> = unreadable(program).await.iter().map(|path| path.display().to_string()).collect();
    (!paths.is_empty()).then(|| format!("it may not read {}, which has to be granted (`read`)", paths.join(" and ")))
}

/// Makes a home directory that stays, for nobody else to look into.
async fn make_home(home: &Path) -> io::Result<()> {
    let home = home.to_owned();
    let make = move || std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&home);
    tokio::task::spawn_blocking(make).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Where programs are looked up that are not given as a path.
pub(super) fn search_path() -> String {
    std::env::var("PATH").ok().filter(|path| !path.is_empty()).unwrap_or_else(|| PATH.to_owned())
}

async fn spawn(
    server: &ServerName,
    launcher: &Launcher,
    spec: &Spec,
    scratch: Scratch,
    secrets: Vec<String>,
    limit: Duration,
) -> Result<Started, NotStarted> {
    let failed = |error: io::Error| {
        NotStarted::Other(format!("cannot run the launcher {}: {error}", launcher.program.display()))
    };
    let (their_input, our_input) = io::pipe().map_err(failed)?;
    let (our_output, their_output) = io::pipe().map_err(failed)?;
    let (our_error, their_error) = io::pipe().map_err(failed)?;
    let stdin = pipe::Sender::from_owned_fd(our_input.into()).map_err(failed)?;
    let stdout = pipe::Receiver::from_owned_fd(our_output.into()).map_err(failed)?;
    let stderr = pipe::Receiver::from_owned_fd(our_error.into()).map_err(failed)?;
    let streams = Streams { stdin: Some(their_input.into()), stdout: their_output.into(), stderr: their_error.into() };
    let (child, control) = lares_sandbox::start(launcher, spec, streams).await.map_err(failed)?;
    let (reports, control) = control.into_split();
    let last_line = Arc::new(Mutex::new(String::new()));
    let listening = listen(server.clone(), stderr, last_line.clone(), secrets.clone());
    let mut process = Process {
        sessions: child.id().and_then(|pid| i32::try_from(pid).ok()).into_iter().collect(),
        launcher: child,
        control,
        reports: BufReader::new(reports).lines(),
        scratch: Some(scratch),
        stderr: tokio::spawn(listening),
        last_line,
    };
    let why = match timeout(limit, process.report()).await {
        Ok(Some(Report::Started { session })) => {
            process.sessions.push(session);
            return Ok(Started { stdin, stdout, process, secrets });
        }
        Ok(Some(Report::Refused(Refusal::Confinement(why) | Refusal::Launcher(why)))) => why,
        Ok(Some(Report::Refused(Refusal::Command(why)))) => {
            drop((stdin, stdout));
            process.end(Duration::ZERO).await;
            return Err(NotStarted::Command(why));
        }
        Ok(Some(Report::Ended { exit, .. })) => format!("it ended at once: {exit}"),
        Ok(None) => format!("the launcher {} ended without a report", launcher.program.display()),
        Err(_) => format!("the launcher {} did not start it within {limit:?}", launcher.program.display()),
    };
    drop((stdin, stdout));
    let (_, said) = process.end(Duration::ZERO).await;
    Err(NotStarted::Other(if said.is_empty() { why } else { format!("{why}; it said: {said}") }))
}

/// The few variables that every server gets.
fn environment(scratch: &Path) -> BTreeMap<String, String> {
    let inherited = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let at = |directory: &str| scratch.join(directory).to_string_lossy().into_owned();
    let variables = [
        ("PATH", Some(search_path())),
        ("HOME", Some(at("home"))),
        ("TMPDIR", Some(at("tmp"))),
        ("LANG", Some("C.UTF-8".to_owned())),
        ("TZ", inherited("TZ")),
    ];
    variables.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
}

/// Logs what a server writes to standard error, as much as is reasonable, and keeps the last line.
async fn listen(server: ServerName, stderr: pipe::Receiver, last_line: Arc<Mutex<String>>, secrets: Vec<String>) {
    let mut lines = Lines::new(stderr, MAX_LINE);
    let (mut window, mut logged, mut dropped) = (Instant::now(), 0, 0_u64);
    while let Ok(Some(line)) = lines.next().await {
        let (bytes, end) = match &line {
            Line::Whole(bytes) => (bytes, ""),
            Line::Long { head, .. } => (head, " […]"),
        };
        let text = String::from_utf8_lossy(bytes);
        let text = text.trim_end().replace(char::is_control, " ");
        if text.is_empty() {
            continue;
        }
        let text = format!("{}{end}", secret::without(&text, &secrets));
        if window.elapsed() > RATE_WINDOW {
            if dropped > 0 {
                tracing::info!(server = %server, dropped, "lines of a tool server were not logged");
            }
            (window, logged, dropped) = (Instant::now(), 0, 0);
        }
        if logged < RATE {
            tracing::info!(server = %server, said = %text, "a tool server wrote to standard error");
            logged += 1;
        } else {
            dropped += 1;
        }
        *last_line.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }
}

impl Process {
    async fn report(&mut self) -> Option<Report> {
        let line = self.reports.next_line().await.ok().flatten()?;
        serde_json::from_str(&line).ok()
    }

    /// Ends it and all it started, whose standard input is closed already: it may end by itself for `polite`, then
    /// SIGTERM, then SIGKILL. How it ended, and what it wrote to standard error last.
    pub(super) async fn end(mut self, polite: Duration) -> (Option<String>, String) {
        let mut ended = timeout(polite, self.report()).await.ok();
        if ended.is_none() {
            let _ = timeout(POLITE, self.control.write_all(b"stop")).await;
            ended = timeout(GRACE + GUARD_MARGIN, self.report()).await.ok();
        }
        let report = ended.flatten();
        if report.is_none() {
            let _ = self.launcher.start_kill();
            let sessions = std::mem::take(&mut self.sessions);
            let _ = tokio::task::spawn_blocking(move || lares_sandbox::end_sessions(&sessions)).await;
        }
        let _ = timeout(GUARD_MARGIN, self.launcher.wait()).await;
        // What is still in the pipe says why it ended.
        let _ = timeout(Duration::from_millis(200), &mut self.stderr).await;
        if let Some(scratch) = self.scratch.take() {
            let _ = timeout(GUARD_MARGIN, scratch.remove()).await;
        }
        let exit = match report {
            Some(Report::Ended { exit, over_processes, survivors, .. }) => {
                if survivors {
                    tracing::warn!("a process of a tool server did not die on SIGKILL; it waits in the kernel");
                }
                Some(if over_processes { format!("too many processes, {exit}") } else { exit.to_string() })
            }
            _ => None,
        };
        let said = self.last_line.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (exit, said)
    }

    /// As [`Self::end`], after the time a server has to end by itself.
    pub(super) async fn end_politely(self) -> (Option<String>, String) {
        self.end(POLITE).await
    }
}

/// A process that is dropped is ended by its guard, which sees the control socket close.
impl Drop for Process {
    fn drop(&mut self) {
        self.stderr.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_gets_five_variables_and_nothing_of_the_daemon() {
        let variables = environment(Path::new("/scratch"));
        assert!(variables.keys().all(|name| ["PATH", "HOME", "TMPDIR", "LANG", "TZ"].contains(&name.as_str())));
        assert_eq!(variables.get("HOME").map(String::as_str), Some("/scratch/home"));
        assert!(variables.contains_key("PATH"));
    }
}
