//! Telemetry: what happened, append-only. [`Recorder`] is how daemons write it.

mod recorder;
mod spool;

use std::time::Duration;

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::Row;
use uuid::Uuid;

pub use recorder::{Recorder, SpoolError};

use crate::{Error, Result, Store};

/// One telemetry record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its identity (UUID v7). The same event written twice is kept once.
    pub id: Uuid,
    /// When it happened, to the microsecond.
    pub at: Timestamp,
    /// `request`, `task`, `iteration` or `unit`.
    pub kind: String,
    /// The task it belongs to.
    pub subject: Option<Uuid>,
    /// The model that answered.
    pub model: Option<String>,
    /// The upstream that served it.
    pub upstream: Option<String>,
    /// How it ended, for example `ok`, `timeout`, `check_failed`.
    pub outcome: String,
    /// HTTP status or exit code.
    pub status: Option<i32>,
    /// Tokens taken in.
    pub prompt_tokens: Option<i64>,
    /// Tokens made.
    pub completion_tokens: Option<i64>,
    /// How long it took; microseconds in JSON and in the table.
    #[serde(rename = "latency_us", with = "micros")]
    pub latency: Duration,
    /// Time to the first byte of the answer; microseconds in JSON and in the table.
    #[serde(rename = "first_byte_us", with = "micros_option", default)]
    pub first_byte: Option<Duration>,
    /// Whatever else is worth keeping. Never secrets.
    pub detail: Value,
}

impl Event {
    /// An event of now, with nothing but a kind; fill in the rest with `..Event::new(kind)`.
    pub fn new(kind: impl Into<String>) -> Self {
        let now = Timestamp::now();
        Self {
            id: Uuid::now_v7(),
            // PostgreSQL keeps microseconds: what is read back is then what was written.
            at: now.round(Unit::Microsecond).unwrap_or(now),
            kind: kind.into(),
            subject: None,
            model: None,
            upstream: None,
            outcome: String::new(),
            status: None,
            prompt_tokens: None,
            completion_tokens: None,
            latency: Duration::ZERO,
            first_byte: None,
            detail: Value::Object(serde_json::Map::new()),
        }
    }
}

/// How many events of a kind ended in a way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// The kind.
    pub kind: String,
    /// The outcome.
    pub outcome: String,
    /// How many.
    pub count: i64,
}

/// Queries on events.
#[derive(Debug, Clone, Copy)]
pub struct Events<'a> {
    pub(crate) store: &'a Store,
}

const COLUMNS: &str = "id, at, kind, subject, model, upstream, outcome, status, prompt_tokens, completion_tokens, \
                       latency_us, first_byte_us, detail";

impl Events<'_> {
    /// Adds events in one statement, all or none; those that are there already are left as they are.
    ///
    /// NUL characters, which PostgreSQL cannot hold, become U+FFFD.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn insert_batch(&self, events: &[Event]) -> Result<()> {
        if events.is_empty() {
            return Ok(());
        }
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached(&format!(
                "INSERT INTO events ({COLUMNS})
                 SELECT * FROM UNNEST($1::uuid[], $2::timestamptz[], $3::text[], $4::uuid[], $5::text[], $6::text[],
                     $7::text[], $8::int4[], $9::int8[], $10::int8[], $11::int8[], $12::int8[], $13::jsonb[])
                 ON CONFLICT (id) DO NOTHING"
            ))
            .await?;
        let column = events;
        client
            .execute(
                &statement,
                &[
                    &column.iter().map(|e| e.id).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.at).collect::<Vec<_>>(),
                    &column.iter().map(|e| clean(&e.kind)).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.subject).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.model.as_deref().map(clean)).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.upstream.as_deref().map(clean)).collect::<Vec<_>>(),
                    &column.iter().map(|e| clean(&e.outcome)).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.status).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.prompt_tokens).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.completion_tokens).collect::<Vec<_>>(),
                    &column.iter().map(|e| to_micros(e.latency)).collect::<Vec<_>>(),
                    &column.iter().map(|e| e.first_byte.map(to_micros)).collect::<Vec<_>>(),
                    &column.iter().map(|e| clean_json(&e.detail)).collect::<Vec<_>>(),
                ],
            )
            .await?;
        Ok(())
    }

    /// The last `limit` events of a kind, or of all kinds, the newest first.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn recent(&self, kind: Option<&str>, limit: u32) -> Result<Vec<Event>> {
        let client = self.store.client().await?;
        let rows = if let Some(kind) = kind {
            let text = format!("SELECT {COLUMNS} FROM events WHERE kind = $2 ORDER BY at DESC, id DESC LIMIT $1");
            client.query(&client.prepare_cached(&text).await?, &[&i64::from(limit), &kind]).await?
        } else {
            let text = format!("SELECT {COLUMNS} FROM events ORDER BY at DESC, id DESC LIMIT $1");
            client.query(&client.prepare_cached(&text).await?, &[&i64::from(limit)]).await?
        };
        rows.iter().map(from_row).collect()
    }

    /// The first `limit` events of a task, the oldest first.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn of_subject(&self, subject: Uuid, limit: u32) -> Result<Vec<Event>> {
        let client = self.store.client().await?;
        let text = format!("SELECT {COLUMNS} FROM events WHERE subject = $1 ORDER BY at, id LIMIT $2");
        let rows = client.query(&client.prepare_cached(&text).await?, &[&subject, &i64::from(limit)]).await?;
        rows.iter().map(from_row).collect()
    }

    /// How many events there are of each kind and outcome since a moment.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub async fn counts(&self, since: Timestamp) -> Result<Vec<Count>> {
        let client = self.store.client().await?;
        let statement = client
            .prepare_cached(
                "SELECT kind, outcome, count(*) FROM events WHERE at >= $1 GROUP BY kind, outcome ORDER BY kind, outcome",
            )
            .await?;
        let rows = client.query(&statement, &[&since]).await?;
        rows.iter()
            .map(|row| Ok(Count { kind: row.try_get(0)?, outcome: row.try_get(1)?, count: row.try_get(2)? }))
            .collect()
    }
}

fn from_row(row: &Row) -> Result<Event> {
    Ok(Event {
        id: row.try_get(0)?,
        at: row.try_get(1)?,
        kind: row.try_get(2)?,
        subject: row.try_get(3)?,
        model: row.try_get(4)?,
        upstream: row.try_get(5)?,
        outcome: row.try_get(6)?,
        status: row.try_get(7)?,
        prompt_tokens: row.try_get(8)?,
        completion_tokens: row.try_get(9)?,
        latency: from_micros(row.try_get(10)?),
        first_byte: row.try_get::<_, Option<i64>>(11)?.map(from_micros),
        detail: row.try_get(12)?,
    })
}

/// Whether it is the event that PostgreSQL refuses, and would refuse for ever, and not the moment.
fn is_poison(e: &Error) -> bool {
    let Error::Database(e) = e else { return false };
    match e.code() {
        // Data, constraints, limits.
        Some(code) => matches!(code.code().get(..2), Some("22" | "23" | "54")),
        // A value that the type of its column cannot hold.
        None => e.to_string().starts_with("error serializing"),
    }
}

fn clean(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

pub(crate) fn clean_json(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(clean(text)),
        Value::Array(items) => Value::Array(items.iter().map(clean_json).collect()),
        Value::Object(fields) => Value::Object(fields.iter().map(|(k, v)| (clean(k), clean_json(v))).collect()),
        other => other.clone(),
    }
}

fn to_micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

fn from_micros(micros: i64) -> Duration {
    Duration::from_micros(u64::try_from(micros).unwrap_or(0))
}

mod micros {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
        super::to_micros(*duration).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        i64::deserialize(d).map(super::from_micros)
    }
}

mod micros_option {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serialize as _, Serializer};

    pub(super) fn serialize<S: Serializer>(duration: &Option<Duration>, s: S) -> Result<S::Ok, S::Error> {
        duration.map(super::to_micros).serialize(s)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<i64>::deserialize(d)?.map(super::from_micros))
    }
}
