//! One iteration: set out from a commit, run the agent, put protected files back, commit, run the check, write it down.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use lares_store::events::Event;
use lares_store::tasks::{Approach, Iteration, IterationEnd, Outcome};
use rand::Rng as _;
use serde_json::json;

use crate::agent::{self, Answer, Start};
use crate::check::{self, Verdict};
use crate::decide::Next;
use crate::disk;
use crate::hold::Halt;
use crate::work::{Bench, checkpoints, listed, unless_full};
use crate::worktree::Staged;

/// Waits for a model that cannot be reached: from the first to the longest, doubling.
const AWAY_WAITS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Most bytes of the patch an agent is shown; past that it is told there is none, as no window takes more.
const MAX_DIFF: u64 = 1 << 20;

/// Runs the iteration that was decided on. Comes back when it is written down.
pub(crate) async fn run(bench: &Bench<'_>, history: &[Iteration], next: &Next) -> Result<(), Halt> {
    let Bench { shop, hold, task, repo, base, worktree, .. } = bench;
    let hold = *hold;
    let Some((approach, temperature)) = next.approach() else { return Ok(()) };
    disk::guard(shop, task.repo.as_ref()).await?;
    let number = history.iter().map(|i| i.number).max().unwrap_or(0) + 1;
    let backend = (shop.backends)(&task.backend, task.model.as_deref()).map_err(Halt::Fail)?;
    let onto = match next {
        Next::Repair { of: Some(of), .. } => history.iter().find(|i| i.number == *of),
        _ => None,
    };
    let start = onto.and_then(|i| i.checkpoint_commit.as_deref()).unwrap_or(base);
    let name = backend.name();
    hold.write(|tasks| async move { tasks.begin_iteration(hold.lease, number, name, approach, temperature).await })
        .await?;
    let from = onto.map_or_else(|| "the base commit".to_owned(), |i| format!("iteration {}", i.number));
    // Interrupted iterations have a number and do not count, so the number can pass the bound.
    let of = if number > task.max_iterations { String::new() } else { format!(" of {}", task.max_iterations) };
    let message = format!("iteration {number}{of}: {approach} from {from}, temperature {temperature}");
    let data = json!({
        "number": number, "phase": "begin", "approach": approach, "temperature": temperature, "backend": name,
        "onto": onto.map(|i| i.number),
    });
    hold.log("iteration", &message, data).await?;

    worktree.reset(start).await.map_err(unless_full)?;
    let diff = match repo.diff(base, start, MAX_DIFF).await {
        Ok(diff) => String::from_utf8_lossy(&diff).into_owned(),
        Err(crate::git::GitError::TooLarge { .. }) => String::new(),
        Err(error) => return Err(unless_full(error)),
    };
    let timeout = shop.config.ralph.iteration_timeout.min(hold.time_left());
    let fresh = approach == Approach::Resample;
    let start_of = Start { number, temperature, fresh, onto, diff, timeout };
    let brief = agent::brief(&shop.config, task, history, &bench.protection, &worktree.path, start_of);

    let began = Instant::now();
    let answer = Answer::of(match tokio::time::timeout(timeout + GRACE, backend.run(&brief, &hold.stop)).await {
        Ok(result) => result,
        Err(_) => Err(lares_agents::BackendError::TimedOut(timeout)),
    });
    let agent_duration = began.elapsed();
    hold.check()?;
    let outcome = match answer {
        Answer::Worked(outcome) => {
            hold.note_back();
            outcome
        }
        Answer::Stopped => {
            return Err(Halt::Later { wait: Duration::ZERO, reason: "the agent stopped by itself".to_owned() });
        }
        Answer::Away(why) => {
            hold.write(|tasks| async move { tasks.discard_iteration(hold.lease, number).await }).await?;
            return wait_for_model(bench, number, &why).await;
        }
        Answer::Failed(why) => {
            let end = IterationEnd { agent_duration: Some(agent_duration), ..ended(Outcome::AgentFailed, why) };
            return write_down(bench, number, name, end, None).await;
        }
    };
    hold.log(
        "agent",
        &outcome.summary,
        json!({ "number": number, "seconds": agent_duration.as_secs_f64(), "transcript": outcome.transcript }),
    )
    .await?;

    let staged = worktree.stage(base, &bench.protection).await.map_err(unless_full)?;
    tell_what_was_put_back(bench, number, &staged).await?;
    let mut end = IterationEnd {
        agent_duration: Some(agent_duration),
        prompt_tokens: i64::try_from(outcome.usage.prompt_tokens).ok(),
        completion_tokens: i64::try_from(outcome.usage.completion_tokens).ok(),
        ..ended(Outcome::NoChange, outcome.summary)
    };
    if !staged.restored.is_empty() {
        let files: Vec<_> = staged.restored.iter().map(String::as_str).collect();
        end.summary =
            format!("{} (its changes to {} were put back: the tests stay as they are)", end.summary, listed(&files));
    }
    let same_as = |commit: &str| {
        let (repo, tree, commit) = (repo.clone(), staged.tree.clone(), commit.to_owned());
        async move { repo.tree(&commit).await.map(|other| other == tree).map_err(unless_full) }
    };
    if same_as(start).await? || same_as(base).await? {
        return write_down(bench, number, name, end, None).await;
    }
    let message = format!(
        "Checkpoint {number} of {}\n\n{}\n\nLares-Task: {}\nLares-Iteration: {number}\n",
        crate::api::short_id(task.id),
        end.summary.trim(),
        task.id
    );
    let commit = repo.commit(&staged.tree, &[start], &message, Timestamp::now()).await.map_err(unless_full)?;
    repo.set_ref(&format!("{}{number}", checkpoints(task.id)), &commit).await.map_err(unless_full)?;
    end.changed_files = repo.changed(start, &commit).await.map_err(unless_full)?;
    worktree.reset(&commit).await.map_err(unless_full)?;

    let verdict =
        check::run(&shop.config, &shop.launcher, hold, &task.check_command, &worktree.path, &repo.git_dir).await?;
    end.outcome = if verdict.passed() { Outcome::Passed } else { Outcome::Failed };
    end.checkpoint_commit = Some(commit);
    end.check_exit = verdict.exit;
    end.check_output.clone_from(&verdict.output);
    end.check_duration = Some(verdict.duration);
    end.tests_passed = verdict.score.map(|score| score.passed);
    end.tests_failed = verdict.score.map(|score| score.failed);
    write_down(bench, number, name, end, Some(&verdict)).await
}

/// How much longer than its own limit an agent may take to notice that its time is over.
const GRACE: Duration = Duration::from_secs(10);

fn ended(outcome: Outcome, summary: String) -> IterationEnd {
    IterationEnd {
        outcome,
        summary,
        changed_files: Vec::new(),
        checkpoint_commit: None,
        check_exit: None,
        check_output: String::new(),
        check_duration: None,
        agent_duration: None,
        prompt_tokens: None,
        completion_tokens: None,
        tests_passed: None,
        tests_failed: None,
    }
}

async fn tell_what_was_put_back(bench: &Bench<'_>, number: u32, staged: &Staged) -> Result<(), Halt> {
    let list = |files: &[String]| listed(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let data = json!({ "number": number, "restored": staged.restored, "refused": staged.refused });
    if !staged.restored.is_empty() {
        let message = format!("put back before the check, because they decide: {}", list(&staged.restored));
        bench.hold.log("log", &message, data.clone()).await?;
    }
    if !staged.refused.is_empty() {
        let message = format!("left out, because they would steer the check: {}", list(&staged.refused));
        bench.hold.log("log", &message, data).await?;
    }
    Ok(())
}

/// Writes the iteration down, first for the next worker, then for readers.
async fn write_down(
    bench: &Bench<'_>,
    number: u32,
    backend: &str,
    end: IterationEnd,
    verdict: Option<&Verdict>,
) -> Result<(), Halt> {
    let (hold, task) = (bench.hold, &bench.task);
    let end_ref = &end;
    hold.write(|tasks| async move { tasks.finish_iteration(hold.lease, number, end_ref).await }).await?;
    bench.shop.recorder.record(Event {
        subject: Some(task.id),
        model: task.model.clone(),
        outcome: end.outcome.to_string(),
        status: end.check_exit,
        prompt_tokens: end.prompt_tokens,
        completion_tokens: end.completion_tokens,
        latency: end.agent_duration.unwrap_or_default() + end.check_duration.unwrap_or_default(),
        detail: json!({
            "number": number, "backend": backend, "changed_files": end.changed_files,
            "tests_passed": end.tests_passed, "tests_failed": end.tests_failed,
        }),
        ..Event::new("iteration")
    });
    if let Some(verdict) = verdict {
        let data = json!({
            "number": number, "exit": verdict.exit, "seconds": verdict.duration.as_secs_f64(), "output": verdict.output,
        });
        hold.log("check", &format!("the check {}", verdict.describe()), data).await?;
    }
    let message = match end.outcome {
        Outcome::Passed => format!("iteration {number} passed"),
        Outcome::Failed => format!("iteration {number} did not pass"),
        Outcome::NoChange => format!("iteration {number} changed nothing, so there is nothing to check"),
        _ => format!("iteration {number} came to nothing: {}", end.summary),
    };
    let data = json!({
        "number": number, "phase": "end", "outcome": end.outcome, "changed_files": end.changed_files,
        "checkpoint_commit": end.checkpoint_commit, "tests_passed": end.tests_passed, "tests_failed": end.tests_failed,
    });
    hold.log("iteration", &message, data).await
}

/// Waits for a model that is away; the iteration it did not carry out does not count.
async fn wait_for_model(bench: &Bench<'_>, number: u32, why: &str) -> Result<(), Halt> {
    let hold = bench.hold;
    let tries = hold.note_away();
    let wait = (AWAY_WAITS.0 * 2u32.saturating_pow(tries.min(10)))
        .min(AWAY_WAITS.1)
        .mul_f64(rand::rng().random_range(0.7..1.3));
    if tries == 0 {
        let message = format!("iteration {number} did not take place and does not count: {why}; waiting for the model");
        hold.log("log", &message, json!({ "number": number })).await?;
    }
    tracing::warn!(task = %bench.task.id, why, ?wait, "the model is away");
    hold.pause(wait).await
}
