//! The workers of this process: each takes a task, works on it, and takes the next; and the sweep behind them.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use lares_store::notify::{Item, Notifications};
use lares_store::tasks::{State, TASK_EVENTS_CHANNEL, TASKS_CHANNEL};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use rand::Rng as _;
use tokio::sync::broadcast;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::git::Repo;
use crate::work::{Shop, checkpoints, work};

/// How often the queue is looked at even if nothing was announced.
const POLL: Duration = Duration::from_secs(5);
/// How often worktrees that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(60);
/// How often the tasks in each state are counted for `/metrics`.
const COUNT: Duration = Duration::from_secs(10);
/// Longest wait for PostgreSQL when a worker asks for work.
const TAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest the workers get to stop what they run and put their tasks back.
const STOP_GRACE: Duration = Duration::from_secs(8);

/// What is counted about tasks.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskMetrics {
    tasks: Family<StateLabel, Gauge>,
    busy: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

impl TaskMetrics {
    pub(crate) fn register(&self, metrics: &lares_gate::Metrics) {
        metrics.register(|registry| {
            registry.register("ralph_tasks", "Tasks in each state", self.tasks.clone());
            registry.register("ralph_workers_busy", "Workers of this process that hold a task", self.busy.clone());
        });
    }
}

/// Runs all workers until `shutdown`, and then until they have let go of their tasks.
pub(crate) async fn run(shop: Arc<Shop>, metrics: TaskMetrics, shutdown: CancellationToken) {
    let mut running = JoinSet::new();
    for number in 1..=shop.config.ralph.workers {
        running.spawn(worker(Arc::clone(&shop), number, metrics.clone(), shutdown.clone()));
    }
    running.spawn(keep_house(Arc::clone(&shop), metrics, shutdown.clone()));
    shutdown.cancelled().await;
    if timeout(STOP_GRACE, async { while running.join_next().await.is_some() {} }).await.is_err() {
        tracing::warn!("a worker did not let go of its task in time; its lease runs out by itself");
    }
}

/// Name under which a worker holds its lease.
fn owner(number: u32) -> String {
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}/{}/{number}", host.as_deref().unwrap_or("localhost"), std::process::id())
}

async fn worker(shop: Arc<Shop>, number: u32, metrics: TaskMetrics, shutdown: CancellationToken) {
    let owner = owner(number);
    while !shutdown.is_cancelled() {
        // Listening before looking, so that no announcement falls between the two.
        let mut bell = shop.bell.subscribe();
        let taken = timeout(TAKE_TIMEOUT, shop.store.tasks().take(&owner, shop.config.ralph.lease)).await;
        match taken {
            Ok(Ok(Some(task))) => {
                let id = task.id;
                tracing::info!(task = %id, fence = task.fence, owner, "task taken");
                metrics.busy.inc();
                let ended = AssertUnwindSafe(work(&shop, task, &shutdown)).catch_unwind().await;
                metrics.busy.dec();
                match ended {
                    Ok(left) => tracing::debug!(task = %id, ?left, "task let go"),
                    Err(_) => tracing::error!(task = %id, "the worker failed on this task; it is taken over later"),
                }
                continue;
            }
            Ok(Ok(None)) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot ask for work"),
            Err(_) => tracing::warn!("no answer to the question for work"),
        }
        let wait = POLL.mul_f64(rand::rng().random_range(0.8..1.2));
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = sleep(wait) => {}
            // A gap in the announcements is as good as one.
            _ = bell.recv() => {}
        }
    }
}

/// Passes on what PostgreSQL announces: tasks to `tasks`, log lines to `lines`. The nil id stands for all.
pub(crate) async fn announce(
    mut notifications: Notifications,
    tasks: broadcast::Sender<Uuid>,
    lines: broadcast::Sender<Uuid>,
    shutdown: CancellationToken,
) {
    while let Some(Some(item)) = shutdown.run_until_cancelled(notifications.recv()).await {
        // Sending fails when nobody listens, which is no loss.
        match item {
            Item::Resync => {
                let _ = tasks.send(Uuid::nil());
                let _ = lines.send(Uuid::nil());
            }
            Item::Notification(notification) => {
                let id = notification.payload.parse().unwrap_or_default();
                match notification.channel.as_str() {
                    TASKS_CHANNEL => drop(tasks.send(id)),
                    TASK_EVENTS_CHANNEL => drop(lines.send(id)),
                    _ => {}
                }
            }
        }
    }
}

async fn keep_house(shop: Arc<Shop>, metrics: TaskMetrics, shutdown: CancellationToken) {
    let mut next_sweep = tokio::time::Instant::now();
    loop {
        if tokio::time::Instant::now() >= next_sweep {
            if let Some(Err(error)) = shutdown.run_until_cancelled(sweep(&shop)).await {
                tracing::warn!(error, "the sweep over old worktrees did not get through; it is tried again");
            }
            next_sweep = tokio::time::Instant::now() + SWEEP;
        }
        if let Some(Ok(counts)) = shutdown.run_until_cancelled(shop.store.tasks().counts()).await {
            for state in State::ALL {
                let count = counts.iter().find(|(counted, _)| counted == state).map_or(0, |(_, count)| *count);
                let label = StateLabel { state: state.as_str() };
                metrics.tasks.get_or_create(&label).set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
        if shutdown.run_until_cancelled(sleep(COUNT)).await.is_none() {
            return;
        }
    }
}

/// Removes the worktrees of every take-over that is not the one in force: what a crash left behind.
pub(crate) async fn sweep(shop: &Shop) -> Result<(), String> {
    // The disk first: a worktree appears only after its take-over is in the store.
    let leftovers = shop.worktrees.leftovers().await.map_err(|error| error.to_string())?;
    if leftovers.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = leftovers.iter().map(|leftover| leftover.task).collect();
    let known = shop.store.tasks().standing(&ids).await.map_err(|error| error.to_string())?;
    for leftover in leftovers {
        let standing = known.iter().find(|standing| standing.id == leftover.task);
        if standing.is_some_and(|s| s.state == State::Running && s.fence == leftover.fence) {
            continue;
        }
        tracing::info!(path = %leftover.path.display(), "removing a worktree that nobody uses");
        let repo = match standing {
            Some(standing) => Repo::open(standing.repo.as_ref()).await.ok(),
            None => None,
        };
        let git_dir = repo.as_ref().map(|repo| repo.git_dir.as_path());
        shop.worktrees.remove(git_dir, leftover.task, leftover.fence).await.map_err(|error| error.to_string())?;
        if let (Some(repo), Some(standing)) = (&repo, standing)
            && (standing.state.is_final() || standing.state == State::AwaitingApproval)
        {
            repo.delete_refs(&checkpoints(leftover.task)).await.map_err(|error| error.to_string())?;
        }
    }
    Ok(())
}
