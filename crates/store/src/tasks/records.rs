//! The rows of the task tables as values.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio_postgres::Row;
use uuid::Uuid;

use super::{Result, TaskError, count, from_ms};

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

    pub(super) fn from_row(row: &Row) -> Result<Self> {
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
    pub(super) fn from_row(row: &Row) -> Result<Self> {
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
    pub(super) fn from_row(row: &Row) -> Result<Self> {
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
