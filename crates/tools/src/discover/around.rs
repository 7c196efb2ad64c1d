//! The port to what lies around the daemon: files, sockets, systemd. [`Machine`](super::Machine) is the real one.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

/// Why a file was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// There is none.
    #[error("is not there")]
    Absent,
    /// It is larger than was asked for.
    #[error("is larger than {0} bytes")]
    TooLarge(usize),
    /// It is a FIFO, a device, a directory.
    #[error("is not a regular file")]
    NotAFile,
    /// The system says no; its words.
    #[error("cannot be read: {0}")]
    Refused(String),
    /// It took too long, now or in an earlier round that still waits.
    #[error("does not answer")]
    Hangs,
}

/// A socket that listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Listening {
    /// Its address, loopback or unspecified.
    pub address: SocketAddr,
    /// The kernel's number of the socket: another one after its program was started again.
    pub socket: u64,
}

/// A unit and the files that make it, in the order in which systemd reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitFiles {
    /// Full name, for example `weather.service`.
    pub name: String,
    /// Its file and its drop-ins.
    pub files: Vec<PathBuf>,
}

/// What lies around the daemon. Nothing of it runs a command, and every answer comes within seconds.
#[async_trait]
pub trait Around: Send + Sync {
    /// The home directory of the user that the daemon runs as.
    fn home(&self) -> Option<PathBuf>;

    /// All of a regular file.
    ///
    /// # Errors
    /// When there is none, it is larger than `limit` bytes, is no regular file, or is kept from us.
    async fn read(&self, path: &Path, limit: usize) -> Result<Vec<u8>, ReadError>;

    /// The TCP sockets that listen on loopback or on every address, those of the house left out.
    ///
    /// # Errors
    /// When the system does not tell; a sentence.
    async fn listening(&self) -> Result<Vec<Listening>, String>;

    /// Asks whoever listens there whether it speaks MCP: the path at which it does.
    async fn speaks_mcp(&self, address: SocketAddr) -> Option<String>;

    /// The services that systemd has loaded; none where there is no systemd.
    ///
    /// # Errors
    /// When there is a systemd that does not tell; a sentence.
    async fn units(&self) -> Result<Vec<UnitFiles>, String>;
}
