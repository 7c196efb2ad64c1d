//! `lares task …`: submitting tasks to ralph and watching them.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use console::style;
use futures_util::StreamExt;
use lares_ralph::api::{ListTasks, Merged, SubmitTask, Task, TaskDetail, TaskEvent, TaskList, TaskState};
use uuid::Uuid;

use crate::cli::{self, Global, exit};
use crate::configuration;
use crate::daemon::{self, Daemon};
use crate::output::{self, Output};
use crate::sse::{Event, Parser};

/// Carries out `lares task …` and says with which code to exit.
pub async fn run(global: &Global, command: cli::Task) -> Result<u8> {
    let config = configuration::load_for_client(global)?;
    let ralph = Daemon::ralph(&config)?;
    let output = Output { json: global.json };
    match command {
        cli::Task::Submit(submit) => return submit_task(&ralph, output, submit).await,
        cli::Task::List { state, limit } => {
            let state = state
                .map(|name| serde_json::from_value::<TaskState>(name.clone().into()).map_err(|_| name))
                .transpose()
                .map_err(|name| {
                    anyhow::anyhow!(
                        "`{name}` is no state; there are queued, running, awaiting_approval, succeeded, failed, cancelled"
                    )
                })?;
            let tasks = list(&ralph, &ListTasks { state, limit: Some(limit), before: None }).await?;
            output.value(&tasks, task_table)?;
        }
        cli::Task::Show { task } => {
            let detail: TaskDetail = ralph.get(&format!("/tasks/{task}")).await?;
            output.value(&detail, describe)?;
        }
        cli::Task::Logs { task, follow } => {
            watch(&ralph, task, follow, &mut Printer::new(output)).await?;
        }
        cli::Task::Diff { task } => output::line(&diff(&ralph, task).await?)?,
        cli::Task::Cancel { task } => {
            let task: Task = ralph.command(&format!("/tasks/{task}/cancel")).await?;
            output.value(&task, |task| format!("task {} is told to stop; its branch stays", task.id))?;
        }
        cli::Task::Approve { task } => {
            let task: Task = ralph.command(&format!("/tasks/{task}/approve")).await?;
            output.value(&task, |task| {
                format!("task {} {}; `lares task merge {}` merges it", task.id, task.state, task.id)
            })?;
        }
        cli::Task::Merge { task } => {
            let merged: Merged = ralph.command(&format!("/tasks/{task}/merge")).await?;
            output.value(&merged, |merged| {
                let how = if merged.fast_forward { "fast-forward" } else { "merge commit" };
                format!("{} is at {} now ({how})", merged.branch, short(&merged.commit))
            })?;
        }
    }
    Ok(exit::OK)
}

async fn list(ralph: &Daemon, query: &ListTasks) -> Result<TaskList, daemon::Error> {
    let mut path = format!("/tasks?limit={}", query.limit.unwrap_or(20));
    if let Some(state) = query.state {
        let _ = write!(path, "&state={state}");
    }
    ralph.get(&path).await
}

/// The change a task has made so far.
pub async fn diff(ralph: &Daemon, task: Uuid) -> Result<String, daemon::Error> {
    ralph.text(&format!("/tasks/{task}/diff")).await
}

async fn submit_task(ralph: &Daemon, output: Output, submit: cli::Submit) -> Result<u8> {
    let repo = absolute_repo(&submit.repo)?;
    let request = SubmitTask {
        prompt: submit.prompt,
        repo,
        check: submit.check,
        backend: submit.backend,
        model: submit.model,
        max_iterations: submit.max_iterations,
        timeout: submit.timeout,
        require_approval: submit.require_approval.then_some(true),
    };
    let task: Task = ralph.post("/tasks", &request).await?;
    if submit.detach {
        output.value(&task, |task| task.id.to_string())?;
        return Ok(exit::OK);
    }
    if !output.json {
        output::line(&format!("task {}", task.id))?;
    }
    let end = watch(ralph, task.id, true, &mut Printer::new(output)).await?;
    let state = end.as_ref().map(|task| task.state);
    if !output.json
        && let Some(task) = &end
    {
        output::line(&closing(task))?;
    }
    Ok(match state {
        Some(TaskState::Succeeded | TaskState::AwaitingApproval) => exit::OK,
        _ => exit::TASK_FAILED,
    })
}

fn absolute_repo(repo: &Path) -> Result<String> {
    let absolute = repo.canonicalize().with_context(|| format!("--repo: {} cannot be opened", repo.display()))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| anyhow::anyhow!("--repo: {} is not UTF-8; rename the directory", path.to_string_lossy()))
}

/// What a person does next with a task that has ended.
fn closing(task: &Task) -> String {
    let reason = task.reason.as_deref().unwrap_or("no reason given");
    match task.state {
        TaskState::Succeeded => match (&task.result_commit, &task.branch) {
            (Some(commit), Some(branch)) => format!(
                "{} commit {} on {branch}; `lares task merge {}` merges it",
                style("succeeded").green().bold(),
                short(commit),
                task.id
            ),
            _ => format!("{}: {reason}", style("succeeded").green().bold()),
        },
        TaskState::AwaitingApproval => format!(
            "the check passes; `lares task diff {id}` shows the change, `lares task approve {id}` releases it",
            id = task.id
        ),
        state => format!("{}: {reason}", style(state).red().bold()),
    }
}

/// Takes in a task's log line by line.
pub trait Watcher {
    /// One line of the log.
    fn line(&mut self, event: &TaskEvent) -> Result<()>;
}

/// Prints the log as it comes.
pub struct Printer {
    output: Output,
    /// When the first line was written; times are shown from there.
    began: Option<jiff::Timestamp>,
}

impl Printer {
    pub fn new(output: Output) -> Self {
        Self { output, began: None }
    }
}

impl Watcher for Printer {
    fn line(&mut self, event: &TaskEvent) -> Result<()> {
        if self.output.json {
            return output::line(&serde_json::to_string(event)?);
        }
        let began = *self.began.get_or_insert(event.at);
        let elapsed = event.at.duration_since(began).as_secs_f64();
        let mut lines = event.message.lines();
        let kind = match event.kind.as_str() {
            "check" => style(format!("{:>9}", "check")).magenta(),
            "agent" => style(format!("{:>9}", "agent")).cyan(),
            "iteration" => style(format!("{:>9}", "iteration")).bold(),
            other => style(format!("{other:>9}")).dim(),
        };
        let time = style(format!("{elapsed:6.1}s")).dim();
        output::line(&format!("{time} {kind}  {}", lines.next().unwrap_or_default()))?;
        for more in lines {
            output::line(&format!("{:18} {more}", ""))?;
        }
        Ok(())
    }
}

/// Reads a task's log from its beginning; with `follow` until the task has ended, through restarts of ralph.
///
/// Gives the task as it ended, `None` when it has not.
pub async fn watch(ralph: &Daemon, id: Uuid, follow: bool, watcher: &mut dyn Watcher) -> Result<Option<Task>> {
    /// How long ralph may be away before watching is given up: longer than its supervisor's slowest restart.
    const PATIENCE: Duration = Duration::from_secs(60);
    /// The server sends a comment every 15 s, so a longer silence is a dead connection.
    const SILENCE: Duration = Duration::from_secs(60);

    let path = format!("/tasks/{id}/events");
    let mut last_seen: Option<String> = None;
    let mut away_since: Option<Instant> = None;
    loop {
        let task: Result<TaskDetail, _> = ralph.get(&format!("/tasks/{id}")).await;
        let ended = match task {
            Ok(detail) if detail.task.state.is_final() => Some(detail.task),
            Ok(_) => None,
            Err(daemon::Error::Unreachable { .. }) if follow => None,
            Err(error) => return Err(error.into()),
        };
        match ralph.events(&path, last_seen.as_deref()).await {
            Ok(response) => {
                away_since = None;
                let mut parser = Parser::default();
                let mut stream = response.bytes_stream();
                // Without `follow` the history is read and the first silence ends it.
                let patience = if follow { SILENCE } else { Duration::from_millis(500) };
                while let Ok(Some(Ok(chunk))) = tokio::time::timeout(patience, stream.next()).await {
                    for event in parser.push(&chunk) {
                        if event.name == "end" {
                            return Ok(Some(serde_json::from_str(&event.data)?));
                        }
                        if take(event, &mut last_seen, watcher)? && follow {
                            let detail: TaskDetail = ralph.get(&format!("/tasks/{id}")).await?;
                            return Ok(Some(detail.task));
                        }
                    }
                }
                if !follow || ended.is_some() {
                    return Ok(ended);
                }
            }
            Err(daemon::Error::Unreachable { .. } | daemon::Error::Refused(_))
                if follow && away_since.is_none_or(|since| since.elapsed() < PATIENCE) =>
            {
                away_since.get_or_insert_with(Instant::now);
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

/// Hands a line on; `true` when from here on a person has to act, so that there is nothing to wait for.
fn take(event: Event, last_seen: &mut Option<String>, watcher: &mut dyn Watcher) -> Result<bool> {
    let line: TaskEvent = serde_json::from_str(&event.data).context("a line of the task's log cannot be read")?;
    if event.id.is_some() {
        *last_seen = event.id;
    }
    watcher.line(&line)?;
    Ok(line.kind == "state" && line.data["state"] == TaskState::AwaitingApproval.as_str())
}

fn task_table(list: &TaskList) -> String {
    if list.tasks.is_empty() {
        return "no tasks; `lares task submit --help` shows how to submit one".to_owned();
    }
    let rows = list.tasks.iter().map(|task| {
        let prompt: String = task.prompt.lines().next().unwrap_or_default().chars().take(48).collect();
        [
            task.id.to_string(),
            task.state.to_string(),
            format!("{:.0} s", task.worked_seconds),
            task.repo.clone(),
            prompt,
        ]
    });
    output::table(["task", "state", "worked", "repo", "prompt"], rows)
}

fn describe(detail: &TaskDetail) -> String {
    let task = &detail.task;
    let mut text = String::new();
    let mut field = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<11} {value}");
    };
    field("task", &task.id.to_string());
    field("state", task.state.as_str());
    for (name, value) in [
        ("reason", &task.reason),
        ("branch", &task.branch),
        ("base", &task.base_commit),
        ("result", &task.result_commit),
        ("merged", &task.merged_commit),
    ] {
        if let Some(value) = value {
            field(name, value);
        }
    }
    field("repo", &task.repo);
    field("check", &task.check);
    field("backend", &task.backend);
    field("worked", &format!("{:.1} s of {}", task.worked_seconds, task.timeout));
    field("prompt", &task.prompt.replace('\n', "\n            "));
    if !detail.iterations.is_empty() {
        let rows = detail.iterations.iter().map(|iteration| {
            let number = |value: Option<i64>| value.map_or_else(|| "-".to_owned(), |n| n.to_string());
            let time = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |s| format!("{s:.1} s"));
            [
                iteration.number.to_string(),
                format!("{:?}", iteration.approach).to_lowercase(),
                format!("{:?}", iteration.outcome).to_lowercase(),
                iteration.check_exit.map_or_else(|| "-".to_owned(), |code| code.to_string()),
                time(iteration.agent_seconds),
                time(iteration.check_seconds),
                number(iteration.completion_tokens),
                iteration.changed_files.join(" "),
            ]
        });
        let header = ["iteration", "approach", "outcome", "check", "agent time", "check time", "tokens", "changed"];
        let _ = write!(text, "\n{}", output::table(header, rows));
    }
    text
}

/// The first digits of a commit, enough to know it by.
pub fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}
