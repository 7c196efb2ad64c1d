//! Failures of units that no pattern knows, and which of them are alike.
//!
//! They are those of all machines that share the database: what a program says when it fails does not depend on where
//! it runs. The collection `error-solutions` holds nothing that cannot be made again from here.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;

use crate::{Result, Store};

/// Most failures that are kept and compared: those that were seen last.
pub const KNOWN: i64 = 5000;
/// Longest sample, in characters.
const SAMPLE: usize = 500;
/// Longest template, in characters.
const TEMPLATE: usize = 4096;

/// A failure that no pattern knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Fingerprint of the line it is known by.
    pub fingerprint: String,
    /// The line, with all masked that differs from one time to the next.
    pub template: String,
    /// The line as it was seen first, without what may be a secret; at most 500 characters.
    pub sample: String,
    /// Fingerprint of the first of those that are alike; `None`: not compared yet.
    pub cluster: Option<String>,
    /// Id of the embedding model it was compared by; `None`: by its words.
    pub model: Option<String>,
    /// Times it was seen.
    pub seen: i64,
    /// When it was seen first.
    pub first_seen: Timestamp,
    /// When it was seen last.
    pub last_seen: Timestamp,
}

impl Failure {
    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            fingerprint: row.try_get("fingerprint")?,
            template: row.try_get("template")?,
            sample: row.try_get("sample")?,
            cluster: row.try_get("cluster")?,
            model: row.try_get("model")?,
            seen: row.try_get("seen")?,
            first_seen: row.try_get("first_seen")?,
            last_seen: row.try_get("last_seen")?,
        })
    }
}

/// Queries on failures.
#[derive(Debug, Clone, Copy)]
pub struct Failures<'a> {
    pub(crate) store: &'a Store,
}

impl Failures<'_> {
    /// Takes down that a failure was seen: adds it, or counts it once more. Its template and its sample stay the first.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn seen(&self, fingerprint: &str, template: &str, sample: &str) -> Result<Failure> {
        let client = self.store.client().await?;
        let row = client
            .query_one(
                "INSERT INTO failures AS f (fingerprint, template, sample) VALUES ($1, $2, $3)
                 ON CONFLICT (fingerprint) DO UPDATE SET seen = f.seen + 1, last_seen = clock_timestamp()
                 RETURNING *",
                &[&fingerprint, &fit(template, TEMPLATE), &fit(sample, SAMPLE)],
            )
            .await?;
        Failure::from_row(&row)
    }

    /// Says which failures this one is like, and by which model that was found out. Gives the cluster it belongs to from
    /// now on: the one it had already, if another was quicker. `None`: there is no such failure.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn assign(&self, fingerprint: &str, cluster: &str, model: Option<&str>) -> Result<Option<String>> {
        let client = self.store.client().await?;
        let row = client
            .query_opt(
                "UPDATE failures SET cluster = COALESCE(cluster, $2), model = $3 WHERE fingerprint = $1
                 RETURNING cluster",
                &[&fingerprint, &cluster, &model],
            )
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// The cluster of a failure. `None`: there is no such failure, or it was not compared yet.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn cluster(&self, fingerprint: &str) -> Result<Option<String>> {
        let client = self.store.client().await?;
        let row = client.query_opt("SELECT cluster FROM failures WHERE fingerprint = $1", &[&fingerprint]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?.flatten())
    }

    /// The failures seen last, at most [`KNOWN`], the latest first.
    ///
    /// # Errors
    /// When PostgreSQL fails or a row cannot be read.
    pub async fn known(&self) -> Result<Vec<Failure>> {
        let client = self.store.client().await?;
        let rows =
            client.query("SELECT * FROM failures ORDER BY last_seen DESC, fingerprint LIMIT $1", &[&KNOWN]).await?;
        rows.iter().map(Failure::from_row).collect()
    }

    /// Those of them that are known by another one, each with that one: fingerprint and cluster.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn clusters(&self) -> Result<Vec<(String, String)>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "SELECT fingerprint, cluster FROM failures WHERE cluster <> fingerprint
                 ORDER BY last_seen DESC, fingerprint LIMIT $1",
                &[&KNOWN],
            )
            .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
    }

    /// Forgets all but those `keep` that were seen last. Gives the fingerprints of the forgotten.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn forget(&self, keep: i64) -> Result<Vec<String>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "DELETE FROM failures WHERE fingerprint IN
                     (SELECT fingerprint FROM failures ORDER BY last_seen DESC, fingerprint OFFSET $1)
                 RETURNING fingerprint",
                &[&keep.max(0)],
            )
            .await?;
        rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
    }
}

/// PostgreSQL's text holds no NUL.
fn fit(text: &str, length: usize) -> String {
    text.chars().take(length).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}
