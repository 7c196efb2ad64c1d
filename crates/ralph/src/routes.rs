//! Ralph's HTTP routes: thin, over the store and git.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, LOCATION};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use lares_agents::builtin::Builtin;
use lares_gate::{Caller, Json, Problem};
use lares_store::audit::Entry;
use lares_store::events::Event;
use lares_store::tasks::{self, Cancelled, Filter, NewTask, Submitted, TaskError};
use serde_json::json;
use tokio::sync::{Mutex, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::api::{BaseCheck, IDEMPOTENCY_KEY, Iteration, ListTasks, Merged, SubmitTask, Task, TaskDetail, TaskList};
use crate::git::{GitError, Repo};
use crate::merge::{self, MergeError};
use crate::stream;
use crate::work::{Shop, clear_up};

/// Tasks on a page when the caller does not say.
const PAGE: u32 = 50;
/// Most bytes of a patch sent over HTTP.
const MAX_DIFF: u64 = 16 << 20;
/// Longest idempotency key, in bytes.
const MAX_IDEMPOTENCY_KEY: usize = 255;
/// What callers are told to wait when something is full.
const RETRY: Duration = Duration::from_secs(5);

/// What the handlers work with.
pub(crate) struct Desk {
    pub(crate) shop: Arc<Shop>,
    /// Rings the id of every task with a new line in its log.
    pub(crate) lines: broadcast::Sender<Uuid>,
    pub(crate) streams: Arc<Semaphore>,
    /// Merges one at a time: two into the same branch would see each other half done.
    pub(crate) merging: Mutex<()>,
    pub(crate) shutdown: CancellationToken,
}

/// Routes that only look.
pub(crate) fn reading(desk: &Arc<Desk>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(show))
        .routes(routes!(events))
        .routes(routes!(diff))
        .with_state(Arc::clone(desk))
}

/// Routes that change something.
pub(crate) fn changing(desk: &Arc<Desk>) -> OpenApiRouter {
    OpenApiRouter::new()
        .routes(routes!(submit))
        .routes(routes!(cancel))
        .routes(routes!(approve))
        .routes(routes!(merge_result))
        .with_state(Arc::clone(desk))
}

/// Puts a task into the queue.
///
/// With an `Idempotency-Key` header, sending the same request again answers with the task it made the first time.
#[utoipa::path(post, path = "/tasks", tag = "tasks", request_body = SubmitTask,
    params(("Idempotency-Key" = Option<String>, Header, description = "A name for this request, at most 255 characters")),
    responses(
        (status = 201, description = "Queued; `Location` names it", body = Task),
        (status = 200, description = "Queued before under the same idempotency key", body = Task),
        (status = 400, description = "Not JSON", body = Problem),
        (status = 422, description = "A field is wrong; `errors` names each", body = Problem),
        (status = 429, description = "The queue is full", body = Problem),
    ))]
async fn submit(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let submission = SubmitTask::read(&body).map_err(|errors| {
        if let [error] = errors.as_slice()
            && error.field.is_empty()
        {
            return Problem::bad_request("invalid-json", error.detail.clone());
        }
        let said: Vec<_> = errors.iter().map(|error| format!("{}: {}", error.field, error.detail)).collect();
        let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-task", said.join("; "));
        errors.into_iter().fold(problem, |problem, error| problem.error(error.field, error.detail))
    })?;
    let (request, timeout) = (submission.request, submission.timeout);
    let idempotency_key = idempotency_key(&headers)?;
    let ralph = &desk.shop.config.ralph;
    let backend = request.backend.unwrap_or_else(|| Builtin::NAME.to_owned());
    let wrong = |field: &str, detail: String| {
        Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-task", format!("{field}: {detail}"))
            .error(field, detail)
    };
    (desk.shop.backends)(&backend, request.model.as_deref()).map_err(|why| wrong("backend", why))?;
    let usable = async { Repo::open(FilePath::new(&request.repo)).await?.head().await };
    if let Err(error) = usable.await {
        return Err(match error {
            GitError::Unavailable(_) | GitError::TimedOut { .. } => {
                Problem::unavailable("git-unavailable", error.to_string())
            }
            error => wrong("repo", error.to_string()),
        });
    }
    let new = NewTask {
        prompt: request.prompt,
        repo: request.repo,
        check_command: request.check,
        backend,
        model: request.model,
        max_iterations: request.max_iterations.unwrap_or(ralph.max_iterations),
        timeout: timeout.unwrap_or(ralph.timeout),
        require_approval: request.require_approval.unwrap_or(false),
        created_by: Some(caller.key_id),
        idempotency_key,
    };
    let submitted = desk.shop.store.tasks().submit(&new, ralph.max_queued).await.map_err(problem)?;
    let status = match &submitted {
        Submitted::New(task) => {
            desk.trace(&caller, "task.submit", task, None).await;
            StatusCode::CREATED
        }
        Submitted::Existing(_) => StatusCode::OK,
    };
    let task = Task::from(submitted.into_task());
    let location = HeaderValue::try_from(format!("/tasks/{}", task.id)).map_err(|error| Problem::internal(&error))?;
    Ok((status, [(LOCATION, location)], Json(task)).into_response())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match value.to_str().map(str::trim) {
        Ok(key) if !key.is_empty() && key.len() <= MAX_IDEMPOTENCY_KEY => Ok(Some(key.to_owned())),
        _ => Err(Problem::bad_request(
            "invalid-idempotency-key",
            format!("Idempotency-Key has to be 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters"),
        )),
    }
}

/// Tasks, newest first.
#[utoipa::path(get, path = "/tasks", tag = "tasks", params(ListTasks), responses(
    (status = 200, body = TaskList),
    (status = 400, description = "A parameter is wrong", body = Problem),
))]
async fn list(State(desk): State<Arc<Desk>>, uri: Uri) -> Result<Json<TaskList>, Problem> {
    let Query(query) = Query::<ListTasks>::try_from_uri(&uri)
        .map_err(|rejection| Problem::bad_request("invalid-query", rejection.body_text()))?;
    let limit = query.limit.unwrap_or(PAGE);
    if !(1..=1000).contains(&limit) {
        return Err(Problem::bad_request("invalid-query", "limit has to be from 1 to 1000").error("limit", "1 to 1000"));
    }
    let filter = Filter { state: query.state.map(Into::into), before: query.before, limit };
    let found = desk.shop.store.tasks().list(&filter).await.map_err(problem)?;
    let next_before = (found.len() == limit as usize).then(|| found.last().map(|task| task.id)).flatten();
    Ok(Json(TaskList { tasks: found.into_iter().map(Into::into).collect(), next_before }))
}

/// One task with everything that was tried.
#[utoipa::path(get, path = "/tasks/{id}", tag = "tasks", params(("id" = Uuid, Path)), responses(
    (status = 200, body = TaskDetail),
    (status = 404, body = Problem),
))]
async fn show(State(desk): State<Arc<Desk>>, Path(id): Path<String>) -> Result<Json<TaskDetail>, Problem> {
    let id = task_id(&id)?;
    let tasks = desk.shop.store.tasks();
    let task = tasks.get(id).await.map_err(problem)?;
    let iterations = tasks.iterations(id).await.map_err(problem)?;
    let base_check = task.base_check_output.clone().map(|output| BaseCheck { exit: task.base_check_exit, output });
    let iterations = iterations.into_iter().map(Iteration::from).collect();
    Ok(Json(TaskDetail { task: task.into(), base_check, iterations }))
}

/// The log of a task as server-sent events: what was so far, then what comes, until the task has ended.
///
/// `Last-Event-ID` goes on after that line. The last event is named `end` and carries the task.
#[utoipa::path(get, path = "/tasks/{id}/events", tag = "tasks",
    params(("id" = Uuid, Path), ("Last-Event-ID" = Option<i64>, Header, description = "`seq` of the last line seen")),
    responses(
        (status = 200, description = "Each event's data is a `TaskEvent`", body = crate::api::TaskEvent, content_type = "text/event-stream"),
        (status = 404, body = Problem),
        (status = 503, description = "Too many streams are open", body = Problem),
    ))]
async fn events(
    State(desk): State<Arc<Desk>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = task_id(&id)?;
    let seq = match headers.get("last-event-id") {
        None => 0,
        Some(value) => value.to_str().ok().and_then(|text| text.trim().parse().ok()).ok_or_else(|| {
            Problem::bad_request("invalid-last-event-id", "Last-Event-ID has to be the id of an event of this stream")
        })?,
    };
    desk.shop.store.tasks().get(id).await.map_err(problem)?;
    let slot = stream::slot(&desk.streams).ok_or_else(|| {
        Problem::unavailable(
            "too-many-streams",
            format!("{} streams are open, which is the bound", stream::MAX_STREAMS),
        )
        .retry_after(RETRY)
    })?;
    let (store, lines, shutdown) = (desk.shop.store.clone(), desk.lines.subscribe(), desk.shutdown.clone());
    Ok(stream::of(store, id, seq, lines, shutdown, slot).into_response())
}

/// The change a task made, as a patch: its result, or its last checkpoint while there is none.
#[utoipa::path(get, path = "/tasks/{id}/diff", tag = "tasks", params(("id" = Uuid, Path)), responses(
    (status = 200, body = String, content_type = "text/x-diff"),
    (status = 404, body = Problem),
    (status = 410, description = "The commits are not in the repository any more", body = Problem),
))]
async fn diff(State(desk): State<Arc<Desk>>, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = task_id(&id)?;
    let tasks = desk.shop.store.tasks();
    let task = tasks.get(id).await.map_err(problem)?;
    let last = match task.result_commit.clone() {
        Some(result) => Some(result),
        None => match &task.branch {
            Some(branch) => Some(format!("refs/heads/{branch}")),
            None => {
                let iterations = tasks.iterations(id).await.map_err(problem)?;
                iterations.into_iter().rev().find_map(|iteration| iteration.checkpoint_commit)
            }
        },
    };
    let patch = match (&task.base_commit, last) {
        (Some(base), Some(last)) => {
            let repo = Repo::open(FilePath::new(&task.repo)).await.map_err(gone)?;
            repo.diff(base, &last, MAX_DIFF).await.map_err(gone)?
        }
        _ => Vec::new(),
    };
    Ok(([(CONTENT_TYPE, HeaderValue::from_static("text/x-diff; charset=utf-8"))], patch).into_response())
}

fn gone(error: GitError) -> Problem {
    match error {
        GitError::TooLarge { .. } => Problem::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "diff-too-large",
            format!("{error}; look at it in the repository with `git diff`"),
        ),
        error => Problem::new(StatusCode::GONE, "commits-gone", error.to_string()),
    }
}

/// Stops a task. One that awaits approval is rejected; its branch stays, as that of every task does.
#[utoipa::path(post, path = "/tasks/{id}/cancel", tag = "tasks", params(("id" = Uuid, Path)), responses(
    (status = 200, description = "It has ended", body = Task),
    (status = 202, description = "Its worker was told and ends it within seconds", body = Task),
    (status = 404, body = Problem),
    (status = 409, description = "It has ended before", body = Problem),
))]
async fn cancel(State(desk): State<Arc<Desk>>, caller: Caller, Path(id): Path<String>) -> Result<Response, Problem> {
    let id = task_id(&id)?;
    let reason = format!("cancelled by {}", caller.name);
    Ok(match desk.shop.store.tasks().cancel(id, &reason).await.map_err(problem)? {
        Cancelled::Now(task) => {
            desk.trace(&caller, "task.cancel", &task, Some(&reason)).await;
            // A task that was put back and then cancelled has no worker left to do this.
            clear_up(&desk.shop, &task).await;
            (StatusCode::OK, Json(Task::from(task))).into_response()
        }
        Cancelled::Requested(task) => {
            desk.trace(&caller, "task.cancel", &task, Some(&reason)).await;
            (StatusCode::ACCEPTED, Json(Task::from(task))).into_response()
        }
    })
}

/// Releases the result of a task that awaits approval: the task has succeeded. Merging is a step of its own.
#[utoipa::path(post, path = "/tasks/{id}/approve", tag = "tasks", params(("id" = Uuid, Path)), responses(
    (status = 200, body = Task),
    (status = 404, body = Problem),
    (status = 409, description = "It does not await approval", body = Problem),
))]
async fn approve(State(desk): State<Arc<Desk>>, caller: Caller, Path(id): Path<String>) -> Result<Json<Task>, Problem> {
    let id = task_id(&id)?;
    let reason = format!("the check passed; approved by {}", caller.name);
    let task = desk.shop.store.tasks().approve(id, &reason).await.map_err(problem)?;
    desk.trace(&caller, "task.approve", &task, Some(&reason)).await;
    Ok(Json(task.into()))
}

/// Brings the result of a succeeded task into the branch it started from.
///
/// The branch moves forward, or gets a merge commit when it has moved since. Where it is checked out, that working tree
/// moves along and must have no uncommitted changes. When anything is in the way nothing is changed.
#[utoipa::path(post, path = "/tasks/{id}/merge", tag = "tasks", params(("id" = Uuid, Path)), responses(
    (status = 200, body = Merged),
    (status = 404, body = Problem),
    (status = 409, description = "It cannot be merged; nothing was changed", body = Problem),
))]
async fn merge_result(
    State(desk): State<Arc<Desk>>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<Json<Merged>, Problem> {
    let id = task_id(&id)?;
    let tasks = desk.shop.store.tasks();
    let task = tasks.get(id).await.map_err(problem)?;
    if task.state != tasks::State::Succeeded {
        return Err(problem(TaskError::Conflict { id, state: task.state, action: "merged" }));
    }
    let (Some(result), Some(branch)) = (&task.result_commit, &task.branch) else {
        return Err(Problem::conflict("nothing-to-merge", "the check passed already, so the task changed nothing"));
    };
    let _one = desk.merging.lock().await;
    let cannot = |error: MergeError| Problem::conflict("cannot-merge", error.to_string());
    let repo = Repo::open(FilePath::new(&task.repo)).await.map_err(|error| cannot(error.into()))?;
    let message = format!("Merge {branch}\n\nLares-Task: {id}\n");
    let merged = merge::merge(&repo, task.base_branch.as_deref(), result, branch, &message).await;
    let merged = match merged {
        Ok(merged) => merged,
        Err(error) => {
            desk.audit(&caller, "task.merge", id, &error.to_string()).await;
            return Err(cannot(error));
        }
    };
    let task = tasks.set_merged(id, &merged.commit).await.map_err(problem)?;
    desk.trace(&caller, "task.merge", &task, Some(&merged.commit)).await;
    let branch = task.base_branch.unwrap_or_default();
    Ok(Json(Merged { branch, commit: merged.commit, fast_forward: merged.fast_forward }))
}

impl Desk {
    /// Leaves a trace of what a caller did in the audit log and in telemetry.
    async fn trace(&self, caller: &Caller, action: &str, task: &tasks::Task, detail: Option<&str>) {
        self.shop.recorder.record(Event {
            subject: Some(task.id),
            model: task.model.clone(),
            outcome: task.state.to_string(),
            latency: task.worked,
            detail: json!({ "action": action, "by": caller.name, "detail": detail }),
            ..Event::new("task")
        });
        self.audit(caller, action, task.id, "ok").await;
    }

    async fn audit(&self, caller: &Caller, action: &str, task: Uuid, outcome: &str) {
        let entry = Entry::new(Some(caller.key_id), caller.name.clone(), action, task.to_string(), outcome);
        if let Err(error) = self.shop.store.audit().insert(&entry).await {
            tracing::warn!(%task, action, by = caller.name, %error, "the audit log did not take an entry");
        }
    }
}

fn task_id(text: &str) -> Result<Uuid, Problem> {
    text.parse().map_err(|_| {
        Problem::not_found("task-not-found", format!("`{text}` is not the id of a task; `lares task list` shows them"))
    })
}

fn problem(error: TaskError) -> Problem {
    let said = error.to_string();
    match error {
        TaskError::NotFound(_) => Problem::not_found("task-not-found", said),
        TaskError::Conflict { .. } | TaskError::Fenced(_) => Problem::conflict("wrong-state", said),
        TaskError::QueueFull(_) => Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue-full", said).retry_after(RETRY),
        TaskError::IdempotencyMismatch(_) => {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", said)
        }
        error if error.is_transient() => {
            tracing::warn!(%error, "PostgreSQL is away");
            Problem::unavailable("store-unavailable", "PostgreSQL cannot be reached; try again").retry_after(RETRY)
        }
        error => Problem::internal(&error),
    }
}
