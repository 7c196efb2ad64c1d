//! API keys: who may do what. Only the SHA-256 of a key's secret is kept.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

use crate::{Error, Result, Store};

/// Channel on which a change of any key is announced; the payload is empty.
pub const CHANNEL: &str = "lares_keys";

/// What the holder of a key may do. Each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Look.
    Viewer,
    /// Use models and submit tasks.
    Client,
    /// Cancel, approve, heal.
    Operator,
    /// Everything, keys included.
    Admin,
}

impl Role {
    /// Every role, the weakest first.
    pub const ALL: [Self; 4] = [Self::Viewer, Self::Client, Self::Operator, Self::Admin];

    /// The name that files, tables and commands use.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Client => "client",
            Self::Operator => "operator",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is no role.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a role; use viewer, client, operator or admin")]
pub struct UnknownRole(String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(s: &str) -> Result<Self, UnknownRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == s).ok_or_else(|| UnknownRole(s.to_owned()))
    }
}

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its identity, in the audit log and over HTTP.
    pub id: Uuid,
    /// What people call it. No two keys that work have the same.
    pub name: String,
    /// What its holder may do.
    pub role: Role,
    /// SHA-256 of the secret.
    pub hash: [u8; 32],
    /// When it was made.
    pub created_at: Timestamp,
    /// When it stopped working, if it has.
    pub revoked_at: Option<Timestamp>,
}

impl Key {
    /// A key that works from now on.
    pub fn new(name: impl Into<String>, role: Role, hash: [u8; 32]) -> Self {
        Self { id: Uuid::now_v7(), name: name.into(), role, hash, created_at: Timestamp::now(), revoked_at: None }
    }
}

/// Queries on keys. Every change is announced on [`CHANNEL`].
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    pub(crate) store: &'a Store,
}

impl Keys<'_> {
    /// Adds a key.
    ///
    /// # Errors
    /// [`Error::KeyNameTaken`] when a key that works has the name; else when PostgreSQL fails.
    pub async fn insert(&self, key: &Key) -> Result<()> {
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached(
                "INSERT INTO keys (id, name, role, hash, created_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .await?;
        let hash: &[u8] = &key.hash;
        client
            .execute(&statement, &[&key.id, &key.name, &key.role.as_str(), &hash, &key.created_at, &key.revoked_at])
            .await
            .map_err(|e| match e.as_db_error() {
                Some(db) if db.code() == &SqlState::UNIQUE_VIOLATION && db.constraint() == Some("keys_name_in_use") => {
                    Error::KeyNameTaken(key.name.clone())
                }
                _ => e.into(),
            })?;
        Ok(())
    }

    /// All keys, revoked ones too, the oldest first.
    ///
    /// # Errors
    /// When PostgreSQL fails or a row cannot be read.
    pub async fn list(&self) -> Result<Vec<Key>> {
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached("SELECT id, name, role, hash, created_at, revoked_at FROM keys ORDER BY created_at, id")
            .await?;
        client.query(&statement, &[]).await?.iter().map(from_row).collect()
    }

    /// Makes a key stop working. `false` when there is no such key or it had stopped already.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn revoke(&self, id: Uuid) -> Result<bool> {
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached("UPDATE keys SET revoked_at = clock_timestamp() WHERE id = $1 AND revoked_at IS NULL")
            .await?;
        Ok(client.execute(&statement, &[&id]).await? == 1)
    }
}

fn from_row(row: &Row) -> Result<Key> {
    let id: Uuid = row.try_get("id")?;
    let unreadable = |what: String| Error::Unreadable { table: "keys", what: format!("key {id}: {what}") };
    let role: &str = row.try_get("role")?;
    let hash: &[u8] = row.try_get("hash")?;
    Ok(Key {
        id,
        name: row.try_get("name")?,
        role: role.parse().map_err(|e: UnknownRole| unreadable(e.to_string()))?,
        hash: hash.try_into().map_err(|_| unreadable(format!("a hash of {} bytes", hash.len())))?,
        created_at: row.try_get("created_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_role_reads_back_what_it_prints_and_ranks_by_power() {
        for role in Role::ALL {
            assert_eq!(role.to_string().parse::<Role>().unwrap(), role);
            assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
        }
        assert!(Role::ALL.is_sorted());
        assert!("root".parse::<Role>().unwrap_err().to_string().contains("operator"));
    }
}
