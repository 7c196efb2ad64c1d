//! systemd behind the port: D-Bus for units and jobs, the journal's files for what they say.
//!
//! ```text
//! Systemd ─┬─ bus       one connection, its method calls, what its errors mean
//!          ├─ watcher   signals → events; reconnects and compares after every gap
//!          ├─ facts     properties → Facts
//!          └─ journal   reads the journal's files, without libsystemd
//! ```

mod bus;
mod facts;
mod journal;
mod object;
mod signal;
mod watcher;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::feed::Feed;
use crate::port::{Entry, Event, Facts, JobOutcome, Listed, LoadState, Manager, ManagerError, Question, UnitId, Verb};
use bus::{Bus, CALL_TIMEOUT};
#[cfg(fuzzing)]
pub(crate) use journal::read_all;
use journal::{Follower, Journals};
use watcher::{Request, Watcher};

/// Events a reader may be behind before it misses some; a thousand failures at once are about six thousand events.
const EVENTS: usize = 16_384;
/// Requests to the watcher that may wait.
const REQUESTS: usize = 64;
/// Pause between two looks into the journal while waiting for last words.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where systemd is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemdSettings {
    /// D-Bus address; unset: the system bus (`DBUS_SYSTEM_BUS_ADDRESS`, or its well-known socket).
    pub address: Option<String>,
    /// Directories that hold the journal's files, one directory a machine below each.
    pub journals: Vec<PathBuf>,
}

impl Default for SystemdSettings {
    fn default() -> Self {
        Self { address: None, journals: vec!["/var/log/journal".into(), "/run/log/journal".into()] }
    }
}

/// A connection to systemd that mends itself. Everything it started ends when it is dropped.
pub struct Systemd {
    bus: Bus,
    requests: mpsc::Sender<Request>,
    events: broadcast::Sender<Event>,
    journals: Arc<Journals>,
    follower: Follower,
    _ends: DropGuard,
}

impl fmt::Debug for Systemd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Systemd").field("bus", &self.bus).field("journals", &self.journals).finish_non_exhaustive()
    }
}

impl Systemd {
    /// Connects and subscribes to systemd's signals. Must be called within a runtime.
    ///
    /// Fails when there is no bus or no systemd on it. Later losses of the connection are mended without end and told of as
    /// [`EventKind::Disconnected`](crate::port::EventKind::Disconnected).
    pub async fn connect(settings: SystemdSettings) -> Result<Self, ManagerError> {
        let ends = CancellationToken::new();
        let bus = Bus::new(settings.address);
        let journals = Arc::new(Journals::new(settings.journals));
        let events = broadcast::Sender::new(EVENTS);
        let follower = Follower::new(Arc::clone(&journals), ends.clone());
        let (requests, inbox) = mpsc::channel(REQUESTS);
        let watcher = Watcher::new(bus.clone(), events.clone(), follower.clone(), inbox);
        let (ready, is_ready) = oneshot::channel();
        let stopped = ends.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = watcher.run(ready) => {}
            }
        });
        let guard = ends.drop_guard();
        match timeout(CALL_TIMEOUT, is_ready).await {
            Ok(Ok(outcome)) => outcome?,
            Ok(Err(_)) => return Err(ManagerError::Unavailable("the watcher ended".into())),
            Err(_) => return Err(ManagerError::Unavailable("no answer from systemd".into())),
        }
        Ok(Self { bus, requests, events, journals, follower, _ends: guard })
    }

    async fn request<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, ManagerError> {
        let (answer, answered) = oneshot::channel();
        let gone = || ManagerError::Unavailable("the connection to systemd is being mended".into());
        let ask = async {
            self.requests.send(request(answer)).await.map_err(|_| gone())?;
            answered.await.map_err(|_| gone())
        };
        timeout(CALL_TIMEOUT, ask).await.map_err(|_| gone())?
    }
}

#[async_trait]
impl Manager for Systemd {
    async fn list(&self, patterns: &[&str]) -> Result<Vec<Listed>, ManagerError> {
        let (manager, _leave) = self.bus.manager().await?;
        let mut units: Vec<Listed> = manager
            .list_units_by_patterns(&[], patterns)
            .await
            .map_err(|error| bus::reading(&error))?
            .into_iter()
            .filter_map(bus::Unit::into_listed)
            .collect();
        units.sort_by(|one, other| one.unit.cmp(&other.unit));
        Ok(units)
    }

    async fn facts(&self, unit: &UnitId) -> Result<Facts, ManagerError> {
        let (unit_properties, own_properties) = self.bus.properties(unit).await?;
        let facts = facts::read(unit, &unit_properties, &own_properties)?;
        if facts.load == LoadState::NotFound { Err(ManagerError::Unknown(unit.clone())) } else { Ok(facts) }
    }

    async fn start(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        self.bus.job(Verb::Start, unit, patience).await
    }

    async fn stop(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        self.bus.job(Verb::Stop, unit, patience).await
    }

    async fn restart(&self, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        self.bus.job(Verb::Restart, unit, patience).await
    }

    async fn reset_failed(&self, unit: &UnitId) -> Result<(), ManagerError> {
        let (manager, _leave) = self.bus.manager().await?;
        manager.reset_failed_unit(unit.as_str()).await.map_err(|error| bus::acting(Verb::ResetFailed, unit, &error))
    }

    async fn watch(&self, units: &[UnitId]) -> Result<Vec<Listed>, ManagerError> {
        if units.is_empty() {
            return Ok(Vec::new());
        }
        let units = units.to_vec();
        self.request(|answer| Request::Watch { units, answer }).await?
    }

    async fn unwatch(&self, units: &[UnitId]) {
        // Without a watcher nothing is watched.
        let _ = self.request(|answer| Request::Unwatch { units: units.to_vec(), answer }).await;
    }

    fn events(&self) -> Feed<Event> {
        Feed::new(self.events.subscribe())
    }

    async fn recent(&self, question: &Question) -> Result<Vec<Arc<Entry>>, ManagerError> {
        let began = tokio::time::Instant::now();
        let mut found = self.look(question).await?;
        // Two looks that find the same, after the manager's word on the end, have seen all; without that word only time tells.
        loop {
            let left = question.settle.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(found);
            }
            sleep(LOOK_AGAIN.min(left)).await;
            let again = self.look(question).await?;
            let settled = again.len() == found.len() && again.last() == found.last() && journal::tells_the_end(&again);
            found = again;
            if settled {
                return Ok(found);
            }
        }
    }

    async fn entries(&self) -> Result<Feed<Arc<Entry>>, ManagerError> {
        Ok(Feed::new(self.follower.subscribe().await?))
    }
}

impl Systemd {
    async fn look(&self, question: &Question) -> Result<Vec<Arc<Entry>>, ManagerError> {
        let journals = Arc::clone(&self.journals);
        let question = question.clone();
        tokio::task::spawn_blocking(move || journals.search(&question))
            .await
            .map_err(|error| ManagerError::Journal(error.to_string()))?
            .map_err(|error| ManagerError::Journal(error.to_string()))
    }
}
