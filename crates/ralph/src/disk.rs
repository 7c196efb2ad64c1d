//! Whether there is room for an iteration: a full disk puts a task off, it never fails one.

use std::path::Path;
use std::time::Duration;

use lares_config::ByteSize;

use crate::hold::Halt;
use crate::work::Shop;

/// How long a task waits in the queue for room.
const WAIT: Duration = Duration::from_secs(30);

/// Puts the task off when the worktrees or the repository, which takes the commits, have too little room.
pub(crate) async fn guard(shop: &Shop, repo: &Path) -> Result<(), Halt> {
    let least = shop.config.ralph.min_free_disk;
    for path in [shop.worktrees.root(), repo] {
        let Some(free) = free(path).await else { continue };
        if free < least {
            let reason = format!(
                "{} has {free} free, less than ralph.min_free_disk ({least}); the task waits until there is more",
                path.display()
            );
            return Err(Halt::Later { wait: WAIT, reason });
        }
    }
    Ok(())
}

/// Bytes this user may still write there; `None` when the system does not say.
async fn free(path: &Path) -> Option<ByteSize> {
    let path = path.to_owned();
    let asked = tokio::task::spawn_blocking(move || nix::sys::statvfs::statvfs(&path)).await.ok()?.ok()?;
    // Down to whole MiB, which people can read.
    let bytes = asked.blocks_available() as u64 * asked.fragment_size() as u64;
    Some(ByteSize::mib(bytes >> 20))
}
