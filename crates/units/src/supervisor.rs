//! The handle: what the command line, the surfaces and the healer ask of the supervisor.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::error::{ControlError, NotReady, SetupError, UnreadyUnit};
use crate::feed::{Feed, LogFeed};
use crate::journal::{FOLLOWER_LINES, Journal, LogLine};
use crate::logfile::Writer;
use crate::machine::Policy;
use crate::name::UnitName;
use crate::order::Order;
use crate::probe::Probe;
use crate::runner::{Command, Runner, Snapshot, Step, Want, all};
use crate::spawn::Spawner;
use crate::spec::UnitSpec;
use crate::status::{Change, State, UnitStatus};
use crate::usage::{self, Usage};

/// Changes a reader may be behind before it misses some.
const CHANGES: usize = 1024;
/// Requests a unit may be behind; each is taken at once.
const COMMANDS: usize = 16;
/// All units together have so long to stop by themselves; whoever runs the supervisor is killed after 10 s.
const SHUTDOWN_BUDGET: Duration = Duration::from_millis(8500);
/// When this is over, whatever the order still holds back is killed too; only a process stuck in the kernel makes it come to that.
const SHUTDOWN_MAX: Duration = Duration::from_millis(9200);
/// So much of the budget is kept for each unit that stops later in the chain, however slow those before it are.
const SHUTDOWN_SHARE: Duration = Duration::from_millis(1500);
/// Longest wait for the end of a process group after SIGKILL, with the end of its output.
const KILL_GRACE: Duration = Duration::from_secs(3);
/// Lines shown with a unit that is not ready.
const UNREADY_LINES: usize = 20;
/// Names less alike than this are no suggestion.
const SIMILARITY_MIN: f64 = 0.7;

/// How the supervisor runs its units.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Delays and timeouts.
    pub units: lares_config::Units,
    /// Directory of the log files; made when it does not exist.
    pub logs: PathBuf,
}

/// A running supervisor. Clones are handles to the same one.
///
/// Its units run until the token given to [`Supervisor::launch`] is cancelled, [`Supervisor::shutdown`] is called, or the
/// runtime ends; in the last case the kernel sends them their stop signals.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    units: Vec<Unit>,
    order: Order,
    settings: Settings,
    changes: broadcast::Sender<Change>,
    steps: broadcast::Sender<Step>,
    lines: broadcast::Sender<Arc<LogLine>>,
    logs: Writer,
    closing: CancellationToken,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Unit {
    spec: Arc<UnitSpec>,
    commands: mpsc::Sender<Command>,
    snapshot: watch::Receiver<Snapshot>,
    journal: Arc<Journal>,
}

impl Supervisor {
    /// Checks the units, then starts them all, each as soon as those it comes after are active. Does not wait for readiness.
    ///
    /// Must be called within a runtime. When `shutdown` is cancelled, everything stops as with [`Supervisor::shutdown`].
    pub async fn launch(
        settings: Settings,
        specs: Vec<UnitSpec>,
        shutdown: CancellationToken,
    ) -> Result<Self, SetupError> {
        let order = Order::of(&specs)?;
        for spec in &specs {
            let refuse = |reason| SetupError::Probe { unit: spec.name.clone(), reason };
            spec.probe.validate().map_err(refuse)?;
        }
        crate::inherited::unignore(specs.iter().map(|spec| spec.stop_signal.signal()));
        let spawner = Spawner::start().await?;
        let names: Vec<UnitName> = specs.iter().map(|spec| spec.name.clone()).collect();
        let (logs, sinks) = Writer::start(&settings.logs, &names, settings.units.log_max.0)?;
        let changes = broadcast::Sender::new(CHANGES);
        let steps = broadcast::Sender::new(CHANGES);
        let lines = broadcast::Sender::new(FOLLOWER_LINES);
        let mut units = Vec::with_capacity(specs.len());
        let mut runners = Vec::with_capacity(specs.len());
        for (spec, sink) in specs.into_iter().zip(sinks) {
            let spec = Arc::new(spec);
            let journal = Arc::new(Journal::new(spec.name.clone(), lines.clone(), sink));
            let (commands, inbox) = mpsc::channel(COMMANDS);
            let (runner, snapshot) = Runner::new(
                Arc::clone(&spec),
                policy(&spec, &settings.units),
                spawner.clone(),
                Arc::clone(&journal),
                changes.clone(),
                steps.clone(),
                inbox,
            );
            runners.push(runner);
            units.push(Unit { spec, commands, snapshot, journal });
        }
        for (runner, after) in runners.into_iter().zip(&order.after) {
            tokio::spawn(runner.run(after.iter().map(|&unit| units[unit].snapshot.clone()).collect()));
        }
        let closing = shutdown.child_token();
        let closed = CancellationToken::new();
        let supervisor = Self(Arc::new(Inner { units, order, settings, changes, steps, lines, logs, closing, closed }));
        let conductor = supervisor.clone();
        tokio::spawn(async move {
            conductor.0.closing.cancelled().await;
            conductor.stop_all().await;
            conductor.0.closed.cancel();
        });
        Ok(supervisor)
    }

    /// All units in the order they were given.
    pub async fn list(&self) -> Vec<UnitStatus> {
        self.statuses(&self.0.units.iter().collect::<Vec<_>>()).await
    }

    /// One unit.
    pub async fn status(&self, name: &str) -> Result<UnitStatus, ControlError> {
        let unit = &self.0.units[self.find(name)?];
        // One unit gives one status.
        self.statuses(&[unit]).await.pop().ok_or(ControlError::ShuttingDown)
    }

    /// Starts a unit and those it comes after, and waits until it is active. The error tells of a unit that does not get there;
    /// the supervisor goes on trying.
    pub async fn start(&self, name: &str) -> Result<(), ControlError> {
        self.bring_up(name, Want::Start).await
    }

    /// Stops a unit and waits until it is gone: by its stop signal, or after the stop timeout by SIGKILL. It stays down until
    /// somebody starts it. Units that come after it keep running.
    pub async fn stop(&self, name: &str) -> Result<(), ControlError> {
        let unit = &self.0.units[self.find(name)?];
        let patience = unit.stop_timeout(&self.0.settings);
        let pid = unit.snapshot.borrow().pid;
        unit.ask(Want::Stop { timeout: patience }).await?;
        // Somebody else may start it again at once; then it is another process.
        let gone = |now: &Snapshot| now.state == State::Inactive || (pid.is_some() && now.pid != pid);
        match timeout(patience + KILL_GRACE, unit.snapshot.clone().wait_for(gone)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(ControlError::ShuttingDown),
            Err(_) => Err(ControlError::NotStopped { unit: unit.spec.name.clone(), pid: unit.snapshot.borrow().pid }),
        }
    }

    /// Stops a unit, starts it, and waits until it is active again. Starts one that is down, and those it comes after.
    pub async fn restart(&self, name: &str) -> Result<(), ControlError> {
        self.bring_up(name, Want::Restart).await
    }

    /// State changes of all units from now on.
    pub fn changes(&self) -> Feed<Change> {
        Feed::new(self.0.changes.subscribe())
    }

    /// Every step of all units from now on.
    pub(crate) fn steps(&self) -> Feed<Step> {
        Feed::new(self.0.steps.subscribe())
    }

    /// The units it knows, with their specs.
    pub(crate) fn specs(&self) -> impl Iterator<Item = &UnitSpec> {
        self.0.units.iter().map(|unit| unit.spec.as_ref())
    }

    /// The unit as it is now, and its spec.
    pub(crate) fn look(&self, name: &str) -> Result<(Snapshot, &UnitSpec), ControlError> {
        let unit = &self.0.units[self.find(name)?];
        Ok((unit.snapshot.borrow().clone(), &unit.spec))
    }

    /// How it runs its units.
    pub(crate) fn settings(&self) -> &Settings {
        &self.0.settings
    }

    /// The last `count` log lines of a unit, oldest first; at most the 1000 that are kept.
    pub fn logs(&self, name: &str, count: usize) -> Result<Vec<Arc<LogLine>>, ControlError> {
        Ok(self.0.units[self.find(name)?].journal.tail(count))
    }

    /// The log lines of a unit from now on.
    pub fn follow(&self, name: &str) -> Result<LogFeed, ControlError> {
        Ok(self.follow_from(name, 0)?.1)
    }

    /// The last `count` log lines of a unit and all that come, without a gap or a line twice.
    pub fn follow_from(&self, name: &str, count: usize) -> Result<(Vec<Arc<LogLine>>, LogFeed), ControlError> {
        let (lines, receiver) = self.0.units[self.find(name)?].journal.follow(count);
        Ok((lines, Feed::new(receiver)))
    }

    /// The log lines of all units from now on.
    pub fn follow_all(&self) -> LogFeed {
        Feed::new(self.0.lines.subscribe())
    }

    /// Waits until every unit is active at the same time, except those that somebody stopped.
    pub async fn wait_ready(&self, patience: Duration) -> Result<(), NotReady> {
        let good = |state| matches!(state, State::Active | State::Inactive);
        let mut snapshots: Vec<_> = self.0.units.iter().map(|unit| unit.snapshot.clone()).collect();
        let ready = async {
            tokio::select! {
                () = all(&mut snapshots, good) => !self.0.closing.is_cancelled(),
                () = self.0.closing.cancelled() => false,
            }
        };
        if timeout(patience, ready).await.unwrap_or(false) {
            return Ok(());
        }
        let unready = self.0.units.iter().filter(|unit| unit.snapshot.borrow().state != State::Active);
        Err(NotReady { units: unready.map(Unit::unready).collect() })
    }

    /// Stops all units, each after those that come after it, and waits for the end: within 10 s all are gone, by SIGKILL if need be.
    /// No unit can be started afterwards.
    pub async fn shutdown(&self) {
        self.0.closing.cancel();
        self.0.closed.cancelled().await;
    }

    async fn bring_up(&self, name: &str, want: Want) -> Result<(), ControlError> {
        let index = self.find(name)?;
        if self.0.closing.is_cancelled() {
            return Err(ControlError::ShuttingDown);
        }
        let units = &self.0.units;
        let unit = &units[index];
        let mut patience = unit.start_timeout(&self.0.settings) + unit.stop_timeout(&self.0.settings);
        for ancestor in self.0.order.ancestors(index) {
            units[ancestor].ask(Want::Start).await?;
            patience += units[ancestor].start_timeout(&self.0.settings);
        }
        unit.ask(want).await?;
        let settled = |now: &Snapshot| matches!(now.state, State::Active | State::Failed | State::Inactive);
        // The reference must not be held across what follows: it locks the unit's task out.
        let settled = match timeout(patience, unit.snapshot.clone().wait_for(settled)).await {
            Ok(Ok(snapshot)) => Some(snapshot.state),
            Ok(Err(_)) => return Err(ControlError::ShuttingDown),
            Err(_) => None,
        };
        match settled {
            Some(State::Active) => Ok(()),
            _ if self.0.closing.is_cancelled() => Err(ControlError::ShuttingDown),
            _ => Err(ControlError::NotActive(Box::new(unit.unready()))),
        }
    }

    async fn stop_all(&self) {
        let inner = &self.0;
        let started = Instant::now();
        let stopped: Vec<CancellationToken> = inner.units.iter().map(|_| CancellationToken::new()).collect();
        let stops = inner.units.iter().enumerate().map(|(index, unit)| {
            let stopped = &stopped;
            async move {
                for &later in &inner.order.before[index] {
                    stopped[later].cancelled().await;
                }
                let kept = SHUTDOWN_SHARE * inner.order.depth[index];
                let left = SHUTDOWN_BUDGET.saturating_sub(started.elapsed() + kept);
                let patience = unit.stop_timeout(&inner.settings).min(left);
                if unit.ask(Want::Close { timeout: patience }).await.is_ok() {
                    let mut snapshot = unit.snapshot.clone();
                    let gone = snapshot.wait_for(|now| now.state == State::Inactive);
                    if timeout(patience + KILL_GRACE, gone).await.is_err() {
                        warn!(unit = %unit.spec.name, "still there after SIGKILL");
                    }
                }
                stopped[index].cancel();
            }
        });
        if timeout(SHUTDOWN_MAX, join_all(stops)).await.is_err() {
            join_all(inner.units.iter().map(|unit| unit.ask(Want::Close { timeout: Duration::ZERO }))).await;
        }
        inner.logs.flush().await;
    }

    fn find(&self, name: &str) -> Result<usize, ControlError> {
        let units = &self.0.units;
        if let Some(index) = units.iter().position(|unit| unit.spec.name.as_str() == name) {
            return Ok(index);
        }
        let nearest = units
            .iter()
            .map(|unit| (strsim::jaro_winkler(unit.spec.name.as_str(), name), &unit.spec.name))
            .filter(|(similarity, _)| *similarity >= SIMILARITY_MIN)
            .max_by(|(one, _), (other, _)| one.total_cmp(other))
            .map(|(_, name)| name.clone());
        Err(ControlError::Unknown { name: name.to_owned(), nearest })
    }

    async fn statuses(&self, units: &[&Unit]) -> Vec<UnitStatus> {
        let snapshots: Vec<Snapshot> = units.iter().map(|unit| unit.snapshot.borrow().clone()).collect();
        let pids: Vec<u32> = snapshots.iter().filter_map(|snapshot| snapshot.pid).collect();
        // Fails only when the runtime ends; then there is nobody to show the usage to.
        let usages = tokio::task::spawn_blocking(move || usage::of(&pids)).await.unwrap_or_default();
        let usage = |snapshot: &Snapshot| snapshot.pid.and_then(|pid| usages.get(&pid).copied());
        units
            .iter()
            .zip(snapshots)
            .map(|(unit, snapshot)| {
                let usage = usage(&snapshot);
                unit.status(snapshot, usage)
            })
            .collect()
    }
}

impl Unit {
    async fn ask(&self, want: Want) -> Result<(), ControlError> {
        let (done, taken) = oneshot::channel();
        self.commands.send(Command { want, done }).await.map_err(|_| ControlError::ShuttingDown)?;
        taken.await.map_err(|_| ControlError::ShuttingDown)
    }

    fn start_timeout(&self, settings: &Settings) -> Duration {
        self.spec.start_timeout.unwrap_or(settings.units.start_timeout)
    }

    fn stop_timeout(&self, settings: &Settings) -> Duration {
        self.spec.stop_timeout.unwrap_or(settings.units.stop_timeout)
    }

    fn unready(&self) -> UnreadyUnit {
        let Snapshot { state, cause, .. } = self.snapshot.borrow().clone();
        UnreadyUnit { unit: self.spec.name.clone(), state, cause, lines: self.journal.tail(UNREADY_LINES) }
    }

    fn status(&self, now: Snapshot, usage: Option<Usage>) -> UnitStatus {
        UnitStatus {
            name: self.spec.name.clone(),
            description: self.spec.description.clone(),
            detail: self.spec.detail.clone(),
            state: now.state,
            cause: now.cause,
            since: now.since,
            pid: now.pid,
            restarts: now.restarts,
            last_exit: now.last_exit,
            ready_after: now.ready_after,
            last_recovery: now.last_recovery,
            usage,
            log_lines_dropped: self.journal.dropped(),
        }
    }
}

fn policy(spec: &UnitSpec, units: &lares_config::Units) -> Policy {
    Policy {
        restart_delay: units.restart_delay,
        restart_delay_max: units.restart_delay_max,
        start_timeout: spec.start_timeout.unwrap_or(units.start_timeout),
        stop_timeout: spec.stop_timeout.unwrap_or(units.stop_timeout),
        sick_after: spec.liveness.failures.max(1),
        probed: !matches!(spec.probe, Probe::Alive),
    }
}
