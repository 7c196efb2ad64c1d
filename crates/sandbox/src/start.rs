//! The other end: how the process that wants a run starts the launcher.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use uuid::Uuid;

use super::wire::send_descriptor;
use super::{Launcher, Spec, remove};

/// Longest the launcher may take to read what it is to do.
const TELL_TIMEOUT: Duration = Duration::from_secs(15);

/// The three standard streams of the command.
#[derive(Debug)]
pub struct Streams {
    /// Standard input; `None`: `/dev/null`.
    pub stdin: Option<OwnedFd>,
    /// Standard output.
    pub stdout: Stdio,
    /// Standard error; the launcher's own, too.
    pub stderr: Stdio,
}

/// Starts the launcher and tells it what to run. On the stream, [`crate::Report`]s come as JSON, one a line; any byte
/// sent asks it to end the run, and so does closing it.
///
/// # Errors
/// When the launcher cannot be started.
pub async fn start(launcher: &Launcher, spec: &Spec, streams: Streams) -> io::Result<(Child, UnixStream)> {
    let spec = Spec { stdin: streams.stdin.is_some(), ..spec.clone() };
    let frame = spec.frame()?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let mut control = UnixStream::from_std(ours)?;
    let child = Command::new(&launcher.program)
        .args(&launcher.args)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(streams.stdout)
        .stderr(streams.stderr)
        .spawn()?;
    // A launcher that ends at once says why better than the failing write does.
    let _ = timeout(TELL_TIMEOUT, tell(&mut control, &frame, streams.stdin)).await;
    Ok((child, control))
}

async fn tell(control: &mut UnixStream, frame: &[u8], stdin: Option<OwnedFd>) -> io::Result<()> {
    control.write_all(frame).await?;
    if let Some(stdin) = stdin {
        control.async_io(Interest::WRITABLE, || send_descriptor(control.as_fd(), stdin.as_fd())).await?;
    }
    Ok(())
}

/// The private directory of a run. The guard removes it, even when this process is gone; this is for when the guard is.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
}

impl Scratch {
    /// Makes one below `parent`.
    ///
    /// # Errors
    /// When the system does not let it.
    pub async fn make(parent: &Path) -> io::Result<Self> {
        let parent = parent.to_owned();
        let make = move || -> io::Result<Self> {
            use std::os::unix::fs::DirBuilderExt;
            let path = parent.canonicalize()?.join(format!("lares-run-{}", Uuid::now_v7().simple()));
            let mut directory = std::fs::DirBuilder::new();
            directory.mode(0o700).create(&path)?;
            // Owned from here on: a blocking task goes on when nobody waits for it any more, and then this is
            // dropped in it.
            let made = Self { path };
            for part in ["home", "tmp", "root"] {
                directory.create(made.path.join(part))?;
            }
            Ok(made)
        };
        tokio::task::spawn_blocking(make).await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    /// Where it is; `home` and `tmp` in it are for the run.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes it with all in it.
    pub async fn remove(self) {
        let path = self.path.clone();
        let _ = tokio::task::spawn_blocking(move || remove(&path)).await;
    }
}

/// A run that is dropped before its guard knows of the directory leaves it empty; one that is dropped later leaves it
/// to the guard, as it may be large.
impl Drop for Scratch {
    fn drop(&mut self) {
        for directory in ["home", "tmp", "root", ""] {
            let _ = std::fs::remove_dir(self.path.join(directory));
        }
    }
}
