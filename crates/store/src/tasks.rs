//! Tasks, their iterations and their log: the durable queue that workers lease from.
//!
//! A worker holds a task by a lease with a fence. The fence goes up with each take-over, and every write of a worker
//! names the fence it holds, so a worker that was silent for too long is refused ([`TaskError::Fenced`]) instead of
//! writing over the one that took its place. That is also why a task ends exactly once.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use deadpool_postgres::Pool;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use uuid::Uuid;

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

macro_rules! text_enum {
    ($(#[$meta:meta])* $name:ident, $what:literal { $($(#[$vmeta:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every value, in the order they are declared.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];

            /// The name it has in the store and over HTTP.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl FromStr for $name {
            type Err = TaskError;

            fn from_str(text: &str) -> Result<Self> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    other => Err(TaskError::Unknown(format!(concat!($what, " `{}`"), other))),
                }
            }
        }
    };
}

text_enum! {
    /// Where a task is in its life.
    State, "task state" {
        /// Waits for a worker.
        Queued = "queued",
        /// A worker holds it.
        Running = "running",
        /// The check passed; a person has to approve.
        AwaitingApproval = "awaiting_approval",
        /// The check passed (and was approved where that was asked for).
        Succeeded = "succeeded",
        /// Given up; `reason` says why.
        Failed = "failed",
        /// Stopped by a person.
        Cancelled = "cancelled",
    }
}

impl State {
    /// Whether the task has ended and will not change its state any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

text_enum! {
    /// How an iteration set out.
    Approach, "approach" {
        /// From the base commit, with temperature 0.
        First = "first",
        /// From the last checkpoint, with what the check said about it.
        Repair = "repair",
        /// From the base commit again, with a temperature above 0.
        Resample = "resample",
    }
}

text_enum! {
    /// How an iteration ended.
    Outcome, "iteration outcome" {
        /// It has not ended yet.
        Running = "running",
        /// The check exited with 0.
        Passed = "passed",
        /// Something was changed and the check did not pass.
        Failed = "failed",
        /// The agent changed nothing.
        NoChange = "no_change",
        /// The agent could not carry it out.
        AgentFailed = "agent_failed",
        /// The worker went away in the middle of it.
        Interrupted = "interrupted",
    }
}

/// One coding task.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// Its id, which is also its place in the queue (UUID version 7).
    pub id: Uuid,
    /// What to do.
    pub prompt: String,
    /// Absolute path of the git repository.
    pub repo: String,
    /// Shell command whose exit code decides.
    pub check_command: String,
    /// Coding agent that carries out the iterations.
    pub backend: String,
    /// Model the agent asks; unset: the configured one.
    pub model: Option<String>,
    /// Most iterations.
    pub max_iterations: u32,
    /// Longest time worked on it.
    pub timeout: Duration,
    /// Whether a person has to approve the result.
    pub require_approval: bool,
    /// Where it is in its life.
    pub state: State,
    /// Why it is there, in a sentence.
    pub reason: Option<String>,
    /// Key that submitted it.
    pub created_by: Option<Uuid>,
    /// What the caller named the request, so that sending it twice makes one task.
    pub idempotency_key: Option<String>,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When a worker first took it.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// No worker takes it before this.
    pub not_before: Timestamp,
    /// Time worked on it so far.
    pub worked: Duration,
    /// Commit that everything starts from.
    pub base_commit: Option<String>,
    /// Branch that was checked out in the repository when the task began.
    pub base_branch: Option<String>,
    /// Branch that holds what was done, once the work has ended.
    pub branch: Option<String>,
    /// Directory it is worked on in, while it is.
    pub worktree: Option<String>,
    /// Exit code of the check before anything was changed.
    pub base_check_exit: Option<i32>,
    /// What the check said then.
    pub base_check_output: Option<String>,
    /// Commit that passed the check.
    pub result_commit: Option<String>,
    /// Commit by which the result arrived in the base branch.
    pub merged_commit: Option<String>,
    /// When it did.
    pub merged_at: Option<Timestamp>,
    /// Whether a person asked to stop it.
    pub cancel_requested: bool,
    /// Worker that holds it.
    pub lease_owner: Option<String>,
    /// Until when, unless it is renewed.
    pub lease_until: Option<Timestamp>,
    /// Number of times it was taken.
    pub fence: i64,
}

impl Task {
    /// The lease of the worker that has just taken this task.
    pub fn lease(&self) -> Lease {
        Lease { task: self.id, fence: self.fence }
    }

    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            id: row.try_get("id")?,
            prompt: row.try_get("prompt")?,
            repo: row.try_get("repo")?,
            check_command: row.try_get("check_command")?,
            backend: row.try_get("backend")?,
            model: row.try_get("model")?,
            max_iterations: count(row.try_get("max_iterations")?),
            timeout: from_ms(row.try_get("timeout_ms")?),
            require_approval: row.try_get("require_approval")?,
            state: row.try_get::<_, &str>("state")?.parse()?,
            reason: row.try_get("reason")?,
            created_by: row.try_get("created_by")?,
            idempotency_key: row.try_get("idempotency_key")?,
            created_at: row.try_get("created_at")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            not_before: row.try_get("not_before")?,
            worked: from_ms(row.try_get("worked_ms")?),
            base_commit: row.try_get("base_commit")?,
            base_branch: row.try_get("base_branch")?,
            branch: row.try_get("branch")?,
            worktree: row.try_get("worktree")?,
            base_check_exit: row.try_get("base_check_exit")?,
            base_check_output: row.try_get("base_check_output")?,
            result_commit: row.try_get("result_commit")?,
            merged_commit: row.try_get("merged_commit")?,
            merged_at: row.try_get("merged_at")?,
            cancel_requested: row.try_get("cancel_requested")?,
            lease_owner: row.try_get("lease_owner")?,
            lease_until: row.try_get("lease_until")?,
            fence: row.try_get("fence")?,
        })
    }
}

/// A task to be submitted.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTask {
    /// What to do.
    pub prompt: String,
    /// Absolute path of the git repository.
    pub repo: String,
    /// Shell command whose exit code decides.
    pub check_command: String,
    /// Coding agent that carries out the iterations.
    pub backend: String,
    /// Model the agent asks; unset: the configured one.
    pub model: Option<String>,
    /// Most iterations.
    pub max_iterations: u32,
    /// Longest time worked on it.
    pub timeout: Duration,
    /// Whether a person has to approve the result.
    pub require_approval: bool,
    /// Key that submits it.
    pub created_by: Option<Uuid>,
    /// What the caller names this request.
    pub idempotency_key: Option<String>,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq)]
pub enum Submitted {
    /// A task was made.
    New(Task),
    /// The caller had submitted it before under the same idempotency key.
    Existing(Task),
}

impl Submitted {
    /// The task, new or not.
    pub fn into_task(self) -> Task {
        match self {
            Self::New(task) | Self::Existing(task) => task,
        }
    }
}

/// What a worker shows with each write: the task, and the number it got when it took it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease {
    /// The task.
    pub task: Uuid,
    /// Number of the take-over.
    pub fence: i64,
}

/// One run of an agent on a task.
#[derive(Debug, Clone, PartialEq)]
pub struct Iteration {
    /// The task.
    pub task_id: Uuid,
    /// From 1 on.
    pub number: u32,
    /// Fence of the worker that began it.
    pub fence: i64,
    /// Agent that carried it out.
    pub backend: String,
    /// How it set out.
    pub approach: Approach,
    /// Sampling temperature the agent was given.
    pub temperature: f64,
    /// When it began.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// What the agent says it did.
    pub summary: String,
    /// Paths that differ from where it set out, relative to the repository.
    pub changed_files: Vec<String>,
    /// Commit of the state it left.
    pub checkpoint_commit: Option<String>,
    /// Exit code of the check; unset when it did not run or was killed.
    pub check_exit: Option<i32>,
    /// First and last part of what the check printed.
    pub check_output: String,
    /// How long the check took.
    pub check_duration: Option<Duration>,
    /// How long the agent took.
    pub agent_duration: Option<Duration>,
    /// Tokens sent to the model.
    pub prompt_tokens: Option<i64>,
    /// Tokens the model wrote.
    pub completion_tokens: Option<i64>,
    /// Tests that passed, where the check's output says so.
    pub tests_passed: Option<u32>,
    /// Tests that did not, where the check's output says so.
    pub tests_failed: Option<u32>,
}

impl Iteration {
    fn from_row(row: &Row) -> Result<Self> {
        let ms = |name| -> Result<Option<Duration>> { Ok(row.try_get::<_, Option<i64>>(name)?.map(from_ms)) };
        let number = |name| -> Result<Option<u32>> { Ok(row.try_get::<_, Option<i32>>(name)?.map(count)) };
        Ok(Self {
            task_id: row.try_get("task_id")?,
            number: count(row.try_get("number")?),
            fence: row.try_get("fence")?,
            backend: row.try_get("backend")?,
            approach: row.try_get::<_, &str>("approach")?.parse()?,
            temperature: row.try_get("temperature")?,
            started_at: row.try_get("started_at")?,
            finished_at: row.try_get("finished_at")?,
            outcome: row.try_get::<_, &str>("outcome")?.parse()?,
            summary: row.try_get("summary")?,
            changed_files: row.try_get("changed_files")?,
            checkpoint_commit: row.try_get("checkpoint_commit")?,
            check_exit: row.try_get("check_exit")?,
            check_output: row.try_get("check_output")?,
            check_duration: ms("check_duration_ms")?,
            agent_duration: ms("agent_duration_ms")?,
            prompt_tokens: row.try_get("prompt_tokens")?,
            completion_tokens: row.try_get("completion_tokens")?,
            tests_passed: number("tests_passed")?,
            tests_failed: number("tests_failed")?,
        })
    }
}

/// How an iteration ended, as the worker writes it.
#[derive(Debug, Clone, PartialEq)]
pub struct IterationEnd {
    /// How it ended; anything but [`Outcome::Running`].
    pub outcome: Outcome,
    /// What the agent says it did.
    pub summary: String,
    /// Paths that differ from where it set out.
    pub changed_files: Vec<String>,
    /// Commit of the state it left.
    pub checkpoint_commit: Option<String>,
    /// Exit code of the check.
    pub check_exit: Option<i32>,
    /// What the check printed, bounded.
    pub check_output: String,
    /// How long the check took.
    pub check_duration: Option<Duration>,
    /// How long the agent took.
    pub agent_duration: Option<Duration>,
    /// Tokens sent to the model.
    pub prompt_tokens: Option<i64>,
    /// Tokens the model wrote.
    pub completion_tokens: Option<i64>,
    /// Tests that passed.
    pub tests_passed: Option<u32>,
    /// Tests that did not.
    pub tests_failed: Option<u32>,
}

/// One line of a task's log.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLine {
    /// Its place; a reader that was cut off goes on after the last one it saw.
    pub seq: i64,
    /// The task.
    pub task_id: Uuid,
    /// When it was written.
    pub at: Timestamp,
    /// What it is about: `state`, `iteration`, `agent`, `check`, `log`.
    pub kind: String,
    /// One or more lines for a person.
    pub message: String,
    /// The same for a program.
    pub data: serde_json::Value,
}

impl LogLine {
    fn from_row(row: &Row) -> Result<Self> {
        Ok(Self {
            seq: row.try_get("seq")?,
            task_id: row.try_get("task_id")?,
            at: row.try_get("at")?,
            kind: row.try_get("kind")?,
            message: row.try_get("message")?,
            data: row.try_get("data")?,
        })
    }
}

/// Which tasks to list, newest first.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those in this state.
    pub state: Option<State>,
    /// Only those older than this one.
    pub before: Option<Uuid>,
    /// At most so many (at least 1, at most 1000).
    pub limit: u32,
}

/// What a sweep over old worktrees has to know of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// The task.
    pub id: Uuid,
    /// Where it is in its life.
    pub state: State,
    /// Number of times it was taken.
    pub fence: i64,
    /// Its repository.
    pub repo: String,
}

/// What cancelling did.
#[derive(Debug, Clone, PartialEq)]
pub enum Cancelled {
    /// The task was not running; it has ended.
    Now(Task),
    /// A worker holds it and was told; it ends as soon as that worker has stopped what it runs.
    Requested(Task),
}

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

    /// Puts a task into the queue, unless `max_queued` wait already or the caller's idempotency key names one.
    pub async fn submit(&self, new: &NewTask, max_queued: u32) -> Result<Submitted> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        // One submission at a time, so that the bound holds and a key makes one task.
        tx.execute("SELECT pg_advisory_xact_lock(hashtext('lares_tasks.submit'))", &[]).await?;
        if let Some(key) = &new.idempotency_key {
            let existing = tx
                .query_opt(
                    "SELECT * FROM tasks WHERE idempotency_key = $1 AND created_by IS NOT DISTINCT FROM $2",
                    &[key, &new.created_by],
                )
                .await?;
            if let Some(row) = existing {
                let task = Task::from_row(&row)?;
                return if new.asks_the_same(&task) {
                    Ok(Submitted::Existing(task))
                } else {
                    Err(TaskError::IdempotencyMismatch(task.id))
                };
            }
        }
        let waiting: i64 = tx.query_one("SELECT count(*) FROM tasks WHERE state = 'queued'", &[]).await?.try_get(0)?;
        if waiting >= i64::from(max_queued) {
            return Err(TaskError::QueueFull(max_queued));
        }
        let row = tx
            .query_one(
                "INSERT INTO tasks (id, prompt, repo, check_command, backend, model, max_iterations, timeout_ms,
                                    require_approval, created_by, idempotency_key)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) RETURNING *",
                &[
                    &Uuid::now_v7(),
                    &new.prompt,
                    &new.repo,
                    &new.check_command,
                    &new.backend,
                    &new.model,
                    &db_count(new.max_iterations),
                    &to_ms(new.timeout),
                    &new.require_approval,
                    &new.created_by,
                    &new.idempotency_key,
                ],
            )
            .await?;
        let task = Task::from_row(&row)?;
        append(&tx, task.id, "state", "queued", &state_data(State::Queued)).await?;
        notify(&tx, TASKS_CHANNEL, task.id).await?;
        tx.commit().await?;
        Ok(Submitted::New(task))
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

    /// Takes the oldest task that waits, or one whose worker fell silent. `None` when there is nothing to do.
    ///
    /// An iteration that was under way is marked interrupted in the same step.
    pub async fn take(&self, owner: &str, lease: Duration) -> Result<Option<Task>> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "WITH next AS (
                     SELECT id, state FROM tasks
                     WHERE (state = 'queued' AND not_before <= clock_timestamp())
                        OR (state = 'running' AND lease_until < clock_timestamp())
                     ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED
                 )
                 UPDATE tasks SET state = 'running', fence = fence + 1, lease_owner = $1,
                        lease_until = clock_timestamp() + $2::bigint * interval '1 millisecond',
                        started_at = coalesce(started_at, clock_timestamp()), reason = NULL
                 FROM next WHERE tasks.id = next.id
                 RETURNING tasks.*, next.state AS state_before",
                &[&owner, &to_ms(lease)],
            )
            .await?;
        let Some(row) = row else { return Ok(None) };
        let task = Task::from_row(&row)?;
        let before: State = row.try_get::<_, &str>("state_before")?.parse()?;
        tx.execute(
            "UPDATE iterations SET outcome = 'interrupted', finished_at = clock_timestamp()
             WHERE task_id = $1 AND outcome = 'running'",
            &[&task.id],
        )
        .await?;
        let message = if before == State::Running {
            format!("taken over by {owner}: the worker before it fell silent")
        } else {
            format!("taken by {owner}")
        };
        append(&tx, task.id, "state", &message, &state_data(State::Running)).await?;
        tx.commit().await?;
        Ok(Some(task))
    }

    /// Renews the lease and writes down the time worked so far. Returns whether a person asked to cancel.
    pub async fn heartbeat(&self, lease: Lease, extend: Duration, worked: Duration) -> Result<bool> {
        let client = self.pool.get().await?;
        let row = client
            .query_opt(
                "UPDATE tasks SET lease_until = clock_timestamp() + $3::bigint * interval '1 millisecond',
                        worked_ms = greatest(worked_ms, $4)
                 WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING cancel_requested",
                &[&lease.task, &lease.fence, &to_ms(extend), &to_ms(worked)],
            )
            .await?;
        Ok(row.ok_or(TaskError::Fenced(lease.task))?.try_get(0)?)
    }

    /// Writes down where the task starts from and where it is worked on.
    pub async fn set_base(
        &self,
        lease: Lease,
        base_commit: &str,
        base_branch: Option<&str>,
        worktree: &str,
    ) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "UPDATE tasks SET base_commit = $3, base_branch = $4, worktree = $5
                 WHERE id = $1 AND fence = $2 AND state = 'running'",
                &[&lease.task, &lease.fence, &base_commit, &base_branch, &worktree],
            )
            .await?;
        held(changed, lease)
    }

    /// Writes down what the check said before anything was changed.
    pub async fn set_base_check(&self, lease: Lease, exit: Option<i32>, output: &str) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "UPDATE tasks SET base_check_exit = $3, base_check_output = $4
                 WHERE id = $1 AND fence = $2 AND state = 'running'",
                &[&lease.task, &lease.fence, &exit, &storable(output)],
            )
            .await?;
        held(changed, lease)
    }

    /// Begins an iteration. Doing so again, because the answer was lost on the way, changes nothing.
    pub async fn begin_iteration(
        &self,
        lease: Lease,
        number: u32,
        backend: &str,
        approach: Approach,
        temperature: f64,
    ) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE)
                 INSERT INTO iterations (task_id, number, fence, backend, approach, temperature)
                 SELECT id, $3, $2, $4, $5, $6 FROM held
                 ON CONFLICT (task_id, number) DO UPDATE SET fence = excluded.fence
                 WHERE iterations.fence = excluded.fence AND iterations.outcome = 'running'",
                &[&lease.task, &lease.fence, &db_count(number), &backend, &approach.as_str(), &temperature],
            )
            .await?;
        held(changed, lease)
    }

    /// Ends an iteration. Doing so again, because the answer was lost on the way, changes nothing.
    pub async fn finish_iteration(&self, lease: Lease, number: u32, end: &IterationEnd) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE)
                 UPDATE iterations SET finished_at = clock_timestamp(), outcome = $4, summary = $5, changed_files = $6,
                        checkpoint_commit = $7, check_exit = $8, check_output = $9, check_duration_ms = $10,
                        agent_duration_ms = $11, prompt_tokens = $12, completion_tokens = $13, tests_passed = $14,
                        tests_failed = $15
                 FROM held WHERE task_id = held.id AND number = $3 AND fence = $2 AND outcome IN ('running', $4)",
                &[
                    &lease.task,
                    &lease.fence,
                    &db_count(number),
                    &end.outcome.as_str(),
                    &storable(&end.summary),
                    &end.changed_files.iter().map(|f| storable(f)).collect::<Vec<_>>(),
                    &end.checkpoint_commit,
                    &end.check_exit,
                    &storable(&end.check_output),
                    &end.check_duration.map(to_ms),
                    &end.agent_duration.map(to_ms),
                    &end.prompt_tokens,
                    &end.completion_tokens,
                    &end.tests_passed.map(db_count),
                    &end.tests_failed.map(db_count),
                ],
            )
            .await?;
        held(changed, lease)
    }

    /// Forgets an iteration that did not get to run because the model could not be reached.
    pub async fn discard_iteration(&self, lease: Lease, number: u32) -> Result<()> {
        let client = self.pool.get().await?;
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE)
                 DELETE FROM iterations USING held
                 WHERE task_id = held.id AND number = $3 AND fence = $2 AND outcome = 'running'",
                &[&lease.task, &lease.fence, &db_count(number)],
            )
            .await?;
        held(changed, lease)
    }

    /// Appends a line to the log of a task this worker holds.
    pub async fn log(&self, lease: Lease, kind: &str, message: &str, data: &serde_json::Value) -> Result<()> {
        let client = self.pool.get().await?;
        // The row lock makes the lines of a task visible in the order of their numbers.
        let changed = client
            .execute(
                "WITH held AS (SELECT id FROM tasks WHERE id = $1 AND fence = $2 AND state = 'running' FOR UPDATE),
                      line AS (INSERT INTO task_events (task_id, kind, message, data)
                               SELECT id, $3, $4, $5 FROM held RETURNING task_id)
                 SELECT pg_notify('lares_task_events', task_id::text) FROM line",
                &[&lease.task, &lease.fence, &kind, &storable(message), data],
            )
            .await?;
        held(changed, lease)
    }

    /// Ends the work on a task this worker holds: the one way out of `running` besides [`Self::release`].
    ///
    /// `state` is final or [`State::AwaitingApproval`]; `branch` is the one that holds what was done, if any was.
    pub async fn finish(
        &self,
        lease: Lease,
        state: State,
        reason: &str,
        branch: Option<&str>,
        result_commit: Option<&str>,
    ) -> Result<Task> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "UPDATE tasks SET state = $3, reason = $4, branch = $5, result_commit = $6, worktree = NULL,
                        lease_owner = NULL, lease_until = NULL,
                        finished_at = CASE WHEN $3 = 'awaiting_approval' THEN NULL ELSE clock_timestamp() END
                 WHERE id = $1 AND fence = $2 AND state = 'running' RETURNING *",
                &[&lease.task, &lease.fence, &state.as_str(), &storable(reason), &branch, &result_commit],
            )
            .await?;
        let task = Task::from_row(&row.ok_or(TaskError::Fenced(lease.task))?)?;
        interrupt(&tx, task.id).await?;
        append(&tx, task.id, "state", &format!("{state}: {reason}"), &state_data(state)).await?;
        notify(&tx, TASKS_CHANNEL, task.id).await?;
        tx.commit().await?;
        Ok(task)
    }

    /// Puts a task back into the queue, to be taken again by anyone after `wait`.
    pub async fn release(&self, lease: Lease, wait: Duration, reason: &str, worked: Duration) -> Result<()> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let changed = tx
            .execute(
                "UPDATE tasks SET state = 'queued', reason = $3, lease_owner = NULL, lease_until = NULL, worktree = NULL,
                        not_before = clock_timestamp() + $4::bigint * interval '1 millisecond',
                        worked_ms = greatest(worked_ms, $5)
                 WHERE id = $1 AND fence = $2 AND state = 'running'",
                &[&lease.task, &lease.fence, &storable(reason), &to_ms(wait), &to_ms(worked)],
            )
            .await?;
        held(changed, lease)?;
        interrupt(&tx, lease.task).await?;
        append(&tx, lease.task, "state", &format!("queued: {reason}"), &state_data(State::Queued)).await?;
        notify(&tx, TASKS_CHANNEL, lease.task).await?;
        tx.commit().await?;
        Ok(())
    }

    /// Cancels a task: at once when no worker holds it, else by asking that worker.
    ///
    /// Cancelling a task that awaits approval rejects its result. One that is cancelled already is left as it is.
    pub async fn cancel(&self, id: Uuid, reason: &str) -> Result<Cancelled> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx.query_opt("SELECT * FROM tasks WHERE id = $1 FOR UPDATE", &[&id]).await?;
        let task = Task::from_row(&row.ok_or(TaskError::NotFound(id))?)?;
        let outcome = match task.state {
            State::Cancelled => return Ok(Cancelled::Now(task)),
            State::Succeeded | State::Failed => {
                return Err(TaskError::Conflict { id, state: task.state, action: "cancelled" });
            }
            State::Running if task.cancel_requested => return Ok(Cancelled::Requested(task)),
            State::Running => {
                let row = tx
                    .query_one("UPDATE tasks SET cancel_requested = true WHERE id = $1 RETURNING *", &[&id])
                    .await?;
                append(&tx, id, "log", "cancelling", &serde_json::json!({})).await?;
                Cancelled::Requested(Task::from_row(&row)?)
            }
            State::Queued | State::AwaitingApproval => {
                let row = tx
                    .query_one(
                        "UPDATE tasks SET cancel_requested = true, state = 'cancelled', reason = $2, worktree = NULL,
                                finished_at = clock_timestamp() WHERE id = $1 RETURNING *",
                        &[&id, &storable(reason)],
                    )
                    .await?;
                append(&tx, id, "state", &format!("cancelled: {reason}"), &state_data(State::Cancelled)).await?;
                Cancelled::Now(Task::from_row(&row)?)
            }
        };
        notify(&tx, TASKS_CHANNEL, id).await?;
        tx.commit().await?;
        Ok(outcome)
    }

    /// Approves a result: the task has succeeded.
    pub async fn approve(&self, id: Uuid, reason: &str) -> Result<Task> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "UPDATE tasks SET state = 'succeeded', reason = $2, finished_at = clock_timestamp()
                 WHERE id = $1 AND state = 'awaiting_approval' RETURNING *",
                &[&id, &storable(reason)],
            )
            .await?;
        let Some(row) = row else {
            drop(tx);
            drop(client);
            let task = self.get(id).await?;
            return Err(TaskError::Conflict { id, state: task.state, action: "approved" });
        };
        append(&tx, id, "state", &format!("succeeded: {reason}"), &state_data(State::Succeeded)).await?;
        notify(&tx, TASKS_CHANNEL, id).await?;
        tx.commit().await?;
        Task::from_row(&row)
    }

    /// Writes down that the result arrived in the base branch. Doing so twice keeps the first.
    pub async fn set_merged(&self, id: Uuid, commit: &str) -> Result<Task> {
        let mut client = self.pool.get().await?;
        let tx = client.transaction().await?;
        let row = tx
            .query_opt(
                "UPDATE tasks SET merged_commit = coalesce(merged_commit, $2),
                        merged_at = coalesce(merged_at, clock_timestamp())
                 WHERE id = $1 AND state = 'succeeded' RETURNING *",
                &[&id, &commit],
            )
            .await?;
        let Some(row) = row else {
            drop(tx);
            drop(client);
            let task = self.get(id).await?;
            return Err(TaskError::Conflict { id, state: task.state, action: "merged" });
        };
        append(&tx, id, "log", &format!("merged as {commit}"), &serde_json::json!({ "merged_commit": commit })).await?;
        tx.commit().await?;
        Task::from_row(&row)
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

impl NewTask {
    fn asks_the_same(&self, task: &Task) -> bool {
        self.prompt == task.prompt
            && self.repo == task.repo
            && self.check_command == task.check_command
            && self.backend == task.backend
            && self.model == task.model
            && self.max_iterations == task.max_iterations
            && to_ms(self.timeout) == to_ms(task.timeout)
            && self.require_approval == task.require_approval
    }
}

/// Whether the write of a worker found the lease it names.
fn held(changed: u64, lease: Lease) -> Result<()> {
    if changed == 0 { Err(TaskError::Fenced(lease.task)) } else { Ok(()) }
}

async fn interrupt(tx: &deadpool_postgres::Transaction<'_>, id: Uuid) -> Result<()> {
    tx.execute(
        "UPDATE iterations SET outcome = 'interrupted', finished_at = clock_timestamp()
         WHERE task_id = $1 AND outcome = 'running'",
        &[&id],
    )
    .await?;
    Ok(())
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
