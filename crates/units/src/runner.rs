//! One unit's task: it feeds what happens in the world to the unit's state machine and carries out what the machine wants.

use std::future::pending;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join, select_all};
use jiff::Timestamp;
use nix::sys::signal::Signal;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::{sleep, sleep_until, timeout};
use tracing::{info, warn};

use crate::journal::{Journal, LogStream};
use crate::machine::{Action, Event, Machine, Policy, Probing};
use crate::name::UnitName;
use crate::probe;
use crate::spawn::{Child, Exited, Group, Spawner};
use crate::spec::UnitSpec;
use crate::status::{Change, Exit, State};

/// After the end of a process group its output is at an end too, unless somebody outside the group holds on to it.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

/// What a person or the supervisor wants; answered once the unit's state shows it.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) want: Want,
    pub(crate) done: oneshot::Sender<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Want {
    Start,
    Stop {
        timeout: Duration,
    },
    Restart,
    /// Stop, and never start again.
    Close {
        timeout: Duration,
    },
}

/// One step of a unit, finer than a [`Change`]: also a start that fails, which leaves a unit `activating`.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) unit: UnitName,
    pub(crate) from: Snapshot,
    pub(crate) to: Snapshot,
}

/// The unit as others see it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    /// It failed, and waits for its next try.
    pub(crate) failing: bool,
    pub(crate) cause: String,
    pub(crate) since: Timestamp,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u64,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) ready_after: Option<Duration>,
    pub(crate) last_recovery: Option<Duration>,
}

impl Snapshot {
    fn of(machine: &Machine, since: Timestamp) -> Self {
        Self {
            state: machine.state(),
            failing: machine.is_failing(),
            cause: machine.cause.clone(),
            since,
            pid: machine.pid,
            restarts: machine.restarts,
            last_exit: machine.last_exit.clone(),
            ready_after: machine.ready_after,
            last_recovery: machine.last_recovery,
        }
    }
}

/// Waits until all of these units are as wanted at the same time.
pub(crate) async fn all(units: &mut [watch::Receiver<Snapshot>], wanted: impl Fn(State) -> bool) {
    loop {
        if units.iter_mut().all(|unit| wanted(unit.borrow_and_update().state)) {
            return;
        }
        let (outcome, ..) = select_all(units.iter_mut().map(|unit| unit.changed().boxed())).await;
        if outcome.is_err() {
            // That unit's task is gone, and with it the hope for a change.
            return pending().await;
        }
    }
}

pub(crate) struct Runner {
    spec: Arc<UnitSpec>,
    machine: Machine,
    spawner: Spawner,
    journal: Arc<Journal>,
    changes: broadcast::Sender<Change>,
    steps: broadcast::Sender<Step>,
    snapshot: watch::Sender<Snapshot>,
    commands: mpsc::Receiver<Command>,
    after: Vec<watch::Receiver<Snapshot>>,
    group: Option<Group>,
    spawning: Option<oneshot::Receiver<Result<Child, String>>>,
    exited: Option<BoxFuture<'static, Exited>>,
    probing: Option<Probing>,
    probe: Option<BoxFuture<'static, Result<(), String>>>,
    tries: u32,
    closing: bool,
    abandoned: bool,
}

impl Runner {
    /// A unit that wants to start; nothing happens before [`Runner::run`].
    pub(crate) fn new(
        spec: Arc<UnitSpec>,
        policy: Policy,
        spawner: Spawner,
        journal: Arc<Journal>,
        changes: broadcast::Sender<Change>,
        steps: broadcast::Sender<Step>,
        commands: mpsc::Receiver<Command>,
    ) -> (Self, watch::Receiver<Snapshot>) {
        let mut machine = Machine::new(policy);
        machine.handle(Event::Start, Instant::now(), 0.0);
        machine.cause = match spec.after.as_slice() {
            [] => "starts with the supervisor".into(),
            after => {
                format!("waits for {}", after.iter().map(UnitName::as_str).collect::<Vec<_>>().join(", "))
            }
        };
        let (snapshot, watcher) = watch::channel(Snapshot::of(&machine, Timestamp::now()));
        let runner = Self {
            spec,
            machine,
            spawner,
            journal,
            changes,
            steps,
            snapshot,
            commands,
            after: Vec::new(),
            group: None,
            spawning: None,
            exited: None,
            probing: None,
            probe: None,
            tries: 0,
            closing: false,
            abandoned: false,
        };
        (runner, watcher)
    }

    /// Runs the unit, after those in `after`, until nobody can ask for anything any more and it is inactive.
    pub(crate) async fn run(mut self, after: Vec<watch::Receiver<Snapshot>>) {
        self.after = after;
        while !(self.abandoned && self.machine.state() == State::Inactive) {
            let deadline = self.machine.deadline();
            tokio::select! {
                biased;
                Exited { exit, noticed } = optional(&mut self.exited) => {
                    self.group = None;
                    self.take(Event::Exited { exit, noticed });
                }
                answer = optional(&mut self.spawning) => self.spawned(answer),
                command = self.commands.recv(), if !self.abandoned => self.obey(command),
                outcome = optional(&mut self.probe) => self.take(match outcome {
                    Ok(()) => Event::ProbeSucceeded,
                    Err(error) => Event::ProbeFailed { error },
                }),
                () = all(&mut self.after, |state| state == State::Active), if self.machine.is_waiting() => {
                    self.take(Event::AfterActive);
                }
                () = until(deadline) => self.take(Event::Tick),
            }
        }
    }

    fn obey(&mut self, command: Option<Command>) {
        let Some(Command { want, done }) = command else {
            self.abandoned = true;
            self.take(Event::Stop { timeout: self.machine.stop_timeout() });
            return;
        };
        match want {
            Want::Start | Want::Restart if self.closing => {}
            Want::Start => self.take(Event::Start),
            Want::Restart => self.take(Event::Restart),
            Want::Stop { timeout } => self.take(Event::Stop { timeout }),
            Want::Close { timeout } => {
                self.closing = true;
                self.take(Event::Stop { timeout });
            }
        }
        // Whoever asked may have gone.
        let _ = done.send(());
    }

    fn spawned(&mut self, answer: Result<Result<Child, String>, oneshot::error::RecvError>) {
        let child = match answer {
            Ok(Ok(child)) => child,
            Ok(Err(error)) => return self.take(Event::SpawnFailed { error }),
            Err(_) => return self.take(Event::SpawnFailed { error: "the spawner thread is gone".into() }),
        };
        let pid = child.group.pid;
        self.group = Some(child.group);
        let [(out_asks, out_asked), (err_asks, err_asked)] = [oneshot::channel(), oneshot::channel()];
        let readers = join(
            tokio::spawn(Arc::clone(&self.journal).read(LogStream::Stdout, child.stdout, out_asked)),
            tokio::spawn(Arc::clone(&self.journal).read(LogStream::Stderr, child.stderr, err_asked)),
        );
        let exited = child.exited;
        let exited = async move {
            let exited = exited.await.unwrap_or_else(|_| Exited {
                exit: Exit::Unknown { error: "the thread that waits for it is gone".into() },
                noticed: Instant::now(),
            });
            if timeout(DRAIN_TIMEOUT, readers).await.is_err() {
                // Time says nothing on a busy machine: the last words come before the news of the end.
                join(catch_up(out_asks), catch_up(err_asks)).await;
            }
            exited
        };
        self.exited = Some(exited.boxed());
        self.take(Event::Spawned { pid });
    }

    fn take(&mut self, event: Event) {
        let action = self.machine.handle(event, Instant::now(), rand::random());
        self.publish();
        match (action, &self.group) {
            (None, _) => {}
            (Some(Action::Spawn), _) => self.spawning = Some(self.spawner.spawn(Arc::clone(&self.spec))),
            (Some(Action::Stop), Some(group)) => group.signal(self.spec.stop_signal.signal()),
            (Some(Action::Kill), Some(group)) => group.signal(Signal::SIGKILL),
            (Some(Action::Stop | Action::Kill), None) => {
                warn!(unit = %self.spec.name, "a signal for a process that is not there");
            }
        }
        self.aim_probe();
    }

    /// Has the next try under way exactly while the machine wants to know.
    fn aim_probe(&mut self) {
        let probing = self.machine.probing();
        if probing != self.probing {
            self.probing = probing;
            self.probe = None;
            self.tries = 0;
        }
        let Some(probing) = probing else { return };
        if self.probe.is_some() {
            return;
        }
        let wait = match probing {
            Probing::Readiness => probe::interval(self.tries),
            Probing::Liveness => self.spec.liveness.interval,
        };
        self.tries = self.tries.saturating_add(1);
        let probe = self.spec.probe.clone();
        let attempt = async move {
            sleep(wait).await;
            probe.attempt().await
        };
        self.probe = Some(attempt.boxed());
    }

    /// Shows the machine's state to the outside, and tells of a change.
    fn publish(&mut self) {
        let before = self.snapshot.borrow().clone();
        let at = Timestamp::now();
        let to = self.machine.state();
        let changed = before.state != to;
        let now = Snapshot::of(&self.machine, if changed { at } else { before.since });
        if now == before {
            return;
        }
        let cause = now.cause.clone();
        let new_process = now.pid.is_some() && now.pid != before.pid;
        if self.steps.receiver_count() > 0 && (changed || now.failing != before.failing) {
            // Fails only when the last reader has just gone.
            let _ = self.steps.send(Step { unit: self.spec.name.clone(), from: before.clone(), to: now.clone() });
        }
        self.snapshot.send_replace(now);
        if changed || new_process {
            let mut text = format!("{to}: {cause}");
            if let Some(wait) = self.machine.next_try_in(Instant::now()) {
                text.push_str(&format!("; next try in {} ms", wait.as_millis()));
            }
            self.journal.push(LogStream::Supervisor, [text]);
        }
        if changed {
            let from = before.state;
            info!(unit = %self.spec.name, %from, %to, cause, "unit changed");
            // Nobody may be listening.
            let _ = self.changes.send(Change { unit: self.spec.name.clone(), from, to, at, cause });
        }
    }
}

/// Waits until a reader has taken in what was written, or has ended.
async fn catch_up(asks: oneshot::Sender<oneshot::Sender<()>>) {
    let (done, caught_up) = oneshot::channel();
    if asks.send(done).is_ok() {
        let _ = caught_up.await;
    }
}

/// Waits for what may not be under way, and clears it when it is done.
async fn optional<F: Future + Unpin>(slot: &mut Option<F>) -> F::Output {
    let Some(future) = slot else { return pending().await };
    let output = future.await;
    *slot = None;
    output
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => pending().await,
    }
}
