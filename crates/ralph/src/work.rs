//! One worker's way with one task: prepare → check the base → iterate → end. Every step can be the last one before a
//! crash; the next worker finds what was written down and goes on from the last checkpoint.

use std::sync::Arc;
use std::time::Duration;

use lares_agents::sandbox::Launcher;
use lares_config::Config;
use lares_store::Store;
use lares_store::audit::Entry;
use lares_store::events::{Event, Recorder};
use lares_store::tasks::{Iteration, Outcome, State, Task};
use serde_json::json;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::agent::Backends;
use crate::api::short_id;
use crate::check;
use crate::decide::{self, Attempt, Next};
use crate::disk;
use crate::git::{GitError, Repo};
use crate::hold::{Halt, Hold};
use crate::protect::Protection;
use crate::score::Score;
use crate::worktree::{Worktree, Worktrees};

/// How long a task waits in the queue when the disk is full or a file could not be written.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// Longest slug of a branch name, in bytes.
const MAX_SLUG: usize = 40;

/// What all workers of this process share.
pub(crate) struct Shop {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Store,
    pub(crate) launcher: Launcher,
    pub(crate) backends: Backends,
    pub(crate) worktrees: Worktrees,
    pub(crate) recorder: Recorder,
    /// Rings the id of every task that something was announced about.
    pub(crate) bell: broadcast::Sender<Uuid>,
}

/// How a worker let go of a task.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Left {
    /// It ended, or awaits approval.
    Ended(State),
    /// Back in the queue.
    Released,
    /// Somebody else has it, or PostgreSQL could not be told; the lease runs out by itself.
    Lost,
}

/// How the work ended when nothing stopped it.
struct Ending {
    state: State,
    reason: String,
    branch: Option<String>,
    result: Option<String>,
}

/// What the steps after the first work with.
pub(crate) struct Bench<'a> {
    pub(crate) shop: &'a Shop,
    pub(crate) hold: &'a Hold,
    pub(crate) task: Task,
    pub(crate) repo: Repo,
    pub(crate) base: String,
    pub(crate) worktree: Worktree,
    pub(crate) protection: Protection,
}

/// Works on a task that was just taken until it ends or has to be let go. Nothing of it runs when this returns, and
/// its worktree is gone.
pub(crate) async fn work(shop: &Shop, task: Task, shutdown: &CancellationToken) -> Left {
    let hold = Hold::new(shop.store.clone(), &task, shop.config.ralph.lease);
    let bell = shop.bell.subscribe();
    let done = CancellationToken::new();
    if task.cancel_requested {
        hold.halt(Halt::Cancelled);
    }
    let work = async {
        let _done = done.clone().drop_guard();
        let outcome = steps(shop, &hold, &task).await;
        let left = let_go(shop, &hold, &task, outcome).await;
        if !matches!(left, Left::Ended(_)) {
            remove_worktrees(shop, &task, task.fence).await;
        }
        left
    };
    let (left, ()) = tokio::join!(work, hold.keep(bell, shutdown, &done));
    left
}

/// Removes the worktrees of a task's take-overs up to this one. What cannot be removed is left to the sweep.
async fn remove_worktrees(shop: &Shop, task: &Task, up_to: i64) {
    let git_dir = Repo::open(task.repo.as_ref()).await.ok().map(|repo| repo.git_dir);
    if let Err(error) = shop.worktrees.remove(git_dir.as_deref(), task.id, up_to).await {
        tracing::warn!(task = %task.id, %error, "a worktree could not be removed; the next sweep tries again");
    }
}

/// Removes what the work on a task left besides its branch.
pub(crate) async fn clear_up(shop: &Shop, task: &Task) {
    remove_worktrees(shop, task, task.fence).await;
    if let Ok(repo) = Repo::open(task.repo.as_ref()).await
        && let Err(error) = repo.delete_refs(&checkpoints(task.id)).await
    {
        tracing::warn!(task = %task.id, %error, "checkpoint refs could not be removed");
    }
}

/// Writes down how the work ended.
async fn let_go(shop: &Shop, hold: &Hold, task: &Task, outcome: Result<Ending, Halt>) -> Left {
    let ending = match outcome {
        Ok(ending) => Ok(ending),
        Err(halt) => {
            let kept = match halt {
                Halt::Cancelled | Halt::Deadline | Halt::Fail(_) => keep_best(hold, task, shop).await,
                Halt::Shutdown | Halt::Fenced | Halt::Later { .. } => None,
            };
            let end = |state, why: String| {
                Ok(Ending {
                    state,
                    reason: with_kept(why, &kept),
                    branch: kept.map(|(branch, _)| branch),
                    result: None,
                })
            };
            match halt {
                Halt::Cancelled => end(State::Cancelled, "cancelled while it ran".to_owned()),
                Halt::Deadline => {
                    let limit = lares_config::duration::format(task.timeout);
                    end(State::Failed, format!("the check did not pass within the task's timeout of {limit}"))
                }
                Halt::Fail(reason) => end(State::Failed, reason),
                Halt::Shutdown => Err((Duration::ZERO, "the worker was shut down".to_owned())),
                Halt::Later { wait, reason } => Err((wait, reason)),
                Halt::Fenced => return Left::Lost,
            }
        }
    };
    match ending {
        Ok(ending) => finish(shop, hold, task, &ending).await,
        Err((wait, reason)) => {
            tracing::info!(task = %task.id, reason, "back into the queue");
            let worked = hold.worked();
            let reason = reason.as_str();
            match hold.write(|tasks| async move { tasks.release(hold.lease, wait, reason, worked).await }).await {
                Ok(()) => {
                    record(shop, task, State::Queued, reason, hold).await;
                    Left::Released
                }
                Err(_) => Left::Lost,
            }
        }
    }
}

async fn finish(shop: &Shop, hold: &Hold, task: &Task, ending: &Ending) -> Left {
    let Ending { state, reason, branch, result } = ending;
    // Before it is written down, so that who sees the task ended finds nothing left of it. Should a crash come between
    // the two, the objects of the checkpoints are still there for the next worker.
    clear_up(shop, task).await;
    let (lease, worked) = (hold.lease, hold.worked());
    let (branch, result) = (branch.as_deref(), result.as_deref());
    let write =
        hold.write(|tasks| async move { tasks.finish(lease, *state, reason, branch, result, worked).await }).await;
    if write.is_err() {
        return Left::Lost;
    }
    tracing::info!(task = %task.id, %state, reason, "task ended");
    record(shop, task, *state, reason, hold).await;
    Left::Ended(*state)
}

/// Leaves a trace of a change of state in the audit log and in telemetry. Neither may hold a task up.
async fn record(shop: &Shop, task: &Task, state: State, reason: &str, hold: &Hold) {
    shop.recorder.record(Event {
        subject: Some(task.id),
        model: task.model.clone(),
        outcome: state.to_string(),
        latency: hold.worked(),
        detail: json!({ "reason": reason, "backend": task.backend, "fence": task.fence }),
        ..Event::new("task")
    });
    let entry = Entry::new(None, "ralph", format!("task.{state}"), task.id.to_string(), "ok");
    if let Err(error) = shop.store.audit().insert(&entry).await {
        tracing::warn!(task = %task.id, %error, "the audit log did not take an entry");
    }
}

async fn steps(shop: &Shop, hold: &Hold, task: &Task) -> Result<Ending, Halt> {
    hold.check()?;
    let mut bench = prepare(shop, hold, task.clone()).await?;
    if bench.task.base_check_output.is_none() && check_base(&mut bench).await? {
        return Ok(Ending {
            state: State::Succeeded,
            reason: "the check already passes; nothing was changed".to_owned(),
            branch: None,
            result: None,
        });
    }
    loop {
        hold.check()?;
        let iterations = hold.write(|tasks| async move { tasks.iterations(hold.lease.task).await }).await?;
        let history: Vec<Attempt> = iterations.iter().map(attempt).collect();
        match decide::decide(&history, bench.task.max_iterations, hold.time_left()) {
            Next::Done { of } => {
                let passed = iterations.iter().find(|i| i.number == of);
                let passed = passed.ok_or_else(|| Halt::Fail(format!("iteration {of} is not in the store")))?;
                return complete(&bench, passed, &iterations).await;
            }
            Next::GiveUp(reason) => return Err(Halt::Fail(reason)),
            next => crate::iteration::run(&bench, &iterations, &next).await?,
        }
    }
}

/// Finds the repository, fixes the base commit and makes the worktree.
async fn prepare<'a>(shop: &'a Shop, hold: &'a Hold, mut task: Task) -> Result<Bench<'a>, Halt> {
    disk::guard(shop, task.repo.as_ref()).await?;
    let repo = Repo::open(task.repo.as_ref()).await.map_err(unless_full)?;
    let (base, branch) = match &task.base_commit {
        Some(base) => (base.clone(), task.base_branch.clone()),
        None => {
            let head = repo.head().await.map_err(unless_full)?;
            if head.dirty {
                let message = "the repository has uncommitted changes; the task works on the last commit without them";
                hold.log("log", message, json!({})).await?;
            }
            (head.commit, head.branch)
        }
    };
    if !repo.has(&base).await.map_err(unless_full)? {
        return Err(Halt::Fail(format!("the commit the task started from, {base}, is not in {} any more", task.repo)));
    }
    if task.fence > 1 {
        remove_worktrees(shop, &task, task.fence - 1).await;
    }
    let path = shop.worktrees.path(task.id, task.fence);
    let (path, base_ref, branch_ref) = (path.display().to_string(), base.as_str(), branch.as_deref());
    let path = path.as_str();
    hold.write(|tasks| async move { tasks.set_base(hold.lease, base_ref, branch_ref, path).await }).await?;
    let worktree = shop.worktrees.make(&repo, task.id, task.fence, &base).await.map_err(unless_full)?;
    let files = repo.files(&base).await.map_err(unless_full)?;
    let protection = Protection::new(files.iter().map(String::as_str), &task.prompt, &task.check_command);
    task.base_commit = Some(base.clone());
    task.base_branch = branch;
    if task.fence == 1 {
        let mut message = format!("working on {} from commit {}", task.repo, &base[..base.len().min(12)]);
        if !protection.restored.is_empty() {
            let files: Vec<_> = protection.restored.iter().map(String::as_str).collect();
            message.push_str(&format!("; protected (put back before every check): {}", listed(&files)));
        }
        hold.log("log", &message, json!({ "base_commit": base, "protected": protection.restored })).await?;
    }
    Ok(Bench { shop, hold, task, repo, base, worktree, protection })
}

/// Runs the check before anything is changed; whether it passes already.
async fn check_base(bench: &mut Bench<'_>) -> Result<bool, Halt> {
    let Bench { hold, task, .. } = &*bench;
    let (hold, verdict) = (
        *hold,
        check::run(
            &bench.shop.config,
            &bench.shop.launcher,
            hold,
            &task.check_command,
            &bench.worktree.path,
            &bench.repo.git_dir,
        )
        .await?,
    );
    let output = verdict.output.as_str();
    hold.write(|tasks| async move { tasks.set_base_check(hold.lease, verdict.exit, output).await }).await?;
    let data =
        json!({ "number": 0, "exit": verdict.exit, "seconds": verdict.duration.as_secs_f64(), "output": output });
    hold.log("check", &format!("before anything was changed the check {}", verdict.describe()), data).await?;
    let passed = verdict.passed();
    bench.task.base_check_exit = verdict.exit;
    bench.task.base_check_output = Some(verdict.output);
    Ok(passed)
}

/// Makes the one clean commit of the result, with the very tree that passed the check.
async fn complete(bench: &Bench<'_>, passed: &Iteration, all: &[Iteration]) -> Result<Ending, Halt> {
    let Bench { hold, task, repo, base, .. } = bench;
    let checkpoint = passed
        .checkpoint_commit
        .as_deref()
        .ok_or_else(|| Halt::Fail(format!("iteration {} passed without a checkpoint", passed.number)))?;
    let tree = repo.tree(checkpoint).await.map_err(unless_full)?;
    let ran = all.iter().filter(|i| i.number <= passed.number && i.outcome != Outcome::Interrupted).count();
    let at = passed.finished_at.unwrap_or(passed.started_at);
    let message = commit_message(task, passed, ran);
    let result = repo.commit(&tree, &[base], &message, at).await.map_err(unless_full)?;
    let branch = branch_name(task);
    // The lease is shown to be held right before the branch moves.
    hold.log(
        "log",
        &format!("the result is commit {result} on branch {branch}"),
        json!({ "result_commit": result, "branch": branch }),
    )
    .await?;
    repo.set_ref(&format!("refs/heads/{branch}"), &result).await.map_err(unless_full)?;
    let tries = if ran == 1 { "1 iteration".to_owned() } else { format!("{ran} iterations") };
    let (state, reason) = if task.require_approval {
        (State::AwaitingApproval, format!("the check passed after {tries}; approve it, or cancel to reject it"))
    } else {
        (State::Succeeded, format!("the check passed after {tries}"))
    };
    Ok(Ending { state, reason, branch: Some(branch), result: Some(result) })
}

/// Points the task's branch at the best candidate of a task that ends without a result; the branch, and what it holds.
async fn keep_best(hold: &Hold, task: &Task, shop: &Shop) -> Option<(String, String)> {
    let iterations = shop.store.tasks().iterations(task.id).await.ok()?;
    let history: Vec<Attempt> = iterations.iter().map(attempt).collect();
    let best = decide::best(&history)?;
    let best = iterations.iter().find(|i| i.number == best)?;
    let repo = Repo::open(task.repo.as_ref()).await.ok()?;
    let branch = branch_name(task);
    let commit = best.checkpoint_commit.as_deref()?;
    hold.write(|tasks| async move { tasks.heartbeat(hold.lease, shop.config.ralph.lease, hold.worked()).await })
        .await
        .ok()?;
    if let Err(error) = repo.set_ref(&format!("refs/heads/{branch}"), commit).await {
        tracing::warn!(task = %task.id, %error, "the best try could not be kept on a branch");
        return None;
    }
    let tests = match (best.tests_passed, best.tests_failed) {
        (Some(passed), Some(failed)) => format!(", {passed} of {} tests pass", passed.saturating_add(failed)),
        _ => String::new(),
    };
    Some((branch, format!("iteration {}{tests}", best.number)))
}

fn with_kept(reason: String, kept: &Option<(String, String)>) -> String {
    match kept {
        Some((branch, what)) => format!("{reason}; the best try ({what}) is kept on branch {branch}"),
        None => reason,
    }
}

fn attempt(iteration: &Iteration) -> Attempt {
    let score = match (iteration.tests_passed, iteration.tests_failed) {
        (Some(passed), Some(failed)) => Some(Score { passed, failed }),
        _ => None,
    };
    Attempt {
        number: iteration.number,
        approach: iteration.approach,
        outcome: iteration.outcome,
        has_checkpoint: iteration.checkpoint_commit.is_some(),
        score,
        summary: iteration.summary.clone(),
    }
}

/// A full disk is a reason to wait, whoever notices it; anything else git cannot do stays so.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` hands over")]
pub(crate) fn unless_full(error: GitError) -> Halt {
    let text = error.to_string();
    let full = match &error {
        GitError::Disk { source, .. } => {
            matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        }
        _ => text.contains("No space left on device") || text.contains("Disk quota exceeded"),
    };
    if full || matches!(error, GitError::TimedOut { .. }) {
        Halt::Later { wait: DISK_WAIT, reason: text }
    } else {
        Halt::Fail(text)
    }
}

/// Below this are the refs that keep a task's checkpoints from being collected.
pub(crate) fn checkpoints(task: Uuid) -> String {
    format!("refs/lares/{task}/")
}

/// The branch of a task's result: `lares/`, the end of its id, and a few words of the prompt.
pub(crate) fn branch_name(task: &Task) -> String {
    let mut slug = String::new();
    for word in task.prompt.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty()) {
        if slug.len() + word.len() + 1 > MAX_SLUG {
            break;
        }
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.push_str(&word.to_ascii_lowercase());
    }
    let id = short_id(task.id);
    if slug.is_empty() { format!("lares/{id}") } else { format!("lares/{id}-{slug}") }
}

fn commit_message(task: &Task, passed: &Iteration, ran: usize) -> String {
    /// Longest subject, in characters, that tools show whole.
    const SUBJECT: usize = 72;
    let first = task.prompt.lines().find(|line| !line.trim().is_empty()).unwrap_or("Change").trim();
    let subject: String = if first.chars().count() > SUBJECT {
        first.chars().take(SUBJECT - 1).chain(['…']).collect()
    } else {
        first.to_owned()
    };
    let summary = passed.summary.trim();
    let body = if summary.is_empty() { String::new() } else { format!("{summary}\n\n") };
    let check = task.check_command.lines().next().unwrap_or_default();
    format!("{subject}\n\n{body}Lares-Task: {}\nLares-Iterations: {ran}\nLares-Check: {check}\n", task.id)
}

/// A few of many.
pub(crate) fn listed(items: &[&str]) -> String {
    const SHOWN: usize = 8;
    let mut text = items.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if items.len() > SHOWN {
        text.push_str(&format!(" and {} more", items.len() - SHOWN));
    }
    text
}
