//! Tasks, their iterations and their log: the durable queue that workers lease from.
//!
//! A worker holds a task by a lease with a fence. The fence goes up with each take-over, and every write of a worker
//! names the fence it holds, so a worker that was silent for too long is refused ([`TaskError::Fenced`]) instead of
//! writing over the one that took its place. That is also why a task ends exactly once.

mod lease;
mod queue;
mod records;

use std::time::Duration;

use deadpool_postgres::Pool;
use uuid::Uuid;

pub use records::{
    Approach, Cancelled, Filter, Iteration, IterationEnd, Lease, LogLine, NewTask, Outcome, Standing, State, Submitted,
    Task,
};

use crate::error::describe;

/// Channel that tells workers of new, cancelled or released work; the payload is the task's id.
pub const TASKS_CHANNEL: &str = "lares_tasks";
/// Channel that tells readers of a new line in a task's log; the payload is the task's id.
pub const TASK_EVENTS_CHANNEL: &str = "lares_task_events";

/// Longest message or output kept in a row, in bytes; the middle of longer ones is left out.
const MAX_TEXT: usize = 256 * 1024;

/// Why a query about tasks did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// There is no such task.
    #[error("there is no task {0}; `lares task list` shows those that exist")]
    NotFound(Uuid),
    /// Another worker took the task over, or it has ended; the one that asked must stop working on it.
    #[error("the lease of task {0} is lost: another worker took it over or it has ended")]
    Fenced(Uuid),
    /// The task is in a state in which this cannot be done.
    #[error("task {id} is {state}, so it cannot be {action}")]
    Conflict {
        /// The task.
        id: Uuid,
        /// The state it is in.
        state: State,
        /// What was asked, as a past participle: `cancelled`, `approved`, `merged`.
        action: &'static str,
    },
    /// The queue is at its bound.
    #[error("{0} tasks are waiting already, which is the bound (ralph.max_queued); try again later")]
    QueueFull(u32),
    /// The same idempotency key came with another request.
    #[error("this idempotency key was used for another request (task {0}); use a new key")]
    IdempotencyMismatch(Uuid),
    /// What PostgreSQL holds is not what this version writes.
    #[error("the store holds a {0} that this version does not know; was it written by a newer one?")]
    Unknown(String),
    /// PostgreSQL refused or could not be reached.
    #[error("PostgreSQL: {}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// No connection to PostgreSQL was to be had in time.
    #[error("no connection to PostgreSQL: {0}")]
    Pool(#[from] deadpool_postgres::PoolError),
}

impl TaskError {
    /// Whether trying again may help: PostgreSQL could not be reached or dropped the connection.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Pool(_) => true,
            Self::Postgres(error) => {
                // Class 08 connection, 40 serialisation and deadlock, 53 resources, 57 operator intervention.
                error.code().is_none_or(|code| ["08", "40", "53", "57"].iter().any(|c| code.code().starts_with(c)))
            }
            _ => false,
        }
    }
}

type Result<T, E = TaskError> = std::result::Result<T, E>;

/// Queries about tasks.
#[derive(Debug, Clone, Copy)]
pub struct Tasks<'a> {
    pool: &'a Pool,
}

impl<'a> Tasks<'a> {
    /// Queries over this pool.
    pub fn new(pool: &'a Pool) -> Self {
        Self { pool }
    }

    /// The task.
    pub async fn get(&self, id: Uuid) -> Result<Task> {
        let client = self.pool.get().await?;
        let row = client.query_opt("SELECT * FROM tasks WHERE id = $1", &[&id]).await?;
        Task::from_row(&row.ok_or(TaskError::NotFound(id))?)
    }

    /// Tasks, newest first.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Task>> {
        let client = self.pool.get().await?;
        let limit = i64::from(filter.limit.clamp(1, 1000));
        let rows = client
            .query(
                "SELECT * FROM tasks WHERE ($1::text IS NULL OR state = $1) AND ($2::uuid IS NULL OR id < $2)
                 ORDER BY id DESC LIMIT $3",
                &[&filter.state.map(State::as_str), &filter.before, &limit],
            )
            .await?;
        rows.iter().map(Task::from_row).collect()
    }

    /// How many tasks are in each state; states without any are left out.
    pub async fn counts(&self) -> Result<Vec<(State, u64)>> {
        let client = self.pool.get().await?;
        let rows = client.query("SELECT state, count(*) FROM tasks GROUP BY state", &[]).await?;
        rows.iter()
            .map(|row| Ok((row.try_get::<_, &str>(0)?.parse()?, u64::try_from(row.try_get::<_, i64>(1)?).unwrap_or(0))))
            .collect()
    }

    /// The iterations of a task, first one first.
    pub async fn iterations(&self, id: Uuid) -> Result<Vec<Iteration>> {
        let client = self.pool.get().await?;
        let rows = client.query("SELECT * FROM iterations WHERE task_id = $1 ORDER BY number", &[&id]).await?;
        rows.iter().map(Iteration::from_row).collect()
    }

    /// The lines of a task's log after `seq` (0: from the first), at most `limit` of them.
    pub async fn log_after(&self, id: Uuid, seq: i64, limit: u32) -> Result<Vec<LogLine>> {
        let client = self.pool.get().await?;
        let rows = client
            .query(
                "SELECT * FROM task_events WHERE task_id = $1 AND seq > $2 ORDER BY seq LIMIT $3",
                &[&id, &seq, &i64::from(limit)],
            )
            .await?;
        rows.iter().map(LogLine::from_row).collect()
    }

    /// Of these tasks, those that exist: their state, their fence and their repository.
    pub async fn standing(&self, ids: &[Uuid]) -> Result<Vec<Standing>> {
        let client = self.pool.get().await?;
        let rows = client.query("SELECT id, state, fence, repo FROM tasks WHERE id = ANY($1)", &[&ids]).await?;
        rows.iter()
            .map(|row| {
                Ok(Standing {
                    id: row.try_get("id")?,
                    state: row.try_get::<_, &str>("state")?.parse()?,
                    fence: row.try_get("fence")?,
                    repo: row.try_get("repo")?,
                })
            })
            .collect()
    }

    /// What tells this queue from every other one, however the database is called or moved.
    pub async fn queue_id(&self) -> Result<Uuid> {
        let client = self.pool.get().await?;
        Ok(client.query_one("SELECT id FROM task_queue", &[]).await?.try_get(0)?)
    }
}

/// Appends to the log; the caller's transaction holds the task's row.
async fn append(
    tx: &deadpool_postgres::Transaction<'_>,
    id: Uuid,
    kind: &str,
    message: &str,
    data: &serde_json::Value,
) -> Result<()> {
    tx.execute(
        "INSERT INTO task_events (task_id, kind, message, data) VALUES ($1, $2, $3, $4)",
        &[&id, &kind, &storable(message), data],
    )
    .await?;
    notify(tx, TASK_EVENTS_CHANNEL, id).await
}

async fn notify(tx: &deadpool_postgres::Transaction<'_>, channel: &str, id: Uuid) -> Result<()> {
    tx.execute("SELECT pg_notify($1, $2)", &[&channel, &id.to_string()]).await?;
    Ok(())
}

fn state_data(state: State) -> serde_json::Value {
    serde_json::json!({ "state": state.as_str() })
}

/// PostgreSQL's jsonb holds no NUL either.
fn storable_json(value: &serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match value {
        Value::String(text) => Value::String(storable(text)),
        Value::Array(items) => items.iter().map(storable_json).collect(),
        Value::Object(fields) => fields.iter().map(|(name, value)| (storable(name), storable_json(value))).collect(),
        other => other.clone(),
    }
}

/// PostgreSQL's text holds no NUL, and a row should not hold gigabytes.
fn storable(text: &str) -> String {
    let clean = |part: &str| part.replace('\0', "\u{fffd}");
    if text.len() <= MAX_TEXT {
        return clean(text);
    }
    let boundary = |from: usize| (from..text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    let (head, tail) = (boundary(MAX_TEXT / 2), boundary(text.len() - MAX_TEXT / 2));
    format!("{}\n[… {} bytes left out …]\n{}", clean(&text[..head]), tail - head, clean(&text[tail..]))
}

fn to_ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn from_ms(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

fn count(n: i32) -> u32 {
    u32::try_from(n).unwrap_or(0)
}

fn db_count(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
