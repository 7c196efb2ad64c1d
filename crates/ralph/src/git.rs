//! Git, by its command line: never through a shell, never asking anybody, never running a hook.
//!
//! Inside a worktree the `.git` directory is always named outright. An agent may write to its worktree, so a `.git`
//! found there could point anywhere, and a configuration of its making would be code that runs as this process.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Longest run of one git command. Checking out a large repository on a slow disk takes minutes.
const TIMEOUT: Duration = Duration::from_secs(600);
/// Most bytes read from one git command; a list of a million paths fits.
const MAX_OUTPUT: u64 = 128 << 20;
/// Most bytes of an error message kept.
const MAX_ERROR: u64 = 16 << 10;

/// Switches of every call: nothing of the repository's own automation, and nobody to ask.
const SWITCHES: [&str; 12] = [
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "commit.gpgSign=false",
    "-c",
    "gc.auto=0",
    "-c",
    "diff.ignoreSubmodules=all",
    "-c",
    "submodule.recurse=false",
];

/// Why git did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// The path is not absolute.
    #[error("{0} is not an absolute path")]
    NotAbsolute(PathBuf),
    /// There is nothing at the path.
    #[error("{0} does not exist on the machine ralph runs on")]
    Missing(PathBuf),
    /// There is something else than a directory at the path.
    #[error("{0} is not a directory")]
    NotADirectory(PathBuf),
    /// No git repository there.
    #[error("{0} is not in a git repository; run `git init` and commit what is there")]
    NotARepository(PathBuf),
    /// Git distrusts a repository of another user.
    #[error(
        "{0} belongs to another user, so git refuses it; run `git config --global --add safe.directory {0}` as the user \
         that ralph runs as"
    )]
    DubiousOwnership(PathBuf),
    /// The path lies below the top of a repository.
    #[error("{path} is a directory inside the repository {top}; name that one")]
    Inside {
        /// The path.
        path: PathBuf,
        /// The top of its working tree.
        top: PathBuf,
    },
    /// Nothing was ever committed.
    #[error("{0} has no commit yet; commit what is there first")]
    NoCommits(PathBuf),
    /// The git program cannot be started.
    #[error("cannot run git: {0}; is it installed and on PATH?")]
    Unavailable(std::io::Error),
    /// A command took too long.
    #[error("git {command} did not end within {} s", TIMEOUT.as_secs())]
    TimedOut {
        /// The command.
        command: String,
    },
    /// A command printed more than is read.
    #[error("git {command} printed more than {limit} bytes")]
    TooLarge {
        /// The command.
        command: String,
        /// The bound, in bytes.
        limit: u64,
    },
    /// A command failed.
    #[error("git {command} failed: {message}")]
    Failed {
        /// The command.
        command: String,
        /// What it printed.
        message: String,
    },
    /// The disk did not do what was asked.
    #[error("{path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

type Result<T, E = GitError> = std::result::Result<T, E>;

/// A git call before it is run.
pub(crate) struct Call {
    args: Vec<OsString>,
    dir: PathBuf,
    env: Vec<(&'static str, OsString)>,
    stdin: Vec<u8>,
    limit: u64,
}

impl Call {
    pub(crate) fn new<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(dir: &Path, args: I) -> Self {
        Self {
            args: args.into_iter().map(|arg| arg.as_ref().to_owned()).collect(),
            dir: dir.to_owned(),
            env: Vec::new(),
            stdin: Vec::new(),
            limit: MAX_OUTPUT,
        }
    }

    pub(crate) fn env(mut self, name: &'static str, value: impl Into<OsString>) -> Self {
        self.env.push((name, value.into()));
        self
    }

    pub(crate) fn stdin(mut self, bytes: Vec<u8>) -> Self {
        self.stdin = bytes;
        self
    }

    pub(crate) fn limit(mut self, bytes: u64) -> Self {
        self.limit = bytes;
        self
    }

    fn name(&self) -> String {
        self.args
            .iter()
            .find(|arg| !arg.as_encoded_bytes().starts_with(b"-"))
            .map_or_else(String::new, |arg| arg.to_string_lossy().into_owned())
    }

    /// Runs it; whether it succeeded is the caller's to judge.
    pub(crate) async fn output(self) -> Result<Finished> {
        let command = self.name();
        let mut child = Command::new("git");
        child.args(SWITCHES).args(&self.args).current_dir(&self.dir).env_clear();
        for name in ["PATH", "HOME", "XDG_CONFIG_HOME", "TMPDIR"] {
            if let Some(value) = std::env::var_os(name) {
                child.env(name, value);
            }
        }
        child
            .env("LC_ALL", "C")
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_OPTIONAL_LOCKS", "0")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .env("GIT_EDITOR", "true")
            .env("GIT_AUTHOR_NAME", "Lares")
            .env("GIT_AUTHOR_EMAIL", "lares@localhost")
            .env("GIT_COMMITTER_NAME", "Lares")
            .env("GIT_COMMITTER_EMAIL", "lares@localhost")
            .envs(self.env)
            .stdin(if self.stdin.is_empty() { Stdio::null() } else { Stdio::piped() })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = child.spawn().map_err(GitError::Unavailable)?;
        let pid = child.id();
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let run = async {
            let feed = async {
                if let Some(mut pipe) = stdin {
                    // A git that stops reading has failed and says so itself.
                    let _ = pipe.write_all(&self.stdin).await;
                }
            };
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let read_out = async {
                match stdout {
                    Some(pipe) => pipe.take(self.limit + 1).read_to_end(&mut out).await,
                    None => Ok(0),
                }
            };
            let read_err = async {
                match stderr {
                    Some(mut pipe) => {
                        let read = (&mut pipe).take(MAX_ERROR).read_to_end(&mut err).await;
                        // Left unread, a repository with many warnings would stop git.
                        let _ = tokio::io::copy(&mut pipe, &mut tokio::io::sink()).await;
                        read
                    }
                    None => Ok(0),
                }
            };
            let ((), read, _) = tokio::join!(feed, read_out, read_err);
            read.map_err(GitError::Unavailable)?;
            if out.len() as u64 > self.limit {
                return Err(GitError::TooLarge { command: command.clone(), limit: self.limit });
            }
            let status = child.wait().await.map_err(GitError::Unavailable)?;
            Ok(Finished { command: command.clone(), code: status.code(), out, err })
        };
        // A git that is dropped runs on to its end, and one that takes too long is asked to end: killed, it would leave
        // a lock behind in a person's repository.
        tokio::time::timeout(TIMEOUT, run).await.unwrap_or_else(|_| {
            if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGTERM);
            }
            Err(GitError::TimedOut { command: command.clone() })
        })
    }

    /// Runs it and returns what it printed.
    pub(crate) async fn run(self) -> Result<Vec<u8>> {
        self.output().await?.success()
    }

    /// Runs it and returns the one line it printed.
    pub(crate) async fn line(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run().await?).trim().to_owned())
    }

    /// Runs it and returns the NUL-separated list it printed.
    pub(crate) async fn list(self) -> Result<Vec<String>> {
        let out = self.run().await?;
        Ok(out.split(|b| *b == 0).filter(|p| !p.is_empty()).map(|p| String::from_utf8_lossy(p).into_owned()).collect())
    }
}

/// A git command that has ended.
pub(crate) struct Finished {
    command: String,
    pub(crate) code: Option<i32>,
    pub(crate) out: Vec<u8>,
    err: Vec<u8>,
}

impl Finished {
    pub(crate) fn message(&self) -> String {
        String::from_utf8_lossy(&self.err).trim().to_owned()
    }

    pub(crate) fn success(self) -> Result<Vec<u8>> {
        if self.code == Some(0) {
            return Ok(self.out);
        }
        let message = self.message();
        let message = match (message.is_empty(), self.code) {
            (false, _) => message,
            (true, Some(code)) => format!("exit code {code}"),
            (true, None) => "it was killed".to_owned(),
        };
        Err(GitError::Failed { command: self.command, message })
    }
}

/// A repository a task works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Repo {
    /// The path the task names.
    pub(crate) path: PathBuf,
    /// The git directory that all its worktrees share.
    pub(crate) git_dir: PathBuf,
}

/// What is checked out in a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) commit: String,
    /// Its branch; `None` when HEAD is detached.
    pub(crate) branch: Option<String>,
    /// Whether there are changes that are in no commit.
    pub(crate) dirty: bool,
}

impl Repo {
    /// Finds the repository at `path`; the error says what is wrong with it and what to do.
    pub(crate) async fn open(path: &Path) -> Result<Self> {
        let at = path.to_owned();
        if !path.is_absolute() {
            return Err(GitError::NotAbsolute(at));
        }
        match tokio::fs::metadata(path).await {
            Ok(meta) if !meta.is_dir() => return Err(GitError::NotADirectory(at)),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(GitError::Missing(at)),
            Err(source) => return Err(GitError::Disk { path: at, source }),
        }
        let found = Call::new(path, ["rev-parse", "--path-format=absolute", "--git-common-dir"]).output().await?;
        if found.code != Some(0) {
            let message = found.message();
            return Err(if message.contains("dubious ownership") {
                GitError::DubiousOwnership(at)
            } else if message.contains("not a git repository") {
                GitError::NotARepository(at)
            } else {
                GitError::Failed { command: "rev-parse".to_owned(), message }
            });
        }
        let git_dir = PathBuf::from(String::from_utf8_lossy(&found.out).trim_end_matches('\n'));
        let top = Call::new(path, ["rev-parse", "--show-prefix", "--show-toplevel"]).output().await?;
        let top = String::from_utf8_lossy(&top.out).into_owned();
        if let Some((prefix, top)) = top.trim_end_matches('\n').split_once('\n')
            && !prefix.is_empty()
        {
            return Err(GitError::Inside { path: at, top: PathBuf::from(top) });
        }
        Ok(Self { path: at, git_dir })
    }

    /// A call on this repository, whatever is checked out where.
    pub(crate) fn call<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&self, args: I) -> Call {
        Call::new(&self.git_dir, args).env("GIT_DIR", &self.git_dir)
    }

    /// What is checked out at the path the task names.
    pub(crate) async fn head(&self) -> Result<Head> {
        let commit = Call::new(&self.path, ["rev-parse", "--verify", "--quiet", "HEAD^{commit}"]).output().await?;
        if commit.code != Some(0) {
            return Err(GitError::NoCommits(self.path.clone()));
        }
        let commit = String::from_utf8_lossy(&commit.out).trim().to_owned();
        let branch = Call::new(&self.path, ["symbolic-ref", "--quiet", "--short", "HEAD"]).output().await?;
        let branch = (branch.code == Some(0)).then(|| String::from_utf8_lossy(&branch.out).trim().to_owned());
        // A bare repository has no working tree and fails here, which means that nothing in it is uncommitted.
        let status = Call::new(&self.path, ["status", "--porcelain", "--untracked-files=no"]).output().await?;
        Ok(Head { commit, branch, dirty: status.code == Some(0) && !status.out.is_empty() })
    }

    /// Paths of the files in a commit.
    pub(crate) async fn files(&self, commit: &str) -> Result<Vec<String>> {
        self.call(["ls-tree", "-r", "-z", "--name-only", "--full-tree", commit]).list().await
    }

    /// Whether the commit is there.
    pub(crate) async fn has(&self, commit: &str) -> Result<bool> {
        Ok(self.call(["cat-file", "-e", &format!("{commit}^{{commit}}")]).output().await?.code == Some(0))
    }

    pub(crate) async fn tree(&self, commit: &str) -> Result<String> {
        self.call(["rev-parse", "--verify", &format!("{commit}^{{tree}}")]).line().await
    }

    /// Makes a commit. The same content at the same time gives the same commit, so making it twice is making it once.
    pub(crate) async fn commit(&self, tree: &str, parents: &[&str], message: &str, at: Timestamp) -> Result<String> {
        let mut args = vec!["commit-tree", tree];
        for parent in parents {
            args.extend(["-p", parent]);
        }
        let date = format!("@{} +0000", at.as_second());
        self.call(args)
            .env("GIT_AUTHOR_DATE", &date)
            .env("GIT_COMMITTER_DATE", &date)
            .stdin(message.as_bytes().to_vec())
            .line()
            .await
    }

    /// Points a ref of ours at a commit. A lock left behind by a git that was killed does not stop it: nobody else
    /// writes these refs.
    pub(crate) async fn set_ref(&self, name: &str, commit: &str) -> Result<()> {
        let lock = self.git_dir.join(format!("{name}.lock"));
        match self.call(["update-ref", "-m", "lares", name, commit]).run().await {
            Err(GitError::Failed { message, .. }) if message.contains(".lock") && lock.exists() => {
                tracing::warn!(lock = %lock.display(), "removing a lock left behind by a git that was killed");
                remove_file(&lock).await?;
                self.call(["update-ref", "-m", "lares", name, commit]).run().await.map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Commit a ref points at.
    pub(crate) async fn get_ref(&self, name: &str) -> Result<Option<String>> {
        let found = self.call(["rev-parse", "--verify", "--quiet", &format!("{name}^{{commit}}")]).output().await?;
        Ok((found.code == Some(0)).then(|| String::from_utf8_lossy(&found.out).trim().to_owned()))
    }

    /// Removes every ref below `prefix`, which ends in a slash.
    pub(crate) async fn delete_refs(&self, prefix: &str) -> Result<()> {
        let refs = self.call(["for-each-ref", "--format=%(refname)", prefix]).run().await?;
        let commands: String = String::from_utf8_lossy(&refs).lines().map(|name| format!("delete {name}\n")).collect();
        if commands.is_empty() {
            return Ok(());
        }
        self.call(["update-ref", "--stdin"]).stdin(commands.into_bytes()).run().await.map(drop)
    }

    /// The difference between two commits as a patch, at most `limit` bytes of it.
    pub(crate) async fn diff(&self, from: &str, to: &str, limit: u64) -> Result<Vec<u8>> {
        self.call(["diff", "--no-color", "--no-ext-diff", "--no-textconv", "--binary", from, to])
            .limit(limit)
            .run()
            .await
    }

    /// Paths that differ between two commits.
    pub(crate) async fn changed(&self, from: &str, to: &str) -> Result<Vec<String>> {
        self.call(["diff", "--name-only", "--no-renames", "--no-ext-diff", "-z", from, to]).list().await
    }
}

async fn remove_file(path: &Path) -> Result<()> {
    match tokio::fs::remove_file(path).await {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(GitError::Disk { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
