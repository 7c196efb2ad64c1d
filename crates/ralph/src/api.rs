//! What ralph's routes take and give; the command line uses the same types.

use std::collections::BTreeMap;

use jiff::Timestamp;
use lares_gate::FieldError;
use lares_store::tasks;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

/// Header that makes submitting the same request twice make one task.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// A coding request: `POST /tasks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SubmitTask {
    /// What to do, in words.
    pub prompt: String,
    /// Absolute path of the git repository on the machine that ralph runs on.
    pub repo: String,
    /// Command, run by `sh -c` in the worktree, whose exit code decides: 0 ends the task.
    pub check: String,
    /// Coding agent that carries out the iterations. Unset: `builtin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend: Option<String>,
    /// Model the agent asks, by a name the coordinator knows. Unset: the configured one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Most iterations. Unset: `ralph.max_iterations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_iterations: Option<u32>,
    /// Longest time worked on it, such as `30m`. Unset: `ralph.timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Whether a person has to approve the result before the task counts as succeeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub require_approval: Option<bool>,
}

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// Waits for a worker.
    Queued,
    /// Is worked on.
    Running,
    /// The check passed; a person has to approve.
    AwaitingApproval,
    /// The check passed (and was approved where that was asked for).
    Succeeded,
    /// Given up; `reason` says why.
    Failed,
    /// Stopped by a person.
    Cancelled,
}

impl TaskState {
    /// Whether the task has ended.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// The name it has over HTTP.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::Running => "running",
            Self::AwaitingApproval => "awaiting_approval",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl std::fmt::Display for TaskState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl From<tasks::State> for TaskState {
    fn from(state: tasks::State) -> Self {
        match state {
            tasks::State::Queued => Self::Queued,
            tasks::State::Running => Self::Running,
            tasks::State::AwaitingApproval => Self::AwaitingApproval,
            tasks::State::Succeeded => Self::Succeeded,
            tasks::State::Failed => Self::Failed,
            tasks::State::Cancelled => Self::Cancelled,
        }
    }
}

impl From<TaskState> for tasks::State {
    fn from(state: TaskState) -> Self {
        match state {
            TaskState::Queued => Self::Queued,
            TaskState::Running => Self::Running,
            TaskState::AwaitingApproval => Self::AwaitingApproval,
            TaskState::Succeeded => Self::Succeeded,
            TaskState::Failed => Self::Failed,
            TaskState::Cancelled => Self::Cancelled,
        }
    }
}

/// One task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id.
    pub id: Uuid,
    /// Where it is in its life.
    pub state: TaskState,
    /// Why it is there, in a sentence.
    pub reason: Option<String>,
    /// What to do.
    pub prompt: String,
    /// Absolute path of the git repository.
    pub repo: String,
    /// Command whose exit code decides.
    pub check: String,
    /// Coding agent.
    pub backend: String,
    /// Model the agent asks; unset: the configured one.
    pub model: Option<String>,
    /// Most iterations.
    pub max_iterations: u32,
    /// Longest time worked on it, such as `30m`.
    pub timeout: String,
    /// Time worked on it so far, in seconds.
    pub worked_seconds: f64,
    /// Whether a person has to approve the result.
    pub require_approval: bool,
    /// Whether it was asked to stop.
    pub cancel_requested: bool,
    /// Key that submitted it.
    pub created_by: Option<Uuid>,
    /// When it was submitted.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
    /// When a worker first took it.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// Commit that everything starts from.
    pub base_commit: Option<String>,
    /// Branch that was checked out in the repository when the task began; `merge` goes there.
    pub base_branch: Option<String>,
    /// Branch that holds what was done.
    pub branch: Option<String>,
    /// Commit that passed the check.
    pub result_commit: Option<String>,
    /// Commit by which the result arrived in the base branch.
    pub merged_commit: Option<String>,
}

impl From<tasks::Task> for Task {
    fn from(task: tasks::Task) -> Self {
        Self {
            id: task.id,
            state: task.state.into(),
            reason: task.reason,
            prompt: task.prompt,
            repo: task.repo,
            check: task.check_command,
            backend: task.backend,
            model: task.model,
            max_iterations: task.max_iterations,
            timeout: lares_config::duration::format(task.timeout),
            worked_seconds: task.worked.as_secs_f64(),
            require_approval: task.require_approval,
            cancel_requested: task.cancel_requested,
            created_by: task.created_by,
            created_at: task.created_at,
            started_at: task.started_at,
            finished_at: task.finished_at,
            base_commit: task.base_commit,
            base_branch: task.base_branch,
            branch: task.branch,
            result_commit: task.result_commit,
            merged_commit: task.merged_commit,
        }
    }
}

/// A task with everything that was tried: `GET /tasks/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskDetail {
    /// The task.
    #[serde(flatten)]
    pub task: Task,
    /// What the check said before anything was changed.
    pub base_check: Option<BaseCheck>,
    /// The iterations, first one first.
    pub iterations: Vec<Iteration>,
}

/// What the check said before anything was changed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BaseCheck {
    /// Its exit code; unset when it was killed, for example at its time limit.
    pub exit: Option<i32>,
    /// First and last part of what it printed.
    pub output: String,
}

/// How an iteration set out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Approach {
    /// From the base commit, with temperature 0.
    First,
    /// From the last checkpoint, with what the check said about it.
    Repair,
    /// From the base commit again, with a temperature above 0.
    Resample,
}

/// How an iteration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It has not ended yet.
    Running,
    /// The check exited with 0.
    Passed,
    /// Something was changed and the check did not pass.
    Failed,
    /// The agent changed nothing.
    NoChange,
    /// The agent could not carry it out.
    AgentFailed,
    /// The worker went away in the middle of it.
    Interrupted,
}

/// One run of an agent on a task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Iteration {
    /// From 1 on.
    pub number: u32,
    /// Agent that carried it out.
    pub backend: String,
    /// How it set out.
    pub approach: Approach,
    /// Sampling temperature.
    pub temperature: f64,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub started_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub finished_at: Option<Timestamp>,
    /// How it ended.
    pub outcome: Outcome,
    /// What the agent says it did.
    pub summary: String,
    /// Paths that differ from where it set out.
    pub changed_files: Vec<String>,
    /// Commit of the state it left.
    pub checkpoint_commit: Option<String>,
    /// Exit code of the check; unset when it did not run or was killed.
    pub check_exit: Option<i32>,
    /// First and last part of what the check printed.
    pub check_output: String,
    /// How long the check took, in seconds.
    pub check_seconds: Option<f64>,
    /// How long the agent took, in seconds.
    pub agent_seconds: Option<f64>,
    /// Tokens sent to the model.
    pub prompt_tokens: Option<i64>,
    /// Tokens the model wrote.
    pub completion_tokens: Option<i64>,
    /// Tests that passed, where the check's output says so.
    pub tests_passed: Option<u32>,
    /// Tests that did not, where the check's output says so.
    pub tests_failed: Option<u32>,
}

impl From<tasks::Iteration> for Iteration {
    fn from(iteration: tasks::Iteration) -> Self {
        Self {
            number: iteration.number,
            backend: iteration.backend,
            approach: match iteration.approach {
                tasks::Approach::First => Approach::First,
                tasks::Approach::Repair => Approach::Repair,
                tasks::Approach::Resample => Approach::Resample,
            },
            temperature: iteration.temperature,
            started_at: iteration.started_at,
            finished_at: iteration.finished_at,
            outcome: match iteration.outcome {
                tasks::Outcome::Running => Outcome::Running,
                tasks::Outcome::Passed => Outcome::Passed,
                tasks::Outcome::Failed => Outcome::Failed,
                tasks::Outcome::NoChange => Outcome::NoChange,
                tasks::Outcome::AgentFailed => Outcome::AgentFailed,
                tasks::Outcome::Interrupted => Outcome::Interrupted,
            },
            summary: iteration.summary,
            changed_files: iteration.changed_files,
            checkpoint_commit: iteration.checkpoint_commit,
            check_exit: iteration.check_exit,
            check_output: iteration.check_output,
            check_seconds: iteration.check_duration.map(|d| d.as_secs_f64()),
            agent_seconds: iteration.agent_duration.map(|d| d.as_secs_f64()),
            prompt_tokens: iteration.prompt_tokens,
            completion_tokens: iteration.completion_tokens,
            tests_passed: iteration.tests_passed,
            tests_failed: iteration.tests_failed,
        }
    }
}

/// The eight characters by which a branch names its task: the random end of the id, since the beginning is the time.
pub fn short_id(id: Uuid) -> String {
    let text = id.simple().to_string();
    text[text.len() - 8..].to_owned()
}

/// Which tasks to list: the query of `GET /tasks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListTasks {
    /// Only those in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub state: Option<TaskState>,
    /// At most so many, 1 to 1000. Unset: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Only those submitted before this one (its id); for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Uuid>,
}

/// Tasks, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskList {
    /// The tasks of this page.
    pub tasks: Vec<Task>,
    /// `before` of the next page; unset on the last one.
    pub next_before: Option<Uuid>,
}

/// One line of a task's log: the `data` of a server-sent event of `GET /tasks/{id}/events`.
///
/// The event's `id` is `seq` and its `event` is `kind`. After the line that ends the task comes an event named `end`,
/// whose data is the [`Task`], and the stream closes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskEvent {
    /// Its place in the log; send the last one seen as `Last-Event-ID` to go on after it.
    pub seq: i64,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// What it is about: `state` (data: `state`), `iteration` (begin and end; data: `number`, `phase`, …), `agent`
    /// (what the agent does), `check` (data: `exit`, `seconds`, `output`), `log` (anything else).
    pub kind: String,
    /// One or more lines for a person.
    pub message: String,
    /// The same for a program.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

impl From<tasks::LogLine> for TaskEvent {
    fn from(line: tasks::LogLine) -> Self {
        Self { seq: line.seq, at: line.at, kind: line.kind, message: line.message, data: line.data }
    }
}

/// What became of a merge: `POST /tasks/{id}/merge`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Merged {
    /// Branch that has the result now.
    pub branch: String,
    /// The commit it is at.
    pub commit: String,
    /// Whether the branch only moved forward, without a merge commit.
    pub fast_forward: bool,
}

/// A request that passed every check that needs no look at the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Submission {
    /// What was asked.
    pub request: SubmitTask,
    /// `timeout`, read.
    pub timeout: Option<std::time::Duration>,
}

/// Longest prompt, in bytes. Past this no small model makes use of it, and the event log has to carry it.
const MAX_PROMPT: usize = 64 * 1024;
/// Longest check command, in bytes.
const MAX_CHECK: usize = 8 * 1024;
/// Most iterations anyone may ask for: a bound on what one request can cost.
const MAX_ITERATIONS: u32 = 1000;
/// Longest time a request may ask for.
const MAX_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);

const FIELDS: [&str; 8] =
    ["prompt", "repo", "check", "backend", "model", "max_iterations", "timeout", "require_approval"];

impl SubmitTask {
    /// Reads a request body; the error names every field that is wrong, not only the first.
    pub fn read(body: &[u8]) -> Result<Submission, Vec<FieldError>> {
        let mut errors = Errors::default();
        let fields: BTreeMap<String, serde_json::Value> = serde_json::from_slice(body).map_err(|error| {
            vec![FieldError { field: String::new(), detail: format!("not a JSON object: {error}") }]
        })?;
        for name in fields.keys().filter(|name| !FIELDS.contains(&name.as_str())) {
            errors.add(name, format!("unknown field; the fields are {}", FIELDS.join(", ")));
        }
        let text = |name: &str, errors: &mut Errors| match fields.get(name) {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::String(text)) if text.contains('\0') => {
                errors.add(name, "holds a NUL character");
                None
            }
            Some(serde_json::Value::String(text)) => Some(text.clone()),
            Some(other) => {
                errors.add(name, format!("has to be a string, not {}", kind_of(other)));
                None
            }
        };
        let required = |name: &str, what: &str, most: usize, errors: &mut Errors| {
            let before = errors.0.len();
            let value = text(name, errors).unwrap_or_default();
            if errors.0.len() == before {
                if value.trim().is_empty() {
                    errors.add(name, format!("is missing: {what}"));
                } else if value.len() > most {
                    errors.add(name, format!("is {} bytes long; at most {most} are taken", value.len()));
                }
            }
            value
        };
        let prompt = required("prompt", "say what to do", MAX_PROMPT, &mut errors);
        let repo = required("repo", "the absolute path of a git repository", 4096, &mut errors);
        let check = required("check", "a command whose exit code 0 ends the task", MAX_CHECK, &mut errors);
        let named = |name: &str, errors: &mut Errors| {
            let value = text(name, errors)?;
            if value.trim().is_empty() || value.len() > 256 {
                errors.add(name, "has to be 1 to 256 bytes long when it is given");
            }
            Some(value)
        };
        let backend = named("backend", &mut errors);
        let model = named("model", &mut errors);
        if !repo.is_empty() && !repo.starts_with('/') {
            errors.add("repo", format!("`{repo}` is not an absolute path"));
        }
        let max_iterations = match fields.get("max_iterations") {
            None | Some(serde_json::Value::Null) => None,
            Some(value) => {
                let number =
                    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| (1..=MAX_ITERATIONS).contains(n));
                if number.is_none() {
                    errors.add("max_iterations", format!("has to be a whole number from 1 to {MAX_ITERATIONS}"));
                }
                number
            }
        };
        let timeout_text = text("timeout", &mut errors);
        let timeout = timeout_text.as_deref().and_then(|text| match lares_config::duration::parse(text) {
            Ok(value) if value.is_zero() || value > MAX_TIMEOUT => {
                errors.add("timeout", "has to be longer than nothing and at most 7 days");
                None
            }
            Ok(value) => Some(value),
            Err(error) => {
                errors.add("timeout", error);
                None
            }
        });
        let require_approval = match fields.get("require_approval") {
            None | Some(serde_json::Value::Null) => None,
            Some(serde_json::Value::Bool(value)) => Some(*value),
            Some(other) => {
                errors.add("require_approval", format!("has to be true or false, not {}", kind_of(other)));
                None
            }
        };
        if !errors.0.is_empty() {
            return Err(errors.0);
        }
        let request =
            Self { prompt, repo, check, backend, model, max_iterations, timeout: timeout_text, require_approval };
        Ok(Submission { request, timeout })
    }
}

#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, field: &str, detail: impl Into<String>) {
        self.0.push(FieldError { field: field.to_owned(), detail: detail.into() });
    }
}

fn kind_of(value: &serde_json::Value) -> &'static str {
    match value {
        serde_json::Value::Null => "null",
        serde_json::Value::Bool(_) => "a boolean",
        serde_json::Value::Number(_) => "a number",
        serde_json::Value::String(_) => "a string",
        serde_json::Value::Array(_) => "a list",
        serde_json::Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let errors = SubmitTask::read(
            br#"{"prompt": 3, "repo": "here", "chek": "make", "max_iterations": 0, "timeout": "30", "require_approval": "yes"}"#,
        )
        .unwrap_err();
        let mut fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["check", "chek", "max_iterations", "prompt", "repo", "require_approval", "timeout"]);
    }

    #[test]
    fn what_the_command_line_sends_is_read_back() {
        let request = SubmitTask {
            prompt: "fix it".to_owned(),
            repo: "/srv/code".to_owned(),
            check: "make test".to_owned(),
            timeout: Some("30m".to_owned()),
            ..SubmitTask::default()
        };
        let read = SubmitTask::read(&serde_json::to_vec(&request).unwrap()).unwrap();
        assert_eq!(read.request, request);
        assert_eq!(read.timeout, Some(std::time::Duration::from_secs(1800)));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for body in [&b"[]"[..], b"", b"{", b"\"x\""] {
            assert_eq!(SubmitTask::read(body).unwrap_err()[0].field, "");
        }
    }
}
