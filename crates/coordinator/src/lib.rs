//! The OpenAI-compatible door: one address in front of every model, local or remote.
//!
//! A request is read just enough to route it ([`request`]), waits its turn ([`queue`]) for the least loaded upstream of
//! its model ([`route`]), and its answer is relayed byte for byte ([`forward`]). Every request leaves one event
//! ([`account`]). [`Door`] is all of that without a server; [`serve`] puts it behind the gate.

pub mod account;
mod door;
pub mod forward;
mod metrics;
pub mod queue;
pub mod refusal;
mod relay;
pub mod request;
pub mod route;
pub mod upstream;
pub mod usage;

use std::path::PathBuf;
use std::sync::Arc;

use lares_config::Config;
use lares_gate::{Gate, GateError, Role, Surface, SurfaceError};
use lares_store::Store;
use lares_store::events::{Recorder, SpoolError};
use tokio_util::sync::CancellationToken;

pub use forward::Door;

/// Why the door does not open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An upstream is configured wrongly.
    #[error("upstream `{upstream}` cannot be used with `{url}`: {why}")]
    Upstream {
        /// Its name.
        upstream: String,
        /// Its base URL.
        url: String,
        /// What is wrong, and what is expected.
        why: String,
    },
    /// The file with an upstream's key cannot be read.
    #[error("the key of upstream `{upstream}` cannot be read from {}: {source}", path.display())]
    KeyFile {
        /// The upstream's name.
        upstream: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// An `https` upstream is configured and TLS cannot be set up.
    #[error("TLS cannot be set up: {0}; are the system's certificates (ca-certificates) installed?")]
    Tls(String),
    /// There are no keys to check callers against.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// Events cannot be recorded.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The address cannot be listened on.
    #[error(transparent)]
    Surface(#[from] SurfaceError),
}

/// Serves the coordinator's routes on `config.coordinator.listen` until `shutdown`; then ends within the gate's grace
/// and brings the last events to PostgreSQL.
///
/// # Errors
/// When there are no keys, an upstream is configured wrongly, or the address is taken.
pub async fn serve(config: Arc<Config>, store: Store, shutdown: CancellationToken) -> Result<(), Error> {
    let gate = Gate::open(store.clone(), &config.gate, shutdown.clone()).await?;
    let recorder = Recorder::open(store.clone(), &config.state_dir, "coordinator").await?;
    let door = Arc::new(Door::open(&config, Arc::new(recorder.clone())).await?);
    for (model, route) in door.routes().iter() {
        tracing::debug!(model, slots = route.facts.slots, "serving");
    }
    if door.routes().iter().next().is_none() {
        tracing::warn!("no model is configured: add one under `models` or `coordinator.upstreams`");
    }
    let served = surface(door, gate, store, &recorder).serve(config.coordinator.listen, shutdown).await;
    if !recorder.flush().await {
        tracing::warn!("the last events stay in the spool; the next start brings them to PostgreSQL");
    }
    Ok(served?)
}

/// Everything the coordinator serves, before it listens anywhere.
fn surface(door: Arc<Door>, gate: Gate, store: Store, recorder: &Recorder) -> Surface {
    let metrics = lares_gate::Metrics::new();
    door.register(&metrics);
    metrics::register_recorder(&metrics, recorder.clone());
    let surface = Surface::new("coordinator", gate, metrics)
        .describe("One OpenAI-compatible address in front of every model, local or remote.")
        .openai_errors_below("/v1")
        // The door measures bodies itself: a request that is too large leaves an event like any other.
        .max_body(usize::MAX)
        .ready_check("store", move || {
            let store = store.clone();
            async move { store.ping().await.map_err(|error| error.to_string()) }
        });
    let locals = door.routes().upstreams.iter().enumerate().filter(|(_, upstream)| upstream.is_local());
    let surface = locals.fold(surface, |surface, (lane, upstream)| {
        // Checks live as long as the process, and so do their names.
        let name: &'static str = format!("model {}", upstream.name()).leak();
        let door = Arc::clone(&door);
        surface.ready_check(name, move || {
            let door = Arc::clone(&door);
            async move { door.clients().health(&door.routes().upstreams[lane]).await }
        })
    });
    surface.routes(Role::Client, door::routes(door))
}
