//! The life of one unit as a pure state machine: events and the clock go in, at most one action comes out.
//!
//! ```text
//! Inactive → Waiting → Spawning → Starting → Active
//!    ↑          ↑          └──────────┴────────┴──→ Stopping → Inactive, Waiting or Backoff
//!    │          └── Backoff ←── (death, failed start, sickness)
//! ```

use std::time::{Duration, Instant};

use crate::status::{Exit, State};

/// A unit that was active for so long has proved itself: its next failure is the first in a row again.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(30);
/// From so many failures in a row on, a unit that waits for its next try is `failed`. Fewer happen to healthy
/// units whose neighbours restart; systemd draws the line at the same number.
pub(crate) const FAILED_AFTER: u32 = 5;
/// Restart delays are cut by up to this share, at random, so that units that died together do not start together.
const JITTER: f64 = 0.25;

/// The times a unit lives by.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub(crate) restart_delay: Duration,
    pub(crate) restart_delay_max: Duration,
    pub(crate) start_timeout: Duration,
    pub(crate) stop_timeout: Duration,
    /// Failed probes in a row that make an active unit sick.
    pub(crate) sick_after: u32,
    /// Whether readiness is probed; otherwise a unit is active as soon as its process runs.
    pub(crate) probed: bool,
}

impl Policy {
    /// The delay after `streak` failures in a row before this one, not yet cut by jitter.
    fn delay(&self, streak: u32) -> Duration {
        let factor = 1_u32.checked_shl(streak).unwrap_or(u32::MAX);
        self.restart_delay.saturating_mul(factor).min(self.restart_delay_max)
    }
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// Somebody wants it up.
    Start,
    /// Somebody wants it down, within this time.
    Stop { timeout: Duration },
    /// Somebody wants it down and up.
    Restart,
    /// All units it comes after are active.
    AfterActive,
    /// Its process runs.
    Spawned { pid: u32 },
    /// Its process could not be started.
    SpawnFailed { error: String },
    /// Its process is gone, and everything in its group.
    Exited { exit: Exit, noticed: Instant },
    /// It answered.
    ProbeSucceeded,
    /// It did not.
    ProbeFailed { error: String },
    /// [`Machine::deadline`] has come.
    Tick,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a process.
    Spawn,
    /// Ask the process group to stop.
    Stop,
    /// End the process group.
    Kill,
}

/// What the prober should do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Probing {
    Readiness,
    Liveness,
}

#[derive(Debug, Clone)]
enum Phase {
    Inactive,
    Waiting,
    Spawning { unwanted: Option<(Then, Duration)> },
    Starting { since: Instant, last_error: Option<String> },
    Active { since: Instant, failures: u32 },
    Stopping { then: Then, kill_at: Option<Instant> },
    Backoff { until: Instant },
}

/// What comes after a stop.
#[derive(Debug, Clone)]
enum Then {
    Rest,
    StartAgain,
    CountAsFailure { why: String },
}

#[derive(Debug)]
pub(crate) struct Machine {
    policy: Policy,
    phase: Phase,
    streak: u32,
    down_since: Option<Instant>,
    pub(crate) pid: Option<u32>,
    pub(crate) restarts: u64,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) ready_after: Option<Duration>,
    pub(crate) last_recovery: Option<Duration>,
    pub(crate) cause: String,
}

impl Machine {
    pub(crate) fn new(policy: Policy) -> Self {
        Self {
            policy,
            phase: Phase::Inactive,
            streak: 0,
            down_since: None,
            pid: None,
            restarts: 0,
            last_exit: None,
            ready_after: None,
            last_recovery: None,
            cause: "not started yet".into(),
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.phase {
            Phase::Inactive => State::Inactive,
            Phase::Backoff { .. } if self.streak >= FAILED_AFTER => State::Failed,
            Phase::Waiting | Phase::Spawning { .. } | Phase::Starting { .. } | Phase::Backoff { .. } => {
                State::Activating
            }
            Phase::Active { .. } => State::Active,
            Phase::Stopping { .. } => State::Deactivating,
        }
    }

    pub(crate) fn stop_timeout(&self) -> Duration {
        self.policy.stop_timeout
    }

    /// When [`Event::Tick`] is due.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.phase {
            Phase::Starting { since, .. } => Some(since + self.policy.start_timeout),
            Phase::Stopping { kill_at, .. } => kill_at,
            Phase::Backoff { until } => Some(until),
            Phase::Inactive | Phase::Waiting | Phase::Spawning { .. } | Phase::Active { .. } => None,
        }
    }

    /// Whether it failed and waits for its next try.
    pub(crate) fn is_failing(&self) -> bool {
        matches!(self.phase, Phase::Backoff { .. })
    }

    /// Whether it waits for [`Event::AfterActive`].
    pub(crate) fn is_waiting(&self) -> bool {
        matches!(self.phase, Phase::Waiting)
    }

    pub(crate) fn probing(&self) -> Option<Probing> {
        match self.phase {
            Phase::Starting { .. } => Some(Probing::Readiness),
            Phase::Active { .. } if self.policy.probed => Some(Probing::Liveness),
            _ => None,
        }
    }

    /// Takes one event at time `now`; `jitter` is a random number from 0 to 1. Events that do not fit the phase change nothing.
    pub(crate) fn handle(&mut self, event: Event, now: Instant, jitter: f64) -> Option<Action> {
        match event {
            Event::Start => self.start(),
            Event::Stop { timeout } => self.stop(timeout, now),
            Event::Restart => self.restart(now),
            Event::AfterActive => self.spawn(),
            Event::Spawned { pid } => self.spawned(pid, now),
            Event::SpawnFailed { error } => self.spawn_failed(error, now, jitter),
            Event::Exited { exit, noticed } => self.exited(exit, noticed, now, jitter),
            Event::ProbeSucceeded => self.probe_succeeded(now),
            Event::ProbeFailed { error } => self.probe_failed(error, now),
            Event::Tick => self.tick(now),
        }
    }

    fn start(&mut self) -> Option<Action> {
        match &mut self.phase {
            Phase::Inactive | Phase::Backoff { .. } => {
                self.streak = 0;
                self.wait("started by request");
            }
            Phase::Stopping { then, .. } if matches!(then, Then::Rest) => *then = Then::StartAgain,
            Phase::Spawning { unwanted } if matches!(unwanted, Some((Then::Rest, _))) => *unwanted = None,
            _ => {}
        }
        None
    }

    fn stop(&mut self, timeout: Duration, now: Instant) -> Option<Action> {
        let why = "stopped by request";
        self.down_since = None;
        match &mut self.phase {
            Phase::Inactive => None,
            Phase::Waiting | Phase::Backoff { .. } => {
                self.rest(why);
                None
            }
            Phase::Spawning { unwanted } => {
                *unwanted = Some((Then::Rest, timeout));
                None
            }
            Phase::Starting { .. } | Phase::Active { .. } => self.take_down(Then::Rest, timeout, why, now),
            Phase::Stopping { then, kill_at } => {
                *then = Then::Rest;
                *kill_at = kill_at.map(|at| at.min(now + timeout));
                None
            }
        }
    }

    fn restart(&mut self, now: Instant) -> Option<Action> {
        let why = "restarted by request";
        self.streak = 0;
        match &mut self.phase {
            Phase::Inactive | Phase::Backoff { .. } => {
                self.wait(why);
                None
            }
            Phase::Starting { .. } | Phase::Active { .. } => {
                self.take_down(Then::StartAgain, self.policy.stop_timeout, why, now)
            }
            Phase::Stopping { then, .. } => {
                *then = Then::StartAgain;
                None
            }
            Phase::Spawning { unwanted } => {
                *unwanted = None;
                None
            }
            Phase::Waiting => None,
        }
    }

    fn spawn(&mut self) -> Option<Action> {
        if !self.is_waiting() {
            return None;
        }
        self.phase = Phase::Spawning { unwanted: None };
        self.ready_after = None;
        Some(Action::Spawn)
    }

    fn spawned(&mut self, pid: u32, now: Instant) -> Option<Action> {
        let Phase::Spawning { unwanted } = &mut self.phase else { return None };
        let unwanted = unwanted.take();
        self.pid = Some(pid);
        self.phase = Phase::Starting { since: now, last_error: None };
        if let Some((then, timeout)) = unwanted {
            return self.take_down(then, timeout, "stopped by request", now);
        }
        self.cause = format!("process {pid} started");
        if self.policy.probed { None } else { self.probe_succeeded(now) }
    }

    fn spawn_failed(&mut self, error: String, now: Instant, jitter: f64) -> Option<Action> {
        let Phase::Spawning { unwanted } = &self.phase else { return None };
        if unwanted.is_some() {
            self.rest("stopped by request");
            return None;
        }
        let exit = Exit::NotStarted { error };
        self.fail(&exit.to_string(), now, jitter);
        self.last_exit = Some(exit);
        None
    }

    fn exited(&mut self, exit: Exit, noticed: Instant, now: Instant, jitter: f64) -> Option<Action> {
        let why = format!("main process {exit}");
        match &mut self.phase {
            Phase::Starting { .. } => self.fail(&why, now, jitter),
            Phase::Active { since, .. } => {
                let since = *since;
                self.went_down(since, noticed);
                self.fail(&why, now, jitter);
            }
            Phase::Stopping { then, .. } => match std::mem::replace(then, Then::Rest) {
                Then::Rest => {
                    let why = format!("{}; {why}", self.cause);
                    self.rest(&why);
                }
                Then::StartAgain => {
                    let why = self.cause.clone();
                    self.wait(&why);
                }
                Then::CountAsFailure { why } => self.fail(&why, now, jitter),
            },
            Phase::Inactive | Phase::Waiting | Phase::Spawning { .. } | Phase::Backoff { .. } => return None,
        }
        self.last_exit = Some(exit);
        self.pid = None;
        None
    }

    fn probe_succeeded(&mut self, now: Instant) -> Option<Action> {
        match &mut self.phase {
            Phase::Starting { since, .. } => {
                self.ready_after = Some(now.saturating_duration_since(*since));
                if let Some(down_since) = self.down_since.take() {
                    self.last_recovery = Some(now.saturating_duration_since(down_since));
                }
                self.cause = "ready".into();
                self.phase = Phase::Active { since: now, failures: 0 };
            }
            Phase::Active { failures, .. } => *failures = 0,
            _ => {}
        }
        None
    }

    fn probe_failed(&mut self, error: String, now: Instant) -> Option<Action> {
        match &mut self.phase {
            Phase::Starting { last_error, .. } => {
                self.cause = format!("not ready yet: {error}");
                *last_error = Some(error);
                None
            }
            Phase::Active { since, failures } => {
                *failures += 1;
                if *failures < self.policy.sick_after {
                    return None;
                }
                let why = format!("sick, {failures} probes in a row failed: {error}");
                let since = *since;
                self.went_down(since, now);
                self.take_down(Then::CountAsFailure { why: why.clone() }, self.policy.stop_timeout, &why, now)
            }
            _ => None,
        }
    }

    fn tick(&mut self, now: Instant) -> Option<Action> {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        match &mut self.phase {
            Phase::Starting { last_error, .. } => {
                let seconds = self.policy.start_timeout.as_secs_f64();
                let why = match last_error {
                    Some(error) => format!("not ready within {seconds} s: {error}"),
                    None => format!("not ready within {seconds} s"),
                };
                self.take_down(Then::CountAsFailure { why: why.clone() }, self.policy.stop_timeout, &why, now)
            }
            Phase::Stopping { kill_at, .. } => {
                *kill_at = None;
                self.cause.push_str("; did not stop in time and was killed");
                Some(Action::Kill)
            }
            Phase::Backoff { .. } => {
                self.restarts += 1;
                let why = format!("restart {}; before, {}", self.restarts, self.cause);
                self.wait(&why);
                None
            }
            _ => None,
        }
    }

    fn rest(&mut self, why: &str) {
        self.phase = Phase::Inactive;
        self.streak = 0;
        self.cause = why.into();
        self.ready_after = None;
    }

    fn wait(&mut self, why: &str) {
        self.phase = Phase::Waiting;
        self.cause = why.into();
    }

    fn take_down(&mut self, then: Then, timeout: Duration, why: &str, now: Instant) -> Option<Action> {
        self.phase = Phase::Stopping { then, kill_at: Some(now + timeout) };
        self.cause = why.into();
        Some(Action::Stop)
    }

    /// An active unit is no longer of use: the clock of the recovery starts, a long good life forgives earlier failures.
    fn went_down(&mut self, active_since: Instant, noticed: Instant) {
        self.down_since = Some(noticed);
        if noticed.saturating_duration_since(active_since) >= STABLE_AFTER {
            self.streak = 0;
        }
    }

    fn fail(&mut self, why: &str, now: Instant, jitter: f64) {
        let delay = self.policy.delay(self.streak).mul_f64(1.0 - JITTER * jitter.clamp(0.0, 1.0));
        self.streak = self.streak.saturating_add(1);
        self.phase = Phase::Backoff { until: now + delay };
        self.cause = why.into();
        self.ready_after = None;
    }

    /// How long from `now` until the next try, while one is pending.
    pub(crate) fn next_try_in(&self, now: Instant) -> Option<Duration> {
        match self.phase {
            Phase::Backoff { until } => Some(until.saturating_duration_since(now)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod any_order;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    pub(super) const POLICY: Policy = Policy {
        restart_delay: Duration::from_millis(100),
        restart_delay_max: Duration::from_secs(10),
        start_timeout: Duration::from_secs(120),
        stop_timeout: Duration::from_secs(5),
        sick_after: 3,
        probed: true,
    };
    pub(super) const STOP: Event = Event::Stop { timeout: POLICY.stop_timeout };

    pub(super) fn killed(now: Instant) -> Event {
        Event::Exited { exit: Exit::Signal { signal: 9 }, noticed: now }
    }

    fn active(now: Instant) -> Machine {
        let mut machine = Machine::new(POLICY);
        bring_up(&mut machine, now);
        machine
    }

    fn bring_up(machine: &mut Machine, now: Instant) {
        machine.handle(Event::Start, now, 0.0);
        assert_eq!(machine.handle(Event::AfterActive, now, 0.0), Some(Action::Spawn));
        assert_eq!(machine.handle(Event::Spawned { pid: 7 }, now, 0.0), None);
        machine.handle(Event::ProbeSucceeded, now, 0.0);
        assert_eq!(machine.state(), State::Active);
    }

    #[test]
    fn a_killed_unit_is_started_again_after_the_restart_delay() {
        let t0 = Instant::now();
        let mut machine = active(t0);
        let death = t0 + Duration::from_secs(60);
        assert_eq!(machine.handle(killed(death), death, 0.0), None);
        assert_eq!((machine.state(), machine.pid), (State::Activating, None));
        assert_eq!(machine.deadline(), Some(death + POLICY.restart_delay));
        let due = death + POLICY.restart_delay;
        machine.handle(Event::Tick, due, 0.0);
        assert!(machine.is_waiting());
        assert_eq!(machine.restarts, 1);
        bring_up(&mut machine, due + Duration::from_millis(40));
        assert_eq!(machine.last_recovery, Some(Duration::from_millis(140)));
        assert_eq!(machine.last_exit, Some(Exit::Signal { signal: 9 }));
    }

    #[test]
    fn delays_double_up_to_the_maximum_and_a_good_life_forgives() {
        let mut now = Instant::now();
        let mut machine = active(now);
        let mut delays = Vec::new();
        for _ in 0..9 {
            machine.handle(killed(now), now, 0.0);
            delays.push(machine.next_try_in(now).unwrap().as_millis());
            now = machine.deadline().unwrap();
            machine.handle(Event::Tick, now, 0.0);
            bring_up(&mut machine, now);
        }
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        now += STABLE_AFTER;
        machine.handle(killed(now), now, 0.0);
        assert_eq!(machine.next_try_in(now), Some(POLICY.restart_delay));
    }

    #[test]
    fn a_unit_that_fails_again_and_again_is_failed_and_still_tries() {
        let mut now = Instant::now();
        let mut machine = Machine::new(POLICY);
        machine.handle(Event::Start, now, 0.5);
        for failure in 1..=FAILED_AFTER {
            assert_eq!(machine.handle(Event::AfterActive, now, 0.5), Some(Action::Spawn));
            machine.handle(Event::SpawnFailed { error: "no such file".into() }, now, 0.5);
            assert_eq!(machine.state() == State::Failed, failure == FAILED_AFTER);
            now = machine.deadline().unwrap();
            machine.handle(Event::Tick, now, 0.5);
        }
        assert_eq!(machine.state(), State::Activating);
        assert_eq!(machine.restarts, u64::from(FAILED_AFTER));
        assert_eq!(machine.last_exit.as_ref().unwrap().to_string(), "could not be started: no such file");
    }

    #[test]
    fn a_unit_that_never_gets_ready_is_stopped_and_tried_again() {
        let t0 = Instant::now();
        let mut machine = Machine::new(POLICY);
        machine.handle(Event::Start, t0, 0.0);
        machine.handle(Event::AfterActive, t0, 0.0);
        machine.handle(Event::Spawned { pid: 7 }, t0, 0.0);
        machine.handle(Event::ProbeFailed { error: "refused".into() }, t0, 0.0);
        let late = t0 + POLICY.start_timeout;
        assert_eq!(machine.handle(Event::Tick, late, 0.0), Some(Action::Stop));
        assert_eq!(machine.handle(Event::Tick, late + POLICY.stop_timeout, 0.0), Some(Action::Kill));
        machine.handle(killed(late), late, 0.0);
        assert_eq!(machine.state(), State::Activating);
        assert_eq!(machine.cause, "not ready within 120 s: refused");
    }

    #[test]
    fn three_failed_probes_in_a_row_make_a_unit_sick_two_do_not() {
        let now = Instant::now();
        let mut machine = active(now);
        let failed = || Event::ProbeFailed { error: "no answer".into() };
        for event in [failed(), failed(), Event::ProbeSucceeded, failed(), failed()] {
            assert_eq!(machine.handle(event, now, 0.0), None);
        }
        assert_eq!(machine.state(), State::Active);
        assert_eq!(machine.handle(failed(), now, 0.0), Some(Action::Stop));
        assert_eq!(machine.state(), State::Deactivating);
    }

    #[test]
    fn stopped_by_request_is_left_alone() {
        let now = Instant::now();
        let mut machine = active(now);
        assert_eq!(machine.handle(STOP, now, 0.0), Some(Action::Stop));
        machine.handle(killed(now), now, 0.0);
        assert_eq!((machine.state(), machine.deadline()), (State::Inactive, None));
        assert_eq!(machine.handle(Event::AfterActive, now, 0.0), None);
        assert_eq!(machine.handle(Event::Tick, now + STABLE_AFTER, 0.0), None);
        assert_eq!(machine.state(), State::Inactive);
    }

    #[test]
    fn a_stop_during_the_start_of_the_process_stops_it_once_it_runs() {
        let now = Instant::now();
        let mut machine = Machine::new(POLICY);
        machine.handle(Event::Start, now, 0.0);
        machine.handle(Event::AfterActive, now, 0.0);
        assert_eq!(machine.handle(STOP, now, 0.0), None);
        assert_eq!(machine.handle(Event::Spawned { pid: 7 }, now, 0.0), Some(Action::Stop));
    }
}
