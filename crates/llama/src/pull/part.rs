//! A file that is being fetched: written and hashed at the same time, resumed where it was left.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::hex;

/// Bytes read at a time while hashing.
const CHUNK: usize = 1 << 20;

/// The bytes fetched so far. Every method blocks.
#[derive(Debug)]
pub(super) struct Part {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    length: u64,
}

impl Part {
    /// Opens what was left at `path`, cuts it to `at_most` bytes and hashes them; `counter` counts along.
    pub(super) fn open(path: &Path, at_most: u64, counter: &AtomicU64) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() > at_most {
            file.set_len(at_most)?;
        }
        let (hasher, length) = hash(&mut file, counter)?;
        Ok(Self { path: path.to_owned(), file, hasher, length })
    }

    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.seek(SeekFrom::Start(0))?;
        self.hasher = Sha256::new();
        self.length = 0;
        Ok(())
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub(super) fn sha256(&self) -> String {
        hex::encode(&self.hasher.clone().finalize())
    }

    /// Makes it the whole file at `target`, for good.
    pub(super) fn settle(self, target: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, target)?;
        sync_parent(target)
    }
}

/// Makes a rename into the directory of `path` last.
pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// SHA-256 and length of everything in `file`, from its start; `counter` counts along.
pub(super) fn hash(file: &mut File, counter: &AtomicU64) -> io::Result<(Sha256, u64)> {
    file.seek(SeekFrom::Start(0))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; CHUNK];
    let mut length = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok((hasher, length));
        }
        hasher.update(&buffer[..n]);
        length += n as u64;
        counter.store(length, Ordering::Relaxed);
    }
}

/// What is known about a part, beside it on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Resume {
    /// The URL the ETag is of.
    #[serde(default)]
    pub(super) url: Option<String>,
    /// Strong ETag of the file behind the URL.
    #[serde(default)]
    pub(super) etag: Option<String>,
    /// Wheels whose bytes are all in the part, and how many bytes those are.
    #[serde(default)]
    pub(super) wheels: Option<(usize, u64)>,
}

impl Resume {
    /// What is written at `path`; nothing where that is missing or broken, since only a download is lost by it.
    pub(super) fn load(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    pub(super) fn store(&self, path: &Path) -> io::Result<()> {
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, serde_json::to_vec(self)?)?;
        std::fs::rename(fresh, path)
    }
}
