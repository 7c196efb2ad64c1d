//! The keys in memory: what a request is checked against, and the task that keeps them as PostgreSQL has them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use lares_store::Store;
use lares_store::keys::Key;
use lares_store::notify::Notifications;
use rand::Rng;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::auth::Caller;
use crate::problem::chain;

/// Longest wait for the list of keys.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait after the first failed read; it doubles up to the configured refresh.
const RETRY_FIRST: Duration = Duration::from_millis(250);

/// The keys that are good, by the hash of their secret.
///
/// The lookup is not constant-time and need not be: who does not know the secret cannot choose its SHA-256, so how far
/// a comparison got tells nothing.
#[derive(Debug)]
pub(crate) struct Keyring {
    callers: HashMap<[u8; 32], Caller>,
    read_at: Instant,
}

impl Keyring {
    /// `read_at` is when the reading began: nothing that changed later is certain to be in it.
    pub(crate) fn new(keys: impl IntoIterator<Item = Key>, read_at: Instant) -> Self {
        let callers = keys
            .into_iter()
            .filter(|key| key.revoked_at.is_none())
            .map(|key| (key.hash, Caller { key_id: key.id, name: key.name, role: key.role }))
            .collect();
        Self { callers, read_at }
    }

    pub(crate) fn find(&self, hash: &[u8; 32]) -> Option<&Caller> {
        self.callers.get(hash)
    }

    pub(crate) fn age(&self) -> Duration {
        self.read_at.elapsed()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.callers.is_empty()
    }
}

/// Reads the keys that PostgreSQL has now.
pub(crate) async fn read(store: &Store) -> Result<Keyring, String> {
    let began = Instant::now();
    match tokio::time::timeout(READ_TIMEOUT, store.keys().list()).await {
        Ok(Ok(keys)) => Ok(Keyring::new(keys, began)),
        Ok(Err(error)) => Err(chain(&error)),
        Err(_) => Err(format!("PostgreSQL did not answer within {} s", READ_TIMEOUT.as_secs())),
    }
}

/// Reads the keys again on every announcement and every `refresh`, until nobody looks at them any more or `shutdown`.
pub(crate) async fn keep(
    store: Store,
    mut changes: Notifications,
    keys: watch::Sender<Keyring>,
    refresh: Duration,
    shutdown: CancellationToken,
) {
    let mut failures = 0_u32;
    loop {
        let wait = if failures == 0 { refresh } else { retry_delay(failures, refresh) };
        tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            () = keys.closed() => return,
            // What changed does not matter: the list is short and read whole.
            Some(_) = changes.recv(), if failures == 0 => {}
            () = tokio::time::sleep(wait) => {}
        }
        match read(&store).await {
            Ok(read) => {
                if failures > 0 {
                    tracing::info!("API keys are up to date again");
                }
                failures = 0;
                keys.send_replace(read);
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(error, "API keys cannot be read; the last list stays in use for a while");
                }
                failures = failures.saturating_add(1);
            }
        }
    }
}

/// Doubles with each failure up to `most`, with a quarter of jitter so that daemons do not come back in step.
fn retry_delay(failures: u32, most: Duration) -> Duration {
    let doubled = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(most);
    doubled.mul_f64(rand::rng().random_range(0.75..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_slow_down_to_the_refresh_and_no_further() {
        let most = Duration::from_secs(30);
        for (failures, ceiling) in [(1, 250), (2, 500), (4, 2000), (8, 30_000), (u32::MAX, 30_000)] {
            let delay = retry_delay(failures, most).as_millis();
            assert!(delay <= ceiling && delay * 4 >= ceiling * 3, "{failures}: {delay} of {ceiling} ms");
        }
    }
}
