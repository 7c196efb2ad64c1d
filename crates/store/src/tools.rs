//! Tool servers, their tools, every version of a definition, and what changed when.
//!
//! The table of a definition's versions only grows by definitions that differ, and a server cannot make it grow without
//! end: beyond [`VERSIONS`] the oldest that was never approved goes.

use std::collections::BTreeMap;

use deadpool_postgres::Transaction;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Row;

use crate::events::clean_json;
use crate::{Result, Store};

/// Most versions kept of one tool's definition.
pub const VERSIONS: i64 = 20;
/// Most changes in one answer.
pub const CHANGES: i64 = 500;
/// Changes kept; older ones go.
const CHANGES_KEPT: i64 = 100_000;
/// Buckets of call times: the last begins at 2^(39/2) ms, twelve minutes.
pub const LATENCY_BUCKETS: usize = 40;

/// A tool server, as it was found last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// Its name.
    pub name: String,
    /// Where it was found.
    pub source: String,
    /// The file, port or unit it was found in.
    pub origin: String,
    /// How it is reached, with secrets masked.
    pub transport: Value,
    /// Stands for all that would be run or connected to.
    pub fingerprint: String,
    /// The fingerprint a person approved.
    pub approved_fingerprint: Option<String>,
    /// What was granted with that approval; `None`: nothing.
    pub granted: Option<Value>,
    /// `approved`, `proposed` or `rejected`.
    pub state: String,
    /// Whether its new tools are used without asking.
    pub trusted: bool,
    /// When it was found first.
    pub first_seen: Timestamp,
    /// When it was found last.
    pub last_seen: Timestamp,
    /// Since when it is found no more.
    pub gone_since: Option<Timestamp>,
}

impl ServerRecord {
    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            name: row.try_get("name")?,
            source: row.try_get("source")?,
            origin: row.try_get("origin")?,
            transport: row.try_get("transport")?,
            fingerprint: row.try_get("fingerprint")?,
            approved_fingerprint: row.try_get("approved_fingerprint")?,
            granted: row.try_get("granted")?,
            state: row.try_get("state")?,
            trusted: row.try_get("trusted")?,
            first_seen: row.try_get("first_seen")?,
            last_seen: row.try_get("last_seen")?,
            gone_since: row.try_get("gone_since")?,
        })
    }
}

/// How calls of a tool went.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CallCount {
    /// Calls that reached the server.
    pub calls: i64,
    /// Of these, those that failed.
    pub failures: i64,
    /// Calls by time: bucket n counts those of less than 2^(n/2) ms that no lower bucket counts. Empty without calls.
    pub latency: Vec<i64>,
    /// The last call.
    pub last: Option<Timestamp>,
}

impl CallCount {
    /// Counts a call that took `milliseconds`.
    pub fn add(&mut self, milliseconds: f64, failed: bool, at: Timestamp) {
        self.calls += 1;
        self.failures += i64::from(failed);
        self.latency.resize(LATENCY_BUCKETS, 0);
        let bucket = (0..LATENCY_BUCKETS - 1).find(|&n| milliseconds < bound(n)).unwrap_or(LATENCY_BUCKETS - 1);
        self.latency[bucket] += 1;
        self.last = Some(at);
    }

    /// The sum of two counts.
    pub fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.failures += other.failures;
        if self.latency.len() < other.latency.len() {
            self.latency.resize(other.latency.len(), 0);
        }
        for (mine, theirs) in self.latency.iter_mut().zip(&other.latency) {
            *mine += theirs;
        }
        self.last = self.last.max(other.last);
    }

    /// Time, in milliseconds, that the share `q` (0 to 1) of the calls did not exceed: the upper bound of its bucket,
    /// so at most 41 % too long. `None` without calls.
    pub fn quantile(&self, q: f64) -> Option<f64> {
        let total: i64 = self.latency.iter().sum();
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "counts are far below 2^52")]
        let wanted = ((total as f64 * q).ceil() as i64).max(1);
        let mut seen = 0;
        self.latency.iter().enumerate().find_map(|(n, count)| {
            seen += count;
            (seen >= wanted).then(|| bound(n))
        })
    }
}

/// Upper bound of a bucket of call times, in milliseconds.
fn bound(bucket: usize) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "there are 40 buckets")]
    let half = bucket as f64 / 2.0;
    half.exp2()
}

/// A tool, as its server listed it last.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ToolRecord {
    /// `SERVER__TOOL`.
    pub id: String,
    /// Its server.
    pub server: String,
    /// `approved`, `quarantined` or `blocked`.
    pub state: String,
    /// Why it is in that state.
    pub reason: String,
    /// Name of the key of who put it aside.
    pub held_by: Option<String>,
    /// Hash of the present definition.
    pub hash: String,
    /// Hash of the definition that was approved last.
    pub approved_hash: Option<String>,
    /// What the rules found in the present definition.
    pub findings: Value,
    /// Tags.
    pub tags: Vec<String>,
    /// When it was seen first.
    pub first_seen: Timestamp,
    /// When it was listed last.
    pub last_seen: Timestamp,
    /// Since when it is listed no more.
    pub gone_since: Option<Timestamp>,
    /// How calls went.
    pub count: CallCount,
    /// The present definition.
    pub definition: Value,
    /// The definition that was approved last, if it is another.
    pub approved_definition: Option<Value>,
}

impl ToolRecord {
    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            server: row.try_get("server")?,
            state: row.try_get("state")?,
            reason: row.try_get("reason")?,
            held_by: row.try_get("held_by")?,
            hash: row.try_get("hash")?,
            approved_hash: row.try_get("approved_hash")?,
            findings: row.try_get("findings")?,
            tags: row.try_get("tags")?,
            first_seen: row.try_get("first_seen")?,
            last_seen: row.try_get("last_seen")?,
            gone_since: row.try_get("gone_since")?,
            count: CallCount {
                calls: row.try_get("calls")?,
                failures: row.try_get("failures")?,
                latency: row.try_get("latency")?,
                last: row.try_get("last_call")?,
            },
            definition: row.try_get("definition")?,
            approved_definition: row.try_get("approved_definition")?,
        })
    }
}

/// What is written of a tool when its server listed it.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolWrite {
    /// `SERVER__TOOL`.
    pub id: String,
    /// `approved`, `quarantined` or `blocked`.
    pub state: String,
    /// Why.
    pub reason: String,
    /// Name of the key of who put it aside.
    pub held_by: Option<String>,
    /// Hash of the present definition.
    pub hash: String,
    /// The present definition.
    pub definition: Value,
    /// What the rules found in it.
    pub findings: Value,
    /// Tags.
    pub tags: Vec<String>,
    /// Who approves this definition with this write; `None`: nobody, what was approved before stays.
    pub approved_by: Option<String>,
}

/// A version of a definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Its hash.
    pub hash: String,
    /// The definition.
    pub definition: Value,
    /// When it was seen first.
    pub first_seen: Timestamp,
    /// When it was approved.
    pub approved_at: Option<Timestamp>,
    /// By whom.
    pub approved_by: Option<String>,
}

/// A change that is taken down.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ChangeWrite {
    /// What, in kebab-case.
    pub kind: &'static str,
    /// The server.
    pub server: String,
    /// The tool.
    pub tool: Option<String>,
    /// Hash before.
    pub from: Option<String>,
    /// Hash after.
    pub to: Option<String>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// A change that was taken down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    /// Its number; later ones are greater.
    pub id: i64,
    /// When.
    pub at: Timestamp,
    /// What, in kebab-case.
    pub kind: String,
    /// The server.
    pub server: String,
    /// The tool.
    pub tool: Option<String>,
    /// Hash before.
    pub from: Option<String>,
    /// Hash after.
    pub to: Option<String>,
    /// Who.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// Queries on tools and their servers.
#[derive(Debug, Clone, Copy)]
pub struct Tools<'a> {
    pub(crate) store: &'a Store,
}

/// Every column of a tool with its present definition and, where it is another, its approved one.
const TOOL: &str = "SELECT t.*, now.definition,
           CASE WHEN t.approved_hash <> t.hash THEN good.definition END AS approved_definition
    FROM tools t
    JOIN tool_versions now ON now.tool = t.id AND now.hash = t.hash
    LEFT JOIN tool_versions good ON good.tool = t.id AND good.hash = t.approved_hash";

impl Tools<'_> {
    /// Every server, by name.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn servers(&self) -> Result<Vec<ServerRecord>> {
        let rows = self.store.client().await?.query("SELECT * FROM tool_servers ORDER BY name", &[]).await?;
        rows.iter().map(ServerRecord::from_row).collect()
    }

    /// Every tool, by id.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn all(&self) -> Result<Vec<ToolRecord>> {
        let rows = self.store.client().await?.query(&format!("{TOOL} ORDER BY t.id"), &[]).await?;
        rows.iter().map(ToolRecord::from_row).collect()
    }

    /// Takes down what a round of discovery found of the servers, and the changes that makes: all or nothing.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn put_servers(&self, servers: &[ServerRecord], changes: &[ChangeWrite]) -> Result<()> {
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        for server in servers {
            transaction
                .execute(
                    "INSERT INTO tool_servers AS s (name, source, origin, transport, fingerprint, approved_fingerprint,
                         granted, state, trusted, first_seen, last_seen, gone_since)
                     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
                     ON CONFLICT (name) DO UPDATE SET source = excluded.source, origin = excluded.origin,
                         transport = excluded.transport, fingerprint = excluded.fingerprint,
                         approved_fingerprint = excluded.approved_fingerprint, granted = excluded.granted,
                         state = excluded.state, trusted = excluded.trusted, last_seen = excluded.last_seen, gone_since = excluded.gone_since",
                    &[
                        &server.name,
                        &server.source,
                        &clean(&server.origin),
                        &clean_json(&server.transport),
                        &server.fingerprint,
                        &server.approved_fingerprint,
                        &server.granted.as_ref().map(clean_json),
                        &server.state,
                        &server.trusted,
                        &server.first_seen,
                        &server.last_seen,
                        &server.gone_since,
                    ],
                )
                .await?;
        }
        note(&transaction, changes).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Removes a server with all its tools.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn remove_server(&self, name: &str) -> Result<()> {
        self.store.client().await?.execute("DELETE FROM tool_servers WHERE name = $1", &[&name]).await?;
        Ok(())
    }

    /// Takes down what a server lists: `present` are the ids of all its tools, others of it are gone; `changed` are those
    /// of them that are new or another than before. All or nothing.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn put_listing(
        &self,
        server: &str,
        present: &[String],
        changed: &[ToolWrite],
        changes: &[ChangeWrite],
    ) -> Result<()> {
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        put(&transaction, server, changed).await?;
        transaction
            .execute(
                "UPDATE tools SET
                     last_seen = CASE WHEN id = ANY($2::text[]) THEN clock_timestamp() ELSE last_seen END,
                     gone_since = CASE WHEN id = ANY($2::text[]) THEN NULL ELSE clock_timestamp() END
                 WHERE server = $1 AND (gone_since IS NULL OR id = ANY($2::text[]))",
                &[&server, &present],
            )
            .await?;
        note(&transaction, changes).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Takes down what became of some tools of a server; its others stay as they are. All or nothing.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn put_tools(&self, server: &str, tools: &[ToolWrite], changes: &[ChangeWrite]) -> Result<()> {
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        put(&transaction, server, tools).await?;
        note(&transaction, changes).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The versions of a tool's definition, oldest first.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn versions(&self, id: &str) -> Result<Vec<VersionRecord>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "SELECT hash, definition, first_seen, approved_at, approved_by FROM tool_versions
                 WHERE tool = $1 ORDER BY first_seen, hash",
                &[&id],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(VersionRecord {
                    hash: row.try_get(0)?,
                    definition: row.try_get(1)?,
                    first_seen: row.try_get(2)?,
                    approved_at: row.try_get(3)?,
                    approved_by: row.try_get(4)?,
                })
            })
            .collect()
    }

    /// Changes before number `before` (all, if absent), newest first; at most `limit` and at most [`CHANGES`].
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn changes(&self, before: Option<i64>, limit: i64) -> Result<Vec<ChangeRecord>> {
        let client = self.store.client().await?;
        let rows = client
            .query(
                "SELECT * FROM tool_changes WHERE id < $1 ORDER BY id DESC LIMIT $2",
                &[&before.unwrap_or(i64::MAX), &limit.clamp(0, CHANGES)],
            )
            .await?;
        rows.iter()
            .map(|row| {
                Ok(ChangeRecord {
                    id: row.try_get("id")?,
                    at: row.try_get("at")?,
                    kind: row.try_get("kind")?,
                    server: row.try_get("server")?,
                    tool: row.try_get("tool")?,
                    from: row.try_get("from_hash")?,
                    to: row.try_get("to_hash")?,
                    actor: row.try_get("actor")?,
                    reason: row.try_get("reason")?,
                })
            })
            .collect()
    }

    /// Adds calls to what is counted already, by tool; tools that are not there are passed over.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn count_calls(&self, counts: &BTreeMap<String, CallCount>) -> Result<()> {
        let mut client = self.store.client().await?;
        let transaction = client.transaction().await?;
        for (id, count) in counts {
            transaction
                .execute(
                    "UPDATE tools SET calls = calls + $2, failures = failures + $3,
                         latency = (SELECT array_agg(COALESCE(a, 0) + COALESCE(b, 0) ORDER BY n)
                             FROM UNNEST(latency, $4::bigint[]) WITH ORDINALITY AS u (a, b, n)),
                         last_call = GREATEST(last_call, $5)
                     WHERE id = $1",
                    &[&id, &count.calls, &count.failures, &count.latency, &count.last],
                )
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}

async fn put(client: &Transaction<'_>, server: &str, tools: &[ToolWrite]) -> Result<()> {
    let tool_statement = client
        .prepare_cached(
            "INSERT INTO tools AS t (id, server, state, reason, hash, approved_hash, findings, tags, held_by)
             VALUES ($1, $2, $3, $4, $5, CASE WHEN $6 THEN $5 END, $7, $8, $9)
             ON CONFLICT (id) DO UPDATE SET state = excluded.state, reason = excluded.reason, hash = excluded.hash,
                 approved_hash = COALESCE(excluded.approved_hash, t.approved_hash), findings = excluded.findings,
                 tags = excluded.tags, held_by = excluded.held_by",
        )
        .await?;
    let version_statement = client
        .prepare_cached(
            "INSERT INTO tool_versions AS v (tool, hash, definition, approved_at, approved_by)
             VALUES ($1, $2, $3, CASE WHEN $4::text IS NOT NULL THEN clock_timestamp() END, $4)
             ON CONFLICT (tool, hash) DO UPDATE SET
                 approved_at = COALESCE(v.approved_at, excluded.approved_at),
                 approved_by = COALESCE(v.approved_by, excluded.approved_by)",
        )
        .await?;
    let prune_statement = client
        .prepare_cached(
            "DELETE FROM tool_versions v USING tools t
             WHERE v.tool = $1 AND t.id = v.tool AND v.hash <> t.hash AND v.hash IS DISTINCT FROM t.approved_hash
               AND v.hash IN (SELECT hash FROM tool_versions WHERE tool = $1
                              ORDER BY approved_at IS NULL, first_seen DESC OFFSET $2)",
        )
        .await?;
    for tool in tools {
        let approved = tool.approved_by.is_some();
        let findings = clean_json(&tool.findings);
        let tags: Vec<String> = tool.tags.iter().map(|tag| clean(tag)).collect();
        client
            .execute(
                &tool_statement,
                &[
                    &tool.id,
                    &server,
                    &tool.state,
                    &clean(&tool.reason),
                    &tool.hash,
                    &approved,
                    &findings,
                    &tags,
                    &tool.held_by,
                ],
            )
            .await?;
        let definition = clean_json(&tool.definition);
        client.execute(&version_statement, &[&tool.id, &tool.hash, &definition, &tool.approved_by]).await?;
        client.execute(&prune_statement, &[&tool.id, &VERSIONS]).await?;
    }
    Ok(())
}

async fn note(client: &Transaction<'_>, changes: &[ChangeWrite]) -> Result<()> {
    for change in changes {
        client
            .execute(
                "INSERT INTO tool_changes (kind, server, tool, from_hash, to_hash, actor, reason)
                 VALUES ($1, $2, $3, $4, $5, $6, $7)",
                &[
                    &change.kind,
                    &change.server,
                    &change.tool,
                    &change.from,
                    &change.to,
                    &clean(&change.actor),
                    &clean(&change.reason),
                ],
            )
            .await?;
    }
    if !changes.is_empty() {
        client
            .execute("DELETE FROM tool_changes WHERE id <= (SELECT max(id) FROM tool_changes) - $1", &[&CHANGES_KEPT])
            .await?;
    }
    Ok(())
}

/// PostgreSQL's text has no NUL.
fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_by_their_bucket() {
        let mut count = CallCount::default();
        assert_eq!(count.quantile(0.5), None);
        for n in 1..=100 {
            count.add(f64::from(n), n == 7, Timestamp::UNIX_EPOCH);
        }
        assert_eq!((count.calls, count.failures), (100, 1));
        let within = |q, true_value: f64| {
            count.quantile(q).is_some_and(|told| told >= true_value && told <= true_value * 1.4143)
        };
        assert!(within(0.5, 50.0) && within(0.99, 99.0) && within(0.01, 1.0), "{count:?}");
        count.add(1e9, true, Timestamp::UNIX_EPOCH);
        assert_eq!(count.latency.last(), Some(&1));
        let mut sum = CallCount::default();
        sum.merge(&count);
        sum.merge(&count);
        assert_eq!(sum.calls, 202);
        assert_eq!(sum.quantile(0.5), count.quantile(0.5));
    }
}
