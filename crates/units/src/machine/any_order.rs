//! Whatever happens in whatever order: one process at most, bounded delays, and every stop ends in `inactive`.

use proptest::prelude::*;

use super::tests::{POLICY, STOP, killed};
use super::*;

/// A stand-in for the kernel: what may happen depends on whether there is a process.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Process {
    None,
    Asked,
    Running,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    Stop,
    Restart,
    AfterActive,
    SpawnOutcome(bool),
    Dies,
    Probe(bool),
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<(Step, f64)>> {
    let step = prop_oneof![
        1 => Just(Step::Start),
        1 => Just(Step::Stop),
        1 => Just(Step::Restart),
        3 => Just(Step::AfterActive),
        3 => any::<bool>().prop_map(Step::SpawnOutcome),
        2 => Just(Step::Dies),
        3 => any::<bool>().prop_map(Step::Probe),
        3 => (0_u64..130_000).prop_map(Step::Pass),
    ];
    proptest::collection::vec((step, 0.0..1.0), 0..200)
}

struct World {
    machine: Machine,
    process: Process,
    now: Instant,
}

impl World {
    fn take(&mut self, event: Event, jitter: f64) {
        let before = self.now;
        match self.machine.handle(event, self.now, jitter) {
            Some(Action::Spawn) => {
                assert_eq!(self.process, Process::None, "a second process of one unit");
                self.process = Process::Asked;
            }
            Some(Action::Stop | Action::Kill) => assert_eq!(self.process, Process::Running, "a signal to nobody"),
            None => {}
        }
        if let Some(delay) = self.machine.next_try_in(before) {
            assert!(delay <= POLICY.restart_delay_max, "backoff beyond its bound");
        }
        assert_eq!(self.machine.pid.is_some(), self.process == Process::Running);
        assert!(self.machine.state() != State::Active || self.process == Process::Running);
        assert!(self.machine.state() != State::Inactive || self.process == Process::None);
    }

    fn step(&mut self, step: Step, jitter: f64) {
        match (step, self.process) {
            (Step::Start, _) => self.take(Event::Start, jitter),
            (Step::Stop, _) => self.take(STOP, jitter),
            (Step::Restart, _) => self.take(Event::Restart, jitter),
            (Step::AfterActive, _) => self.take(Event::AfterActive, jitter),
            (Step::SpawnOutcome(true), Process::Asked) => {
                self.process = Process::Running;
                self.take(Event::Spawned { pid: 7 }, jitter);
            }
            (Step::SpawnOutcome(false), Process::Asked) => {
                self.process = Process::None;
                self.take(Event::SpawnFailed { error: "no".into() }, jitter);
            }
            (Step::Dies, Process::Running) => {
                self.process = Process::None;
                self.take(killed(self.now), jitter);
            }
            (Step::Probe(true), _) => self.take(Event::ProbeSucceeded, jitter),
            (Step::Probe(false), _) => self.take(Event::ProbeFailed { error: "no".into() }, jitter),
            (Step::Pass(milliseconds), _) => {
                self.now += Duration::from_millis(milliseconds);
                self.take(Event::Tick, jitter);
            }
            (Step::SpawnOutcome(_) | Step::Dies, _) => {}
        }
    }
}

proptest! {
    #[test]
    fn never_two_processes_and_every_stop_ends_inactive(steps in steps(), ignores_stop: bool) {
        let mut world = World { machine: Machine::new(POLICY), process: Process::None, now: Instant::now() };
        for (step, jitter) in steps {
            world.step(step, jitter);
        }
        let asked = world.now;
        world.step(Step::Stop, 0.0);
        if world.process == Process::Asked {
            world.step(Step::SpawnOutcome(true), 0.0);
        }
        if world.process == Process::Running {
            if ignores_stop && let Some(kill_at) = world.machine.deadline() {
                prop_assert!(kill_at <= asked + POLICY.stop_timeout, "the stop is not bounded");
                world.now = world.now.max(kill_at);
                prop_assert_eq!(world.machine.handle(Event::Tick, world.now, 0.0), Some(Action::Kill));
            }
            world.step(Step::Dies, 0.0);
        }
        prop_assert_eq!(world.machine.state(), State::Inactive);
        prop_assert_eq!(world.machine.deadline(), None);
        world.step(Step::Start, 0.0);
        world.step(Step::AfterActive, 0.0);
        world.step(Step::SpawnOutcome(true), 0.0);
        world.step(Step::Probe(true), 0.0);
        prop_assert_eq!(world.machine.state(), State::Active);
    }
}
