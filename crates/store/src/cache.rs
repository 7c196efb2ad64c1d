//! A cache of answers: in this process, or in Valkey/Redis when several workers share.
//!
//! Losing it loses nothing. A reader treats an error as a miss.

mod in_process;
mod redis;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

pub use in_process::InProcess;
pub use redis::Redis;

/// Largest value kept, in bytes.
pub const MAX_VALUE: usize = 1024 * 1024;

/// Why the cache did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The value is larger than [`MAX_VALUE`].
    #[error("a value of {0} bytes is too large for the cache, which takes {MAX_VALUE}")]
    TooLarge(usize),
    /// The URL makes no sense. It is not shown because it may hold a password.
    #[error("store.cache.url is not a URL of Valkey or Redis; write redis://HOST:PORT or redis+unix:///PATH")]
    BadUrl,
    /// Valkey or Redis said no, or cannot be reached.
    #[error("the cache at store.cache.url: {0}")]
    Redis(String),
}

/// What functions on the cache return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A place for values that are forgotten after a while.
#[async_trait]
pub trait Cache: Send + Sync {
    /// What is kept under a key, if it has not been forgotten.
    ///
    /// # Errors
    /// When the server behind fails.
    async fn get(&self, key: &str) -> Result<Option<Bytes>>;

    /// Keeps a value for `ttl` at most, in place of what was there. A `ttl` of zero forgets it at once.
    ///
    /// # Errors
    /// When it is larger than [`MAX_VALUE`] or the server behind fails.
    async fn set(&self, key: &str, value: Bytes, ttl: Duration) -> Result<()>;

    /// Forgets a key; `false` when there was nothing.
    ///
    /// # Errors
    /// When the server behind fails.
    async fn delete(&self, key: &str) -> Result<bool>;

    /// Asks for a sign of life, for `/ready`.
    ///
    /// # Errors
    /// When the server behind gives none.
    async fn ping(&self) -> Result<()>;
}

/// The implementation the configuration asks for.
///
/// # Errors
/// When Valkey or Redis is asked for and cannot be reached.
pub async fn open(config: &lares_config::Cache) -> Result<Arc<dyn Cache>> {
    Ok(match config.backend {
        lares_config::CacheBackend::InProcess => Arc::new(InProcess::new(config.max_entries)),
        lares_config::CacheBackend::Redis => Arc::new(Redis::connect(&config.url).await?),
    })
}

fn check(value: &Bytes) -> Result<()> {
    if value.len() > MAX_VALUE { Err(Error::TooLarge(value.len())) } else { Ok(()) }
}
