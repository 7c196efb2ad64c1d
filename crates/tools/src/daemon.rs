//! The daemon: everything put together, and the work that goes on beside the requests.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lares_config::Config;
use lares_gate::{Gate, GateError, Metrics, Role, Surface, SurfaceError};
use lares_sandbox::Launcher;
use lares_store::Store;
use lares_store::events::{Recorder, SpoolError};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::definition::ServerName;
use crate::desk::{Counter, Desk, Parts, Taken, state_of};
use crate::discover::{Discovery, FingerprintKey, Machine};
use crate::finder::{Finder, FinderError};
use crate::gateway::{Gateway, GatewaySettings};
use crate::metrics::ToolMetrics;
use crate::port::{UpstreamEvent, Upstreams};
use crate::routes::{self, Services};
use crate::upstream::{Pool, PoolSettings};

/// How often calls that were counted are written.
const COUNTS: Duration = Duration::from_secs(5);
/// Least time between two fetches of one server's lists, whatever it says.
const LEAST: Duration = Duration::from_secs(1);
/// Longest that what is left to write may take at the end.
const LAST: Duration = Duration::from_secs(1);

/// Why the tools daemon does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] lares_store::Error),
    /// The key for fingerprints of servers.
    #[error("the key for fingerprints in {}: {source}", directory.display())]
    Key {
        /// Where it is kept.
        directory: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The place for vectors.
    #[error(transparent)]
    Finder(#[from] FinderError),
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

/// Runs the tools daemon until `shutdown`: discovery, the servers in use, the routes and the gateway. `launcher` starts
/// confined programs.
///
/// Comes back within about 8 s of `shutdown`; no program that it started is left then.
///
/// # Errors
/// When something it cannot do without is missing at the start.
pub async fn serve(
    config: Arc<Config>,
    store: Store,
    launcher: Launcher,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let ended = shutdown.child_token();
    // However this ends, what it started ends too.
    let _end = ended.clone().drop_guard();
    let recorder = Recorder::open(store.clone(), &config.state_dir, "tools").await?;
    let key = FingerprintKey::open(&state_of(&config))
        .map_err(|source| ServeError::Key { directory: state_of(&config), source })?;
    let finder = Arc::new(Finder::open(&config, &store).await?);
    let gate = Gate::open(store.clone(), &config.gate, ended.clone()).await?;
    let pool = Pool::new(PoolSettings::new(&config, launcher), &ended);
    let upstreams: Arc<dyn Upstreams> = pool.clone();
    let events = upstreams.events();
    let tool_metrics = ToolMetrics::default();
    let desk = Desk::open(Parts {
        config: Arc::clone(&config),
        store: store.clone(),
        upstreams,
        discovery: Discovery::new(Arc::new(Machine::new(&config))),
        key,
        finder: Arc::clone(&finder),
        recorder: recorder.clone(),
        metrics: tool_metrics.clone(),
    })
    .await?;
    let metrics = Metrics::new();
    tool_metrics.register(&metrics, desk.clone());

    let services = Services { records: Arc::new(Counter(Arc::clone(&desk))), offers: desk.clone() };
    let gateway = Gateway::new(desk.clone(), GatewaySettings::from(&config.tools.gateway), ended.clone());
    let pinged = store.clone();
    let surface = Surface::new("tools", gate, metrics)
        .describe("Every MCP tool of this machine: found, vetted, searched by meaning, called through one door.")
        .routes(Role::Viewer, routes::reading(&services))
        .routes(Role::Client, routes::calling(&services))
        .routes(Role::Client, OpenApiRouter::from(gateway.routes()))
        .routes(Role::Operator, routes::changing(&services))
        .ready_check("store", move || {
            let store = pinged.clone();
            async move { store.ping().await.map_err(|_| "PostgreSQL does not answer".to_owned()) }
        });
    let bound = surface.bind(config.tools.listen).await?;
    let beside = async {
        tokio::join!(
            rounds(&desk, &config, &ended),
            listings(&desk, events, config.tools.grace, &ended),
            finder.work(&ended),
            counts(&desk, &ended)
        )
    };
    tokio::join!(bound.run(ended.clone()), beside);
    pool.close().await;
    // Beyond their own bounds they are not worth waiting for: what is not shipped stays in the spool.
    let _ = timeout(LAST, desk.flush_counts()).await;
    let _ = timeout(LAST, recorder.flush()).await;
    Ok(())
}

/// Looks for servers, again and again.
async fn rounds(desk: &Arc<Desk>, config: &Config, ended: &CancellationToken) {
    let interval = config.tools.discovery.interval;
    let mut told: Vec<String> = Vec::new();
    loop {
        let round = async {
            match desk.look().await {
                Ok(round) => {
                    // Each once, not with every round.
                    for problem in round.problems.iter().filter(|problem| !told.contains(problem)) {
                        tracing::warn!(problem, "something could not be looked at");
                    }
                    told = round.problems;
                    interval
                }
                Err(error) => {
                    tracing::warn!(%error, "a round of discovery was not taken down; what was known stays in use");
                    interval.min(Duration::from_secs(10))
                }
            }
        };
        let Some(wait) = ended.run_until_cancelled(round).await else { return };
        // Some daemons on one machine must not all look at once.
        let jitter = wait.mul_f64(rand::random::<f64>() * 0.1);
        if ended.run_until_cancelled(sleep(wait + jitter)).await.is_none() {
            return;
        }
    }
}

/// Fetches the lists of servers that come up, say that they changed, or whose lists have become old by their own word.
async fn listings(
    desk: &Arc<Desk>,
    mut events: tokio::sync::broadcast::Receiver<UpstreamEvent>,
    grace: Duration,
    ended: &CancellationToken,
) {
    let mut due: BTreeMap<ServerName, Instant> = BTreeMap::new();
    // When the tools of servers that went away are shown no more.
    let mut fading: BTreeMap<ServerName, Instant> = BTreeMap::new();
    let mut fetching: JoinSet<(ServerName, Taken)> = JoinSet::new();
    let mut running: BTreeMap<ServerName, bool> = BTreeMap::new();
    loop {
        let next = due.values().chain(fading.values()).min().copied();
        let wake = async {
            match next {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = ended.cancelled() => return,
            event = events.recv() => match event {
                Ok(UpstreamEvent::Up(server) | UpstreamEvent::Changed(server)) => {
                    due.insert(server, Instant::now());
                }
                Ok(UpstreamEvent::Down(server)) => {
                    due.remove(&server);
                    fading.insert(server, Instant::now() + grace);
                    desk.came_or_went();
                }
                Ok(UpstreamEvent::ResourceUpdated(server, uri)) => desk.resource_updated(&server, uri),
                Err(RecvError::Lagged(_)) => {
                    due.extend(desk.servers_up().into_iter().map(|server| (server, Instant::now())));
                }
                Err(RecvError::Closed) => return,
            },
            Some(done) = fetching.join_next() => {
                if let Ok((server, taken)) = done {
                    // What it said while its lists were fetched may not be in them.
                    if running.remove(&server) == Some(true) {
                        due.insert(server, Instant::now() + LEAST);
                    } else if let Some(ttl) = taken.ttl {
                        due.insert(server, Instant::now() + ttl.max(LEAST));
                    }
                    desk.came_or_went();
                }
            }
            () = wake => {}
        }
        let now = Instant::now();
        if fading.values().any(|at| *at <= now) {
            fading.retain(|_, at| *at > now);
            desk.came_or_went();
        }
        let ripe: Vec<ServerName> = due.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone()).collect();
        for server in ripe {
            due.remove(&server);
            if let Some(again) = running.get_mut(&server) {
                *again = true;
                continue;
            }
            running.insert(server.clone(), false);
            let desk = Arc::clone(desk);
            fetching.spawn(async move {
                let taken = desk.refreshed(&server).await;
                (server, taken)
            });
        }
    }
}

/// Writes what was counted.
async fn counts(desk: &Arc<Desk>, ended: &CancellationToken) {
    while ended.run_until_cancelled(sleep(COUNTS)).await.is_some() {
        desk.flush_counts().await;
    }
}
