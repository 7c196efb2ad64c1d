//! The healer's side of the helper's socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use lares_units::port::UnitId;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Answer, LINE, Verb};
use crate::facts::Holder;

/// Longest wait for an answer. Ending a process takes seven seconds at most, everything else far less.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the helper did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HelperError {
    /// Nobody answers at the socket.
    #[error("the root helper does not answer at {}: {cause}. Is lares-healer-helper.socket running? \
             `systemctl status lares-healer-helper.socket` tells", path.display())]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// This user may not use the socket, or polkit does not allow it the verb.
    #[error("the root helper does not allow it: {0}")]
    NotAllowed(String),
    /// The configuration does not provide for it, or it would harm.
    #[error("the root helper refuses: {0}")]
    Refused(String),
    /// It was tried in vain.
    #[error("the root helper failed: {0}")]
    Failed(String),
    /// The connection ended or no answer came in time: whether it was done is not known.
    #[error("the root helper has not answered, and whether it did what it was asked is not known: {0}")]
    Unanswered(String),
}

/// Asks the helper. Every call is a connection of its own, so nothing is left open between them and the helper may leave.
#[derive(Debug, Clone)]
pub struct Client {
    path: PathBuf,
}

impl Client {
    /// Of the helper at this socket (`healer.helper` in the configuration). Connects with the first call.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Who listens on a TCP port of this machine, and whose process that is as seen from `unit`.
    ///
    /// # Errors
    /// As every call: see [`HelperError`].
    pub async fn holder(&self, port: u16, unit: &str) -> Result<Option<Holder>, HelperError> {
        match self.ask(&Verb::Holder { unit: id(unit)?, port }).await? {
            Answer::Holder { holder } => Ok(holder),
            answer => Err(strange(&answer)),
        }
    }

    /// Ends a process that an earlier run of `unit` left behind. It is gone when this returns.
    ///
    /// # Errors
    /// As every call: see [`HelperError`].
    pub async fn end_process(&self, unit: &str, pid: i32, started: u64) -> Result<(), HelperError> {
        self.done(&Verb::EndProcess { unit: id(unit)?, pid, started }).await
    }

    /// Raises `MemoryMax` of `unit` until the next boot. It counts at once.
    ///
    /// # Errors
    /// As every call: see [`HelperError`].
    pub async fn set_memory_max(&self, unit: &str, bytes: u64) -> Result<(), HelperError> {
        self.done(&Verb::SetMemoryMax { unit: id(unit)?, bytes }).await
    }

    /// Moves `unit` to another port until the next boot, from its next start on.
    ///
    /// # Errors
    /// As every call: see [`HelperError`].
    pub async fn set_port(&self, unit: &str, to: u16) -> Result<(), HelperError> {
        self.done(&Verb::SetPort { unit: id(unit)?, to }).await
    }

    /// Begins the switch back to an earlier system generation; `lares-rollback.service` carries it out.
    ///
    /// # Errors
    /// As every call: see [`HelperError`].
    pub async fn roll_back(&self, to: u64) -> Result<(), HelperError> {
        self.done(&Verb::RollBack { to }).await
    }

    async fn done(&self, verb: &Verb) -> Result<(), HelperError> {
        match self.ask(verb).await? {
            Answer::Done => Ok(()),
            answer => Err(strange(&answer)),
        }
    }

    async fn ask(&self, verb: &Verb) -> Result<Answer, HelperError> {
        let absent = |cause| HelperError::Absent { path: self.path.clone(), cause };
        let stream = match timeout(PATIENCE, UnixStream::connect(&self.path)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(cause)) if cause.kind() == io::ErrorKind::PermissionDenied => {
                return Err(HelperError::NotAllowed(format!("{}: {cause}", self.path.display())));
            }
            Ok(Err(cause)) => return Err(absent(cause)),
            Err(_) => return Err(absent(io::ErrorKind::TimedOut.into())),
        };
        let answer = match timeout(PATIENCE, converse(stream, verb)).await {
            Ok(answer) => answer.map_err(|error| HelperError::Unanswered(error.to_string()))?,
            Err(_) => return Err(HelperError::Unanswered(format!("nothing within {} s", PATIENCE.as_secs()))),
        };
        match answer {
            Answer::NotAllowed { reason } => Err(HelperError::NotAllowed(reason)),
            Answer::Refused { reason } => Err(HelperError::Refused(reason)),
            Answer::Failed { reason } => Err(HelperError::Failed(reason)),
            answer => Ok(answer),
        }
    }
}

async fn converse(mut stream: UnixStream, verb: &Verb) -> io::Result<Answer> {
    let mut line = serde_json::to_vec(verb)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    let mut answer = Vec::new();
    BufReader::new(stream).take(LINE).read_until(b'\n', &mut answer).await?;
    if answer.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer)?)
}

/// A name that cannot be one is named nowhere in the configuration, either.
fn id(unit: &str) -> Result<UnitId, HelperError> {
    UnitId::new(unit).map_err(|error| HelperError::Refused(error.to_string()))
}

fn strange(answer: &Answer) -> HelperError {
    HelperError::Unanswered(format!("it answered `{}`, which is no answer to that", answer.name()))
}
