//! What one `llama-server` binary is and supports, learnt by asking it.
//!
//! Flags come and go between llama.cpp builds, so nothing here is assumed from a version number.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use regex::Regex;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

pub mod help;

pub use help::Flag;

/// Longest wait for `--version` and for `--help`. A cold start with GPU back-ends takes a few seconds.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Most output that is read; the help of today has 60 KB.
const MAX_OUTPUT: u64 = 4 << 20;
/// Flags without which a program is not a llama-server.
const TELLING: [&str; 3] = ["--model", "--ctx-size", "--port"];

/// Why a binary cannot be used as llama-server. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProbeError {
    /// No such file.
    #[error("{} does not exist; set llama.server to a llama-server binary or run `lares engine install`", .0.display())]
    Missing(PathBuf),
    /// No permission to run it, or not a program.
    #[error("{} cannot be run ({source}); set llama.server to a llama-server binary", .path.display())]
    NotExecutable {
        /// The binary.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// It died of an instruction this CPU lacks.
    #[error(
        "{} was built for another CPU: it died of an illegal instruction; run `lares engine install` to build one for \
         this machine",
        .0.display()
    )]
    IllegalInstruction(PathBuf),
    /// It failed.
    #[error("`{} {argument}` failed ({status}): {output}", .path.display())]
    Failed {
        /// The binary.
        path: PathBuf,
        /// What it was asked.
        argument: &'static str,
        /// How it ended.
        status: ExitStatus,
        /// Its last line.
        output: String,
    },
    /// It did not answer.
    #[error("`{} {argument}` gave no answer within {} s", .path.display(), .timeout.as_secs())]
    Silent {
        /// The binary.
        path: PathBuf,
        /// What it was asked.
        argument: &'static str,
        /// How long it was waited for.
        timeout: Duration,
    },
    /// It is another program.
    #[error("{} is not a llama-server: its --help has no {missing}", .path.display())]
    NotLlamaServer {
        /// The binary.
        path: PathBuf,
        /// A flag every llama-server has.
        missing: &'static str,
    },
}

/// What `--version` said.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Version {
    /// First line of it.
    pub text: String,
    /// Number of the release, such as `0.6.0-dev`, where there is one.
    pub release: Option<String>,
    /// Number of the build, such as 5123; builds without git history say 0.
    pub build: Option<u32>,
    /// Commit, where it is known.
    pub commit: Option<String>,
}

impl Version {
    /// Reads `version: 5123 (abc1234)` and `version: 0.6.0-dev (build 5123, commit abc1234)`.
    pub fn parse(output: &str) -> Self {
        static LINE: LazyLock<Regex> = LazyLock::new(|| {
            Regex::new(r"(?m)^version: (\S+)(?: \((?:build (\d+), commit )?(\w+)\))?")
                .expect("the pattern is a constant that compiles")
        });
        let Some(found) = LINE.captures(output) else {
            return Self { text: output.lines().next().unwrap_or_default().trim().to_owned(), ..Self::default() };
        };
        let (number, build) = match found.get(2) {
            Some(build) => (Some(found[1].to_owned()), build.as_str().parse().ok()),
            None => match found[1].parse() {
                Ok(build) => (None, Some(build)),
                Err(_) => (Some(found[1].to_owned()), None),
            },
        };
        Self {
            text: found[0].to_owned(),
            release: number,
            build,
            commit: found.get(3).map(|c| c.as_str().to_owned()).filter(|c| c != "unknown"),
        }
    }
}

/// One `llama-server` binary: where it is, what it is, what it supports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Server {
    /// The binary.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
    flags: Vec<Flag>,
    by_name: HashMap<String, usize>,
}

type Stamp = (PathBuf, SystemTime, u64);
static PROBED: LazyLock<Mutex<HashMap<Stamp, Arc<Server>>>> = LazyLock::new(Mutex::default);

impl Server {
    /// Asks the binary at `path` what it is. A file that has not changed since is asked only once.
    pub async fn probe(path: &Path) -> Result<Arc<Self>, ProbeError> {
        let metadata = match tokio::fs::metadata(path).await {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ProbeError::Missing(path.to_owned()));
            }
            Err(source) => return Err(ProbeError::NotExecutable { path: path.to_owned(), source }),
        };
        let stamp = (path.to_owned(), metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), metadata.len());
        if let Some(known) = probed().get(&stamp) {
            return Ok(known.clone());
        }
        let help = ask(path, "--help").await?;
        let server = Self::from_help(path.to_owned(), Version::default(), &help);
        if let Some(missing) = TELLING.into_iter().find(|name| server.flag(name).is_none()) {
            return Err(ProbeError::NotLlamaServer { path: path.to_owned(), missing });
        }
        let version = Version::parse(&ask(path, "--version").await?);
        let server = Arc::new(Self { version, ..server });
        probed().insert(stamp, server.clone());
        Ok(server)
    }

    /// The server that a help text describes.
    pub fn from_help(path: PathBuf, version: Version, text: &str) -> Self {
        let flags = help::parse(text);
        let mut by_name = HashMap::new();
        for (index, flag) in flags.iter().enumerate() {
            for name in &flag.names {
                by_name.entry(name.clone()).or_insert(index);
            }
        }
        Self { path, version, flags, by_name }
    }

    /// The entry of `--help` with this spelling, unless it is listed as removed.
    pub fn flag(&self, name: &str) -> Option<&Flag> {
        self.by_name.get(name).map(|index| &self.flags[*index]).filter(|flag| !flag.removed)
    }

    /// Every entry of `--help`, in its order.
    pub fn flags(&self) -> &[Flag] {
        &self.flags
    }
}

fn probed() -> std::sync::MutexGuard<'static, HashMap<Stamp, Arc<Server>>> {
    // Nothing can be left half done in the map, so a panic elsewhere does not spoil it.
    PROBED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the binary with one argument; both of its output streams, the ordinary one first.
async fn ask(path: &Path, argument: &'static str) -> Result<String, ProbeError> {
    let mut child = Command::new(path)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| ProbeError::NotExecutable { path: path.to_owned(), source })?;
    let stdout = read_all(child.stdout.take());
    let stderr = read_all(child.stderr.take());
    let answer = tokio::time::timeout(PROBE_TIMEOUT, async { tokio::join!(stdout, stderr, child.wait()) });
    let Ok((stdout, stderr, status)) = answer.await else {
        return Err(ProbeError::Silent { path: path.to_owned(), argument, timeout: PROBE_TIMEOUT });
    };
    let status = status.map_err(|source| ProbeError::NotExecutable { path: path.to_owned(), source })?;
    if status.signal() == Some(nix::libc::SIGILL) {
        return Err(ProbeError::IllegalInstruction(path.to_owned()));
    }
    if !status.success() {
        let output = stdout.lines().chain(stderr.lines()).rfind(|line| !line.trim().is_empty());
        let output = output.unwrap_or("it printed nothing").trim().to_owned();
        return Err(ProbeError::Failed { path: path.to_owned(), argument, status, output });
    }
    Ok(stdout + "\n" + &stderr)
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> String {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        // What cannot be read is missing from the answer, and the parser says what is missing.
        let _ = stream.take(MAX_OUTPUT).read_to_end(&mut bytes).await;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn script(dir: &Path, name: &str, body: &str) -> PathBuf {
        let path = dir.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn versions_of_both_styles_are_read() {
        let new = Version::parse("version: 0.6.0-dev (build 0, commit unknown)\nbuilt with GNU 12.2.0 for Linux\n");
        assert_eq!((new.release.as_deref(), new.build, new.commit), (Some("0.6.0-dev"), Some(0), None));
        let old = Version::parse("version: 5123 (abc1234)\nbuilt with cc\n");
        assert_eq!((old.release, old.build, old.commit.as_deref()), (None, Some(5123), Some("abc1234")));
        assert_eq!(Version::parse("something else\n").text, "something else");
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let probe = async |path: PathBuf| Server::probe(&path).await.unwrap_err().to_string();
        assert!(probe(dir.path().join("none")).await.contains("lares engine install"));
        let plain = dir.path().join("plain");
        std::fs::write(&plain, "text").unwrap();
        assert!(probe(plain).await.contains("cannot be run"));
        assert!(probe(script(dir.path(), "ill", "kill -ILL $$")).await.contains("another CPU"));
        assert!(probe(script(dir.path(), "other", "echo hello")).await.contains("not a llama-server"));
        let failing = probe(script(dir.path(), "fails", "echo cannot load libx.so >&2; exit 127")).await;
        assert!(failing.contains("libx.so"), "{failing}");
    }

    #[tokio::test]
    async fn an_unchanged_binary_is_asked_once() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let body = format!(
            "echo $1 >> {}\ncase $1 in --version) echo 'version: 7 (abc)' >&2;; *) printf -- '{}';; esac",
            log.display(),
            "-m, --model FNAME  x\\n-c, --ctx-size N  x\\n--port PORT  x\\n"
        );
        let path = script(dir.path(), "llama-server", &body);
        let first = Server::probe(&path).await.unwrap();
        let second = Server::probe(&path).await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert_eq!(first.version.build, Some(7));
        assert_eq!(std::fs::read_to_string(log).unwrap(), "--help\n--version\n");
    }
}
