//! What Lares remembers: PostgreSQL (the only source of truth), vectors and a cache.
//!
//! [`Store`] is the pool; each table family has a module and a small borrowed struct with its queries
//! ([`Store::keys`], [`Store::tasks`], …). [`cluster`] is the private PostgreSQL of `lares up`. [`vectors`] and [`cache`]
//! stand on their own and each have an implementation that needs no further server.

pub mod audit;
pub mod cache;
pub mod cluster;
mod connect;
mod error;
pub mod events;
pub mod failures;
pub mod incidents;
pub mod keys;
mod migrations;
pub mod notify;
pub mod tasks;
#[cfg(feature = "testing")]
pub mod testing;
pub mod tools;
pub mod vectors;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{Object, Pool};

pub use error::Error;
pub use keys::Role;

/// What most functions of this crate return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The pool of connections to PostgreSQL. Clones share it.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    pool: Pool,
    /// For connections outside the pool, which wait for notifications.
    settings: tokio_postgres::Config,
    connect_timeout: Duration,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("pool", &self.inner.pool.status()).finish_non_exhaustive()
    }
}

impl Store {
    /// Connects, retrying until `connect_timeout`, and brings the tables up to this version.
    ///
    /// Without `url_file` and `url` this is the private cluster that `lares up` runs in `state_dir`.
    ///
    /// # Errors
    /// When the connection string cannot be used, PostgreSQL cannot be reached or refuses us, or the database was
    /// written by a newer version.
    pub async fn connect(config: &lares_config::Store, state_dir: &Path) -> Result<Self> {
        let store = Self::open(config, state_dir).await?;
        store.prepare().await?;
        Ok(store)
    }

    /// A pool that connects when it is used, for a daemon that works without PostgreSQL too. [`Store::prepare`] has to
    /// succeed once before anything else is asked of it.
    ///
    /// # Errors
    /// When the connection string cannot be used.
    pub async fn open(config: &lares_config::Store, state_dir: &Path) -> Result<Self> {
        let settings = connect::settings(config, state_dir).await?;
        let pool = connect::pool(&settings, config)?;
        Ok(Self { inner: Arc::new(Inner { pool, settings, connect_timeout: config.connect_timeout }) })
    }

    /// Connects, retrying until `connect_timeout`, and brings the tables up to this version.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached or refuses us, or the database was written by a newer version.
    pub async fn prepare(&self) -> Result<()> {
        connect::until(self.inner.connect_timeout, &self.inner.pool).await?;
        migrations::apply(&mut *self.client().await?).await
    }

    /// API keys and their roles.
    pub fn keys(&self) -> keys::Keys<'_> {
        keys::Keys { store: self }
    }

    /// Tasks, iterations and checks.
    pub fn tasks(&self) -> tasks::Tasks<'_> {
        tasks::Tasks::new(&self.inner.pool)
    }

    /// Incidents of units.
    pub fn incidents(&self) -> incidents::Incidents<'_> {
        incidents::Incidents { store: self }
    }

    /// Failures that no pattern knows.
    pub fn failures(&self) -> failures::Failures<'_> {
        failures::Failures { store: self }
    }

    /// Tool servers and their tools.
    pub fn tools(&self) -> tools::Tools<'_> {
        tools::Tools { store: self }
    }

    /// Telemetry.
    pub fn events(&self) -> events::Events<'_> {
        events::Events { store: self }
    }

    /// Who did what.
    pub fn audit(&self) -> audit::Audit<'_> {
        audit::Audit { store: self }
    }

    /// The table behind [`vectors::Memory`].
    pub fn vectors_table(&self) -> vectors::Table<'_> {
        vectors::Table { store: self }
    }

    /// Waits for notifications on `channels`, over a connection of its own that comes back when it is lost.
    ///
    /// Returns once PostgreSQL listens, so what is read after this call and what is announced leave no gap.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached within `connect_timeout`.
    pub async fn listen(&self, channels: &[&str]) -> Result<notify::Notifications> {
        notify::Notifications::open(&self.inner.settings, self.inner.connect_timeout, channels).await
    }

    /// Asks PostgreSQL for a sign of life, for `/ready`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn ping(&self) -> Result<()> {
        self.client().await?.simple_query("SELECT 1").await?;
        Ok(())
    }

    /// A connection from the pool; waits for one no longer than `connect_timeout`.
    pub(crate) async fn client(&self) -> Result<Object> {
        Ok(self.inner.pool.get().await?)
    }
}
