//! The loop: tasks come in over HTTP, wait in PostgreSQL, and are worked on in git worktrees until their check exits 0.
//!
//! `routes` → store → `pool` → `work` → `iteration` → `decide`, round and round. What decides is pure (`decide`,
//! `score`, `protect`); what touches the world is `git`, `check` and the agent behind
//! [`lares_agents::Backend`]. Text never ends a task: only exit code 0 of the check does.

mod agent;
pub mod api;
mod check;
mod decide;
mod disk;
mod git;
mod hold;
mod iteration;
mod merge;
mod pool;
mod protect;
mod routes;
mod score;
mod stream;
mod work;
mod worktree;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lares_agents::Backend;
use lares_agents::builtin::{Builtin, Settings};
use lares_agents::sandbox::Launcher;
use lares_config::Config;
use lares_gate::{Gate, GateError, Metrics, Role, Surface, SurfaceError};
use lares_store::Store;
use lares_store::events::{Recorder, SpoolError};
use lares_store::tasks::{TASK_EVENTS_CHANNEL, TASKS_CHANNEL, TaskError};
use tokio::sync::{Mutex, Semaphore, broadcast};
use tokio_util::sync::CancellationToken;

pub use agent::Backends;
pub use git::GitError;
pub use merge::MergeError;
pub use worktree::WorktreesError;

use routes::Desk;
use work::Shop;

/// Announcements kept for a slow listener; one that misses some looks at everything instead.
const BELL: usize = 1024;
/// Shortest lease: below it a slow disk would look like a dead worker.
const MIN_LEASE: Duration = Duration::from_secs(1);

/// Why ralph does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// Git cannot be run.
    #[error(transparent)]
    Git(#[from] GitError),
    /// The directory for worktrees cannot be used.
    #[error(transparent)]
    Worktrees(#[from] WorktreesError),
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] lares_store::Error),
    /// PostgreSQL, about tasks.
    #[error(transparent)]
    Tasks(#[from] TaskError),
    /// The spool for telemetry cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Nobody could use the surface.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// The address cannot be used.
    #[error(transparent)]
    Surface(#[from] SurfaceError),
}

/// Runs ralph until `shutdown`: the routes, the workers, the sweep. `launcher` starts confined commands.
///
/// Comes back within about 8 s of `shutdown`; tasks under way go back into the queue with their checkpoints.
///
/// # Errors
/// When something it cannot do without is missing at the start.
pub async fn serve(
    config: Arc<Config>,
    store: Store,
    launcher: Launcher,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let backends = backends(Arc::clone(&config));
    serve_with(config, store, launcher, backends, shutdown).await
}

/// [`serve`] with other agents than the configured ones.
///
/// # Errors
/// As [`serve`].
pub async fn serve_with(
    config: Arc<Config>,
    store: Store,
    launcher: Launcher,
    backends: Backends,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let ended = shutdown.child_token();
    // However this ends, what it started ends too.
    let _end = ended.clone().drop_guard();
    let shop = Arc::new(open(config, store, launcher, backends).await?);
    let config = &shop.config;
    let lines = broadcast::Sender::new(BELL);
    let notifications = shop.store.listen(&[TASKS_CHANNEL, TASK_EVENTS_CHANNEL]).await?;
    tokio::spawn(pool::announce(notifications, shop.bell.clone(), lines.clone(), ended.clone()));

    let gate = Gate::open(shop.store.clone(), &config.gate, ended.clone()).await?;
    let metrics = Metrics::new();
    let task_metrics = pool::TaskMetrics::default();
    task_metrics.register(&metrics);
    let desk = Arc::new(Desk {
        shop: Arc::clone(&shop),
        lines,
        streams: Arc::new(Semaphore::new(stream::MAX_STREAMS)),
        merging: Mutex::new(()),
        shutdown: ended.clone(),
    });
    let (pinged, root) = (shop.store.clone(), shop.worktrees.root().to_owned());
    let surface = Surface::new("ralph", gate, metrics)
        .describe("Coding tasks, worked on in git worktrees until their check passes.")
        .routes(Role::Viewer, routes::reading(&desk))
        .routes(Role::Operator, routes::changing(&desk))
        .ready_check("store", move || {
            let store = pinged.clone();
            async move { store.ping().await.map_err(|_| "PostgreSQL does not answer".to_owned()) }
        })
        .ready_check("worktrees", move || {
            let root = root.clone();
            async move {
                let found = tokio::fs::metadata(&root).await.is_ok_and(|meta| meta.is_dir());
                if found { Ok(()) } else { Err("the directory for worktrees is gone".to_owned()) }
            }
        });
    let bound = surface.bind(config.ralph.listen).await?;
    let workers = pool::run(Arc::clone(&shop), task_metrics, ended.clone());
    tokio::join!(bound.run(ended.clone()), workers);
    // Beyond its own bound it is not worth waiting for: what is not shipped stays in the spool.
    let _ = tokio::time::timeout(Duration::from_secs(1), shop.recorder.flush()).await;
    Ok(())
}

/// Opens what the workers share.
async fn open(config: Arc<Config>, store: Store, launcher: Launcher, backends: Backends) -> Result<Shop, ServeError> {
    if config.ralph.lease < MIN_LEASE {
        return Err(ServeError::Setting(format!("ralph.lease is too short; use at least {} s", MIN_LEASE.as_secs())));
    }
    git::Call::new(&PathBuf::from("/"), ["--version"]).run().await?;
    let queue = store.tasks().queue_id().await?;
    let worktrees = worktree::Worktrees::open(&config.worktrees_dir(), queue).await?;
    let recorder = Recorder::open(store.clone(), &config.state_dir, "ralph").await?;
    let bell = broadcast::Sender::new(BELL);
    Ok(Shop { config, store, launcher, backends, worktrees, recorder, bell })
}

/// The agents there are: the built-in one, for the configured model or the one a task names.
fn backends(config: Arc<Config>) -> Backends {
    Arc::new(move |name, model| {
        if name != Builtin::NAME {
            return Err(format!("there is no backend `{name}`; there is `{}`", Builtin::NAME));
        }
        let mut asked = (*config).clone();
        if let Some(model) = model {
            asked.agents.builtin.model = model.to_owned();
        }
        let agent = Settings::from_config(&asked).and_then(Builtin::new).map_err(|error| error.to_string())?;
        Ok(Arc::new(agent) as Arc<dyn Backend>)
    })
}
