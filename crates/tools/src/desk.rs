//! The desk: what is found becomes servers, what they list becomes tools, and callers get what policy lets them have.
//!
//! `rounds` looks for servers, `listing` takes what a server lists, `offering` serves callers, `keeping` serves people.
//! PostgreSQL is written first and memory follows, so nothing is in use that is not on record.

mod consent;
mod homes;
mod keeping;
mod listing;
mod offering;
mod rounds;
#[cfg(test)]
mod tests;
mod watching;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use lares_config::Config;
use lares_store::Store;
use lares_store::events::Recorder;
use lares_store::tools::CallCount;
use tokio::sync::broadcast;

use crate::api::{Health, RoundView, ToolState};
use crate::definition::{ServerName, ToolId};
use crate::discover::{Discovery, FingerprintKey};
use crate::finder::Finder;
use crate::metrics::{Gauges, Reading, ToolMetrics};
use crate::offers::ListChange;
use crate::policy::Policies;
use crate::port::{UpstreamStatus, Upstreams};
use crate::registry::{Registry, Server, Tool};

use consent::Consents;
use homes::Homes;
pub(crate) use keeping::Counter;
pub(crate) use listing::Taken;
use watching::Watching;

/// Changes kept for a slow listener; one that misses some takes everything for changed.
const BELL: usize = 1024;

/// What everything meets at.
pub(crate) struct Desk {
    config: Arc<Config>,
    store: Store,
    upstreams: Arc<dyn Upstreams>,
    discovery: Discovery,
    key: FingerprintKey,
    homes: Homes,
    policies: Policies,
    finder: Arc<Finder>,
    recorder: Recorder,
    metrics: ToolMetrics,
    registry: RwLock<Registry>,
    bell: broadcast::Sender<ListChange>,
    /// One round of discovery at a time; what the last one did.
    round: tokio::sync::Mutex<RoundView>,
    last_round: RwLock<RoundView>,
    /// One listing of a server at a time, so that what is listed later is taken later.
    listing: Mutex<BTreeMap<ServerName, Arc<tokio::sync::Mutex<()>>>>,
    /// Calls that are not in PostgreSQL yet.
    counts: Mutex<BTreeMap<String, CallCount>>,
    searches: Mutex<CallCount>,
    consents: Consents,
    watching: Watching,
    /// The servers whose tools were shown last.
    shown: Mutex<BTreeSet<ServerName>>,
    started: Instant,
}

/// What a desk is made of.
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Store,
    pub(crate) upstreams: Arc<dyn Upstreams>,
    pub(crate) discovery: Discovery,
    pub(crate) key: FingerprintKey,
    pub(crate) finder: Arc<Finder>,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: ToolMetrics,
}

impl Desk {
    /// A desk with what PostgreSQL knows.
    ///
    /// # Errors
    /// When PostgreSQL fails.
    pub(crate) async fn open(parts: Parts) -> Result<Arc<Self>, lares_store::Error> {
        let Parts { config, store, upstreams, discovery, key, finder, recorder, metrics } = parts;
        let servers = store.tools().servers().await?;
        let tools = store.tools().all().await?;
        let (known_servers, known_tools) = (servers.len(), tools.len());
        let mut registry = Registry::default();
        for server in servers.into_iter().filter_map(Server::from_record) {
            registry.servers.insert(server.name.clone(), server);
        }
        for tool in tools.into_iter().filter_map(Tool::from_record) {
            registry.tools.insert(tool.id.clone(), tool);
        }
        if registry.servers.len() < known_servers || registry.tools.len() < known_tools {
            tracing::warn!(
                servers = known_servers - registry.servers.len(),
                tools = known_tools - registry.tools.len(),
                "rows that cannot be read were passed over; what they stood for is taken for new"
            );
        }
        for tool in registry.tools.values() {
            if let Some(definition) = tool.offered() {
                finder.put(&tool.id, definition, &tool.tags);
            }
        }
        Ok(Arc::new(Self {
            policies: Policies::new(&config.tools),
            homes: Homes::new(state_of(&config).join("homes")),
            config,
            store,
            upstreams,
            discovery,
            key,
            finder,
            recorder,
            metrics,
            registry: RwLock::new(registry),
            bell: broadcast::Sender::new(BELL),
            round: tokio::sync::Mutex::default(),
            last_round: RwLock::default(),
            listing: Mutex::default(),
            counts: Mutex::default(),
            searches: Mutex::default(),
            consents: Consents::default(),
            watching: Watching::default(),
            shown: Mutex::default(),
            started: Instant::now(),
        }))
    }

    fn read(&self) -> RwLockReadGuard<'_, Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Registry> {
        self.registry.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// How each server is, by name.
    fn health(&self) -> BTreeMap<ServerName, UpstreamStatus> {
        self.upstreams.status().into_iter().map(|status| (status.name.clone(), status)).collect()
    }

    /// Whether tools of a server are still shown: it answers, or has not been away for longer than the grace.
    fn shows(&self, status: Option<&UpstreamStatus>) -> bool {
        status.is_some_and(|status| match (status.health, status.down_for) {
            (Health::Up, _) => true,
            (_, Some(away)) => away < self.config.tools.grace,
            // It is being started for the first time since this daemon was: what it listed last time still counts.
            (_, None) => self.started.elapsed() < self.config.tools.grace,
        })
    }

    /// The servers whose lists can be fetched.
    pub(crate) fn servers_up(&self) -> Vec<ServerName> {
        let up = |status: &UpstreamStatus| status.health == Health::Up;
        self.upstreams.status().into_iter().filter(up).map(|status| status.name).collect()
    }

    /// Tells clients that their lists are old, if the servers whose tools are shown are others than before.
    pub(crate) fn came_or_went(&self) {
        let health = self.health();
        let shown: BTreeSet<ServerName> =
            health.iter().filter(|(_, status)| self.shows(Some(status))).map(|(name, _)| name.clone()).collect();
        let mut before = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if *before != shown {
            *before = shown;
            for change in [ListChange::Tools, ListChange::Resources, ListChange::Prompts] {
                let _ = self.bell.send(change);
            }
        }
    }

    /// Tells clients that a resource changed, if it is the one that this URI stands for.
    pub(crate) fn resource_updated(&self, server: &ServerName, uri: String) {
        let registry = self.read();
        let first = registry
            .servers
            .values()
            .filter(|known| known.in_use())
            .find(|known| known.extras.resources.iter().any(|resource| resource.uri == uri));
        if first.is_none_or(|first| first.name == *server) {
            let _ = self.bell.send(ListChange::Resource(uri));
        }
    }

    /// Counts a call, for PostgreSQL later and for memory now.
    fn count_call(&self, id: &ToolId, took: Duration, failed: bool) {
        let (milliseconds, now) = (took.as_secs_f64() * 1000.0, jiff::Timestamp::now());
        if let Some(tool) = self.write().tools.get_mut(id) {
            tool.count.add(milliseconds, failed, now);
        }
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        counts.entry(id.to_string()).or_default().add(milliseconds, failed, now);
    }

    /// Writes calls that were counted. What PostgreSQL does not take is kept for the next time.
    pub(crate) async fn flush_counts(&self) {
        let counts = std::mem::take(&mut *self.counts.lock().unwrap_or_else(PoisonError::into_inner));
        if counts.is_empty() {
            return;
        }
        if let Err(error) = self.store.tools().count_calls(&counts).await {
            tracing::debug!(%error, "calls were not counted in PostgreSQL yet");
            let mut waiting = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
            for (id, count) in counts {
                waiting.entry(id).or_default().merge(&count);
            }
        }
    }
}

/// The daemon's own directory below the one for state: the key for fingerprints, and homes of servers.
pub(crate) fn state_of(config: &Config) -> std::path::PathBuf {
    config.state_dir.join("tools")
}

impl std::fmt::Debug for Desk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").finish_non_exhaustive()
    }
}

impl Gauges for Desk {
    fn read(&self) -> Reading {
        let mut reading = Reading { embedding_queue: self.finder.waiting(), ..Reading::default() };
        for tool in Self::read(self).tools.values().filter(|tool| tool.gone_since.is_none()) {
            match tool.state {
                ToolState::Approved => reading.approved += 1,
                ToolState::Quarantined => reading.quarantined += 1,
                ToolState::Blocked => reading.blocked += 1,
            }
        }
        reading.servers = self.upstreams.status().into_iter().map(|status| (status.name, status.health)).collect();
        reading
    }
}
