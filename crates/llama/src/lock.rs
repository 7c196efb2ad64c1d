//! Two processes that would do the same long job: the second waits for the first.

use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often a lock that another process holds is tried again.
const POLL: Duration = Duration::from_millis(200);

/// Takes the lock at `path`, which is freed when the file is dropped or the process ends. Waits at most `limit`
/// (`None` after that), and calls `on_wait` once if it has to wait at all.
pub(crate) async fn exclusive(path: &Path, limit: Duration, on_wait: impl FnOnce()) -> io::Result<Option<File>> {
    let file = tokio::fs::File::options().create(true).truncate(false).write(true).open(path).await?;
    let file = file.into_std().await;
    let started = Instant::now();
    let mut on_wait = Some(on_wait);
    loop {
        // Never waits itself, so it may run here.
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if started.elapsed() >= limit => return Ok(None),
            Err(TryLockError::WouldBlock) => {}
        }
        if let Some(on_wait) = on_wait.take() {
            on_wait();
        }
        tokio::time::sleep(POLL).await;
    }
}
