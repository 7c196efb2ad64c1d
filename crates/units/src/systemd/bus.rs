//! One connection to the bus, what is called over it, and what its errors mean.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit, oneshot, watch};
use tokio::time::{Instant, timeout, timeout_at};
use zbus::proxy::CacheProperties;
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Type};
use zbus::{Connection, Error};

use crate::port::{Job, JobOutcome, Listed, LoadState, ManagerError, Standing, UnitId, Verb};

use super::object;

/// systemd's name on the bus.
pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
/// The properties that all kinds of units have.
pub(super) const UNIT: &str = "org.freedesktop.systemd1.Unit";
/// Longest wait for an answer. systemd answers within milliseconds, unless it asks polkit, or reloads hundreds of units.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Messages that may wait for the watcher; beyond that the bus keeps them for us.
const QUEUE: usize = 4096;
/// Calls that may be unanswered at once; more wait.
pub(super) const CALLS: usize = 32;
/// Ends of jobs kept for callers that have not had systemd's answer yet.
const ENDED_JOBS: usize = 4096;

/// systemd's manager object, as far as it is used.
#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
pub(super) trait SystemdManager {
    /// Loaded units that are in one of these states (all when empty) and have names like these (all when empty).
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<Unit>>;
    /// Queues a job; its end comes as the signal `JobRemoved`.
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn restart_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
}

/// A row of systemd's lists of units.
#[derive(Debug, Clone, serde::Deserialize, Type)]
pub(super) struct Unit {
    name: String,
    description: String,
    load: String,
    active: String,
    sub: String,
    _following: String,
    pub(super) path: OwnedObjectPath,
    job: u32,
    job_kind: String,
    _job_path: OwnedObjectPath,
}

impl Unit {
    /// None for a name that cannot be one.
    pub(super) fn into_listed(self) -> Option<Listed> {
        Some(Listed {
            unit: UnitId::new(self.name).ok()?,
            description: self.description,
            load: LoadState::from(self.load),
            standing: Standing { active: self.active.into(), sub: self.sub },
            job: (self.job != 0).then_some(Job { id: self.job, kind: Some(self.job_kind) }),
        })
    }
}

/// What a unit's properties are called and hold.
pub(super) type Properties = HashMap<String, OwnedValue>;

/// The connection there is at the moment. Clones share it.
#[derive(Clone)]
pub(super) struct Bus {
    address: Option<Arc<str>>,
    live: Arc<watch::Sender<Option<Connection>>>,
    jobs: Arc<Mutex<Jobs>>,
    calls: Arc<Semaphore>,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.as_deref().unwrap_or("system bus");
        f.debug_struct("Bus").field("address", &address).field("connected", &self.live.borrow().is_some()).finish()
    }
}

/// Jobs that somebody waits for, and those that ended lately.
#[derive(Debug, Default)]
struct Jobs {
    /// Goes up with each loss of the connection.
    losses: u64,
    waiting: HashMap<OwnedObjectPath, oneshot::Sender<JobOutcome>>,
    ended: VecDeque<(OwnedObjectPath, JobOutcome)>,
}

impl Bus {
    pub(super) fn new(address: Option<String>) -> Self {
        Self {
            address: address.map(Into::into),
            live: Arc::new(watch::Sender::new(None)),
            jobs: Arc::default(),
            calls: Arc::new(Semaphore::new(CALLS)),
        }
    }

    /// A new connection; it is not the one in use before [`Bus::put`].
    pub(super) async fn open(&self) -> Result<Connection, ManagerError> {
        let builder = match self.address.as_deref() {
            Some(address) => zbus::connection::Builder::address(address),
            None => zbus::connection::Builder::system(),
        };
        let building = builder.map_err(|error| unavailable(&error))?.max_queued(QUEUE).method_timeout(CALL_TIMEOUT);
        match timeout(CALL_TIMEOUT, building.build()).await {
            Ok(connection) => connection.map_err(|error| unavailable(&error)),
            Err(_) => Err(ManagerError::Unavailable("the bus does not answer".into())),
        }
    }

    /// The connection to use from now on. None: there is no connection; whoever waits for a job is told that its end is not known.
    pub(super) fn put(&self, connection: Option<Connection>) {
        if connection.is_none() {
            let mut jobs = self.jobs();
            *jobs = Jobs { losses: jobs.losses + 1, ..Jobs::default() };
        }
        self.live.send_replace(connection);
    }

    async fn connection(&self) -> Result<Connection, ManagerError> {
        let gone = || ManagerError::Unavailable("the connection is being mended".into());
        let mut live = self.live.subscribe();
        match timeout(CALL_TIMEOUT, live.wait_for(Option::is_some)).await {
            Ok(Ok(connection)) => connection.clone().ok_or_else(gone),
            Ok(Err(_)) | Err(_) => Err(gone()),
        }
    }

    /// systemd's manager, and the leave to call it once.
    pub(super) async fn manager(&self) -> Result<(SystemdManagerProxy<'static>, SemaphorePermit<'_>), ManagerError> {
        let leave = self.leave().await?;
        let connection = self.connection().await?;
        let building = SystemdManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
        Ok((building.build().await.map_err(|error| reading(&error))?, leave))
    }

    async fn leave(&self) -> Result<SemaphorePermit<'_>, ManagerError> {
        match timeout(CALL_TIMEOUT, self.calls.acquire()).await {
            Ok(Ok(leave)) => Ok(leave),
            Ok(Err(_)) | Err(_) => Err(ManagerError::Unavailable("too many calls are unanswered".into())),
        }
    }

    /// A unit's properties: those that all kinds have, and those of its own kind.
    pub(super) async fn properties(&self, unit: &UnitId) -> Result<(Properties, Properties), ManagerError> {
        let _leave = self.leave().await?;
        let connection = self.connection().await?;
        let common = get_all(&connection, unit, UNIT).await?;
        let own = match object::interface(unit) {
            Some(interface) => get_all(&connection, unit, interface).await?,
            None => Properties::new(),
        };
        Ok((common, own))
    }

    /// Queues a job and waits for its end.
    pub(super) async fn job(&self, verb: Verb, unit: &UnitId, patience: Duration) -> Result<JobOutcome, ManagerError> {
        let deadline = Instant::now() + patience;
        let late = || ManagerError::Patience { unit: unit.clone(), verb, waited: patience };
        let lost = || ManagerError::Interrupted { unit: unit.clone(), verb };
        let losses = self.jobs().losses;
        let queue = async {
            let (manager, _leave) = self.manager().await?;
            // "fail": a job that is there already wins over this one, because it may be an operator's.
            let queued = match verb {
                Verb::Stop => manager.stop_unit(unit.as_str(), "fail").await,
                Verb::Restart => manager.restart_unit(unit.as_str(), "fail").await,
                Verb::Start | Verb::ResetFailed => manager.start_unit(unit.as_str(), "fail").await,
            };
            queued.map_err(|error| acting(verb, unit, &error))
        };
        let path = timeout_at(deadline, queue).await.map_err(|_| late())??;
        let end = {
            let mut jobs = self.jobs();
            if jobs.losses != losses {
                return Err(lost());
            }
            match jobs.ended.iter().find(|(ended, _)| *ended == path) {
                Some((_, outcome)) => return Ok(outcome.clone()),
                None => {
                    let (sender, end) = oneshot::channel();
                    jobs.waiting.insert(path.clone(), sender);
                    end
                }
            }
        };
        let outcome = timeout_at(deadline, end).await;
        if outcome.is_err() {
            self.jobs().waiting.remove(&path);
        }
        outcome.map_err(|_| late())?.map_err(|_| lost())
    }

    /// A job ended.
    pub(super) fn job_ended(&self, path: OwnedObjectPath, outcome: JobOutcome) {
        let mut jobs = self.jobs();
        match jobs.waiting.remove(&path) {
            // Whoever waited may have gone.
            Some(waiting) => drop(waiting.send(outcome)),
            None => {
                if jobs.ended.len() == ENDED_JOBS {
                    jobs.ended.pop_front();
                }
                jobs.ended.push_back((path, outcome));
            }
        }
    }

    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn get_all(connection: &Connection, unit: &UnitId, interface: &str) -> Result<Properties, ManagerError> {
    let properties = Some("org.freedesktop.DBus.Properties");
    let answer = connection.call_method(Some(SYSTEMD), object::path(unit), properties, "GetAll", &(interface,)).await;
    let answer = answer.map_err(|error| match error {
        Error::MethodError(name, _, _) if is(name.as_str(), "NoSuchUnit") => ManagerError::Unknown(unit.clone()),
        error => reading(&error),
    })?;
    answer.body().deserialize().map_err(|error| reading(&error))
}

fn is(name: &str, short: &str) -> bool {
    name.strip_prefix("org.freedesktop.systemd1.") == Some(short)
}

/// What an error of a call that only reads means.
pub(super) fn reading(error: &Error) -> ManagerError {
    if is_unreachable(error) { unavailable(error) } else { ManagerError::Protocol(describe(error)) }
}

/// What an error of a call that acts on a unit means.
pub(super) fn acting(verb: Verb, unit: &UnitId, error: &Error) -> ManagerError {
    if let Error::InputOutput(_) = error {
        // The call may have been sent.
        return ManagerError::Interrupted { unit: unit.clone(), verb };
    }
    let Error::MethodError(name, ..) = error else { return reading(error) };
    let (unit, reason) = (unit.clone(), describe(error));
    match name.as_str() {
        name if is(name, "NoSuchUnit") => ManagerError::Unknown(unit),
        name if is(name, "UnitMasked") => ManagerError::Masked(unit),
        name if is(name, "TransactionIsDestructive") || is(name, "TransactionJobsConflicting") => {
            ManagerError::Conflict { unit, verb, reason }
        }
        "org.freedesktop.DBus.Error.AccessDenied" | "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired" => {
            ManagerError::Denied { unit, verb, reason }
        }
        _ if is_unreachable(error) => unavailable(error),
        _ => ManagerError::Refused { unit, verb, reason },
    }
}

fn is_unreachable(error: &Error) -> bool {
    match error {
        Error::InputOutput(_) | Error::Address(_) | Error::Handshake(_) => true,
        Error::MethodError(name, ..) => [
            "org.freedesktop.DBus.Error.ServiceUnknown",
            "org.freedesktop.DBus.Error.NameHasNoOwner",
            "org.freedesktop.DBus.Error.NoReply",
            "org.freedesktop.DBus.Error.Disconnected",
            "org.freedesktop.DBus.Error.Timeout",
        ]
        .contains(&name.as_str()),
        _ => false,
    }
}

pub(super) fn unavailable(error: &Error) -> ManagerError {
    ManagerError::Unavailable(describe(error))
}

/// An error in words, without the name of the error where it has a text.
fn describe(error: &Error) -> String {
    match error {
        Error::MethodError(_, Some(text), _) if !text.is_empty() => text.clone(),
        error => error.to_string(),
    }
}
