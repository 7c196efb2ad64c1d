//! What can go wrong with PostgreSQL, in words that name no password.

use std::error::Error as _;
use std::path::PathBuf;

use deadpool_postgres::PoolError;
use tokio_postgres::error::SqlState;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The connection string makes no sense. It is not shown because it may hold a password.
    #[error(
        "the connection string in {origin} is not one PostgreSQL understands; \
         write postgres://USER@HOST/DATABASE or host=HOST user=USER dbname=DATABASE"
    )]
    BadUrl {
        /// Where it was read.
        origin: String,
    },
    /// The file of `store.url_file` cannot be read.
    #[error("cannot read {path} (store.url_file): {source}")]
    UrlFile {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The connection string asks for TLS.
    #[error(
        "the connection string in {origin} asks for TLS, which Lares does not speak to PostgreSQL; \
         use a socket or loopback and sslmode=disable"
    )]
    Tls {
        /// Where it was read.
        origin: String,
    },
    /// No connection within the time allowed.
    #[error("no connection to PostgreSQL: {0}")]
    Unavailable(String),
    /// PostgreSQL said no, or the connection broke.
    #[error("PostgreSQL: {}", describe(.0))]
    Database(#[from] tokio_postgres::Error),
    /// A migration of this database differs from the one in this program.
    #[error(
        "migration {version} ({name}) of this database is not the one in this program; \
         it was changed after it had been applied: run the version of Lares that wrote the database"
    )]
    MigrationChanged {
        /// Its number.
        version: i32,
        /// Its name.
        name: String,
    },
    /// A newer version of Lares has been here.
    #[error(
        "the database is at migration {found} and this program knows {known}; \
         upgrade Lares, or restore the database of before the upgrade"
    )]
    DatabaseTooNew {
        /// What the database has.
        found: i32,
        /// What this program has.
        known: i32,
    },
    /// A migration failed; the database is as it was before.
    #[error("migration {version} ({name}) failed and was rolled back: {}", describe(.source))]
    MigrationFailed {
        /// Its number.
        version: i32,
        /// Its name.
        name: &'static str,
        /// What PostgreSQL said.
        source: tokio_postgres::Error,
    },
    /// A key that works already has the name.
    #[error("there already is a key named {0}; revoke it first or choose another name")]
    KeyNameTaken(String),
    /// A row holds what this version cannot read.
    #[error("table {table} holds something this version cannot read: {what}")]
    Unreadable {
        /// The table.
        table: &'static str,
        /// Which row and why.
        what: String,
    },
}

impl Error {
    /// Whether the same call may succeed a little later: PostgreSQL is away, starting, stopping or too busy.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Database(e) => is_temporary(e),
            _ => false,
        }
    }
}

impl From<PoolError> for Error {
    fn from(e: PoolError) -> Self {
        match e {
            PoolError::Backend(e) if e.code().is_some() => Self::Database(e),
            PoolError::Backend(e) => Self::Unavailable(describe(&e)),
            PoolError::Timeout(_) => {
                Self::Unavailable("none became free within store.connect_timeout; raise store.pool_size".to_owned())
            }
            other => Self::Unavailable(other.to_string()),
        }
    }
}

/// The whole chain of causes: the outermost says only "db error".
pub(crate) fn describe(e: &tokio_postgres::Error) -> String {
    if let Some(db) = e.as_db_error() {
        let mut text = format!("{} ({})", db.message(), db.code().code());
        for more in [db.detail(), db.hint()].into_iter().flatten() {
            text.push_str("; ");
            text.push_str(more);
        }
        return text;
    }
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

/// Whether the failure is the connection's or the server's state and not the statement's.
pub(crate) fn is_temporary(e: &tokio_postgres::Error) -> bool {
    match e.code() {
        Some(code) => {
            let class = code.code().get(..2).unwrap_or_default();
            // Connection, resources, operator intervention, and transactions that lost a race.
            matches!(class, "08" | "53" | "57")
                || [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED].contains(code)
        }
        None => {
            e.is_closed()
                || e.source().is_some_and(<dyn std::error::Error>::is::<std::io::Error>)
                || e.to_string().starts_with("error connecting")
                || e.to_string().starts_with("timeout")
        }
    }
}
