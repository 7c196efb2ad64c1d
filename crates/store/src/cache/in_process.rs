//! The cache of one process: the least recently used goes first, whatever its age.

use std::num::NonZeroUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;

use super::{Cache, Result, check};

/// Most bytes of keys and values together.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// A cache in memory.
#[derive(Debug)]
pub struct InProcess {
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    entries: LruCache<String, Entry>,
    bytes: usize,
}

#[derive(Debug)]
struct Entry {
    value: Bytes,
    expires: Instant,
}

impl InProcess {
    /// An empty cache for so many entries, at least one.
    pub fn new(max_entries: u32) -> Self {
        let most = usize::try_from(max_entries).ok().and_then(NonZeroUsize::new).unwrap_or(NonZeroUsize::MIN);
        Self { kept: Mutex::new(Kept { entries: LruCache::new(most), bytes: 0 }) }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn get(&mut self, key: &str, now: Instant) -> Option<Bytes> {
        let entry = self.entries.get(key)?;
        if entry.expires > now {
            return Some(entry.value.clone());
        }
        self.remove(key);
        None
    }

    fn put(&mut self, key: &str, value: Bytes, expires: Instant) {
        self.remove(key);
        self.bytes += key.len() + value.len();
        if let Some((key, entry)) = self.entries.push(key.to_owned(), Entry { value, expires }) {
            self.bytes -= key.len() + entry.value.len();
        }
        while self.bytes > MAX_BYTES {
            let Some((key, entry)) = self.entries.pop_lru() else { break };
            self.bytes -= key.len() + entry.value.len();
        }
    }

    fn remove(&mut self, key: &str) -> Option<Entry> {
        let entry = self.entries.pop(key)?;
        self.bytes -= key.len() + entry.value.len();
        Some(entry)
    }
}

#[async_trait]
impl Cache for InProcess {
    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        Ok(self.kept().get(key, Instant::now()))
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Duration) -> Result<()> {
        check(&value)?;
        let now = Instant::now();
        match now.checked_add(ttl) {
            _ if ttl.is_zero() => drop(self.kept().remove(key)),
            // Longer than the clock can count is for ever, which a year is to a process.
            expires => {
                let expires = expires.unwrap_or(now + Duration::from_secs(365 * 24 * 3600));
                self.kept().put(key, value, expires);
            }
        }
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let now = Instant::now();
        Ok(self.kept().remove(key).is_some_and(|entry| entry.expires > now))
    }

    async fn ping(&self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_least_recently_used_goes_first() {
        let cache = InProcess::new(2);
        cache.set("a", "1".into(), LONG).await.unwrap();
        cache.set("b", "2".into(), LONG).await.unwrap();
        cache.get("a").await.unwrap().unwrap();
        cache.set("c", "3".into(), LONG).await.unwrap();
        assert_eq!(cache.get("b").await.unwrap(), None);
        assert_eq!(cache.get("a").await.unwrap().unwrap(), "1");
    }

    #[tokio::test]
    async fn many_large_values_stay_within_the_bound_of_bytes() {
        let cache = InProcess::new(10_000);
        for number in 0..80 {
            cache.set(&number.to_string(), vec![0; super::super::MAX_VALUE].into(), LONG).await.unwrap();
        }
        let kept = cache.kept();
        assert!(kept.bytes <= MAX_BYTES);
        let counted: usize = kept.entries.iter().map(|(k, e)| k.len() + e.value.len()).sum();
        assert_eq!(kept.bytes, counted);
        assert!(kept.entries.len() >= 60);
    }
}
