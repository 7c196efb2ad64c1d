//! Child programs that do part of a job: bounded in time, their last lines kept, gone when the job is dropped.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;

/// Lines of output that are kept for an error message.
const TAIL: usize = 12;

/// Why a child program did not do its part.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// It cannot be started.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// The program.
        program: String,
        /// The system's answer.
        source: io::Error,
    },
    /// It said so.
    #[error("{program} failed ({status}): {tail}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last lines.
        tail: String,
    },
    /// It took too long.
    #[error("{program} was stopped: it was not done within {} minutes", .limit.as_secs() / 60)]
    Slow {
        /// The program.
        program: String,
        /// How long it had.
        limit: Duration,
    },
}

/// A program with its first arguments, such as `python3 -m pip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Program(pub(crate) Vec<OsString>);

impl Program {
    pub(crate) fn new<S: AsRef<OsStr>>(words: impl IntoIterator<Item = S>) -> Self {
        Self(words.into_iter().map(|word| word.as_ref().to_owned()).collect())
    }

    pub(crate) fn name(&self) -> String {
        self.0.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn command(&self) -> Command {
        let mut words = self.0.iter();
        let mut command = Command::new(words.next().map_or(OsStr::new(""), OsString::as_os_str));
        command.args(words);
        command
    }
}

/// Ends a child's whole process group unless it has ended by itself.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Gone already is as good.
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}

/// Runs `command` to its end, at most for `limit`, and hands every line it prints to `on_line`.
pub(crate) async fn run(
    mut command: Command,
    name: &str,
    limit: Duration,
    mut on_line: impl FnMut(&str) + Send,
) -> Result<(), CommandError> {
    let start = |source| CommandError::Start { program: name.to_owned(), source };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).kill_on_drop(true);
    let mut child = command.spawn().map_err(start)?;
    let mut group = Group(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw));
    let mut stdout = child.stdout.take().map(lines);
    let mut stderr = child.stderr.take().map(lines);
    let mut tail = VecDeque::with_capacity(TAIL);
    let work = async {
        while stdout.is_some() || stderr.is_some() {
            let line = tokio::select! {
                line = next(&mut stdout) => line,
                line = next(&mut stderr) => line,
            };
            let Some(line) = line else { continue };
            on_line(&line);
            if !line.trim().is_empty() {
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
        }
        child.wait().await
    };
    let Ok(status) = tokio::time::timeout(limit, work).await else {
        return Err(CommandError::Slow { program: name.to_owned(), limit });
    };
    let status = status.map_err(start)?;
    group.0 = None;
    if status.success() {
        return Ok(());
    }
    let tail = Vec::from(tail).join("\n");
    Err(CommandError::Failed { program: name.to_owned(), status, tail })
}

type Segments<R> = tokio::io::Split<BufReader<R>>;

fn lines<R: AsyncRead + Unpin>(stream: R) -> Segments<R> {
    BufReader::new(stream).split(b'\n')
}

/// The next line; the stream is taken away at its end. Waits for ever on a stream that is gone, so that a `select!`
/// listens to the other.
async fn next<R: AsyncRead + Unpin>(stream: &mut Option<Segments<R>>) -> Option<String> {
    let Some(segments) = stream else { return std::future::pending().await };
    match segments.next_segment().await {
        Ok(Some(bytes)) => Some(String::from_utf8_lossy(&bytes).trim_end_matches('\r').to_owned()),
        Ok(None) | Err(_) => {
            *stream = None;
            None
        }
    }
}

/// How pip is started on this machine.
pub(crate) async fn find_pip() -> Option<Program> {
    const CANDIDATES: [&[&str]; 3] = [&["python3", "-m", "pip"], &["pip3"], &["pip"]];
    for words in CANDIDATES {
        let pip = Program::new(words);
        let mut command = pip.command();
        command.arg("--version");
        if run(command, "pip", Duration::from_secs(30), |_| {}).await.is_ok() {
            return Some(pip);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Instant;

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn lines_of_both_streams_are_heard_and_the_last_ones_explain_a_failure() {
        let mut heard = Vec::new();
        let error = run(sh("echo one; echo two >&2; exit 3"), "job", Duration::from_secs(20), |line| {
            heard.push(line.to_owned());
        });
        let error = error.await.unwrap_err().to_string();
        heard.sort();
        assert_eq!(heard, ["one", "two"]);
        assert!(error.contains("job failed") && error.contains("two"), "{error}");
        let missing = run(Command::new("/nonexistent"), "x", Duration::from_secs(1), |_| {}).await.unwrap_err();
        assert!(matches!(missing, CommandError::Start { source, .. } if source.kind() == io::ErrorKind::NotFound));
    }

    #[tokio::test]
    async fn a_slow_program_is_stopped_with_everything_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let pid = dir.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", pid.display());
        let started = Instant::now();
        let error = run(sh(&script), "job", Duration::from_secs(1), |_| {}).await.unwrap_err();
        assert!(matches!(error, CommandError::Slow { .. }));
        assert!(started.elapsed() < Duration::from_secs(20));
        let grandchild: i32 = std::fs::read_to_string(pid).unwrap().trim().parse().unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{grandchild}/stat")).unwrap_or_default();
        for _ in 0..100 {
            if state().is_empty() || state().contains(") Z") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("process {grandchild} still runs");
    }
}
