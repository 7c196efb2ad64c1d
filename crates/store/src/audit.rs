//! The audit log: who did what to what, and whether it was allowed. Append-only.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{Result, Store};

/// One line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its identity.
    pub id: Uuid,
    /// When it happened.
    pub at: Timestamp,
    /// The key that was used; `None` for what Lares does by itself, and for callers without a known key.
    pub key_id: Option<Uuid>,
    /// The key's name at that time, or who else it was (`lares up`).
    pub name: String,
    /// What was done, for example `task.cancel`.
    pub action: String,
    /// What it was done to, for example a task's id.
    pub target: String,
    /// How it ended: `ok`, `denied`, or what went wrong.
    pub outcome: String,
}

impl Entry {
    /// Something that happens now.
    pub fn new(
        key_id: Option<Uuid>,
        name: impl Into<String>,
        action: impl Into<String>,
        target: impl Into<String>,
        outcome: impl Into<String>,
    ) -> Self {
        Self {
            id: Uuid::now_v7(),
            at: Timestamp::now(),
            key_id,
            name: name.into(),
            action: action.into(),
            target: target.into(),
            outcome: outcome.into(),
        }
    }
}

/// Queries on the audit log.
#[derive(Debug, Clone, Copy)]
pub struct Audit<'a> {
    pub(crate) store: &'a Store,
}

impl Audit<'_> {
    /// Adds a line; adding it again changes nothing. NUL characters, which PostgreSQL cannot hold, become U+FFFD.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn insert(&self, entry: &Entry) -> Result<()> {
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached(
                "INSERT INTO audit (id, at, key_id, name, action, target, outcome) VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (id) DO NOTHING",
            )
            .await?;
        let [name, action, target, outcome] =
            [&entry.name, &entry.action, &entry.target, &entry.outcome].map(|text| text.replace('\0', "\u{fffd}"));
        client.execute(&statement, &[&entry.id, &entry.at, &entry.key_id, &name, &action, &target, &outcome]).await?;
        Ok(())
    }

    /// The last `limit` lines, the newest first.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn recent(&self, limit: u32) -> Result<Vec<Entry>> {
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached(
                "SELECT id, at, key_id, name, action, target, outcome FROM audit ORDER BY at DESC, id DESC LIMIT $1",
            )
            .await?;
        let rows = client.query(&statement, &[&i64::from(limit)]).await?;
        rows.iter()
            .map(|row| {
                Ok(Entry {
                    id: row.try_get(0)?,
                    at: row.try_get(1)?,
                    key_id: row.try_get(2)?,
                    name: row.try_get(3)?,
                    action: row.try_get(4)?,
                    target: row.try_get(5)?,
                    outcome: row.try_get(6)?,
                })
            })
            .collect()
    }
}
