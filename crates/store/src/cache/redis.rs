//! The cache that several workers share: Valkey or Redis.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{AsyncCommands as _, Client};

use super::{Cache, Error, Result, check};

/// Keys of Lares in a server that others may use too.
const PREFIX: &str = "lares:";
/// Longest wait for an answer and for a connection: beyond it, asking the model again is no slower.
const ANSWER: Duration = Duration::from_secs(2);
/// Longest time to live asked for: Redis counts milliseconds in 64 bits from 1970.
const TTL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A cache in Valkey or Redis.
#[derive(Clone)]
pub struct Redis {
    connection: ConnectionManager,
}

impl std::fmt::Debug for Redis {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis").finish_non_exhaustive()
    }
}

impl Redis {
    /// Connects. A connection that is lost later comes back by itself.
    ///
    /// # Errors
    /// When the URL makes no sense or the server cannot be reached.
    pub async fn connect(url: &str) -> Result<Self> {
        let client = Client::open(url).map_err(|_| Error::BadUrl)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(ANSWER))
            .set_response_timeout(Some(ANSWER))
            .set_number_of_retries(2);
        let connection = ConnectionManager::new_with_config(client, config).await?;
        Ok(Self { connection })
    }
}

impl From<redis::RedisError> for Error {
    fn from(e: redis::RedisError) -> Self {
        Self::Redis(e.to_string())
    }
}

fn full(key: &str) -> String {
    format!("{PREFIX}{key}")
}

#[async_trait]
impl Cache for Redis {
    async fn get(&self, key: &str) -> Result<Option<Bytes>> {
        let value: Option<Vec<u8>> = self.connection.clone().get(full(key)).await?;
        Ok(value.map(Bytes::from))
    }

    async fn set(&self, key: &str, value: Bytes, ttl: Duration) -> Result<()> {
        check(&value)?;
        if ttl.is_zero() {
            return self.delete(key).await.map(drop);
        }
        // Redis counts whole milliseconds and refuses zero.
        let millis = u64::try_from(ttl.min(TTL_MAX).as_millis()).unwrap_or(u64::MAX).max(1);
        let () = self.connection.clone().pset_ex(full(key), value.as_ref(), millis).await?;
        Ok(())
    }

    async fn delete(&self, key: &str) -> Result<bool> {
        let removed: u64 = self.connection.clone().del(full(key)).await?;
        Ok(removed > 0)
    }

    async fn ping(&self) -> Result<()> {
        let () = self.connection.clone().ping().await?;
        Ok(())
    }
}
