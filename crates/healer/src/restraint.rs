//! How much is too much: cooldowns, hourly limits, backoff, circuit breakers, one remedy a chain, a budget for all.
//!
//! Everything is measured in [`Moment`]s, so an hour's jump of the clock neither frees nor blocks anything.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use lares_config::Healer;

use crate::chain::Needs;
use crate::decide::Reason;
use crate::moment::Moment;

/// The window of [`Limits::per_hour`].
const HOUR: Duration = Duration::from_secs(3600);
/// The window of [`Limits::budget`].
#[cfg(test)]
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// For so long a unit counts for the budget: a step begins up to some seconds after its remedy was decided, and the
/// promise is about what is done.
const SPENT: Duration = Duration::from_secs(65);
/// Backoff is lengthened by up to this share, so that units that failed together are not tried together.
const JITTER: f64 = 0.25;
/// An open circuit doubles its time at most so often.
const MAX_DOUBLINGS: u32 = 5;

/// The bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    /// Least time between two remedies that touch one unit. Each failure in a row after the first doubles it.
    pub cooldown: Duration,
    /// Most that the doubling leads to.
    pub backoff_max: Duration,
    /// Remedies that touch one unit within an hour.
    pub per_hour: u32,
    /// Remedies in a row that did not help and open the circuit.
    pub open_after: u32,
    /// How long it stays open the first time. Each trial that fails doubles it, up to 32 times.
    pub open_for: Duration,
    /// Units touched within a minute, all of them together. A remedy that touches more than this is never allowed.
    pub budget: u32,
}

impl Limits {
    /// What the configuration says.
    pub fn of(healer: &Healer) -> Self {
        Self {
            cooldown: healer.cooldown,
            backoff_max: healer.backoff_max,
            per_hour: healer.max_per_hour,
            open_after: healer.circuit_after,
            open_for: healer.circuit_open,
            budget: healer.max_per_minute,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&Healer::default())
    }
}

/// "Not now": why, and when to ask again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotNow {
    /// The bound that was met.
    pub reason: Reason,
    /// When it frees, if that is known.
    pub until: Option<Moment>,
}

#[derive(Debug, Clone, Default)]
struct Record {
    /// When remedies touched the unit, the oldest first, of the last hour.
    touched: VecDeque<Moment>,
    failures: u32,
    jitter: f64,
    /// Times the circuit opened in a row, and until when it is open.
    opened: u32,
    open_until: Option<Moment>,
    /// A person wants the next remedy now.
    excused: bool,
}

/// What was done lately, and what is under way.
#[derive(Debug, Clone, Default)]
pub struct Restraint {
    limits: Limits,
    units: BTreeMap<String, Record>,
    spent: VecDeque<Moment>,
    /// Units that a remedy works on, each with the unit it is for.
    busy: BTreeMap<String, String>,
}

impl Restraint {
    /// Nothing was done yet.
    pub fn new(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Allows a remedy for `unit` that touches these units, and counts it; or says why not. Whoever was allowed calls
    /// [`Self::end`] afterwards. `jitter` is from 0 to 1.
    pub fn begin(
        &mut self,
        unit: &str,
        touches: &[String],
        needs: &Needs,
        now: Moment,
        jitter: f64,
    ) -> Result<(), NotNow> {
        self.forget(now);
        if self.busy.keys().any(|busy| touches.iter().any(|touched| needs.related(busy, touched))) {
            return Err(NotNow { reason: Reason::ChainBusy, until: None });
        }
        if let Some(refusal) = touches.iter().find_map(|touched| self.refusal(touched, now)) {
            return Err(refusal);
        }
        let free = (self.limits.budget as usize).saturating_sub(self.spent.len());
        if touches.len() > free {
            // As many of the oldest have to leave the window.
            let until = self.spent.get(touches.len() - free - 1).map(|at| *at + SPENT);
            return Err(NotNow { reason: Reason::Budget, until });
        }
        self.count(unit, touches, now, jitter);
        Ok(())
    }

    /// Counts a remedy that was begun, without asking: for those before a restart of the healer.
    pub fn count(&mut self, unit: &str, touches: &[String], at: Moment, jitter: f64) {
        for touched in touches {
            let record = self.units.entry(touched.clone()).or_default();
            record.touched.push_back(at);
            record.excused = false;
            record.jitter = jitter.clamp(0.0, 1.0);
            self.spent.push_back(at);
            self.busy.insert(touched.clone(), unit.to_owned());
        }
    }

    /// Its remedy has brought the unit up: others of its chain may go on, though whether it stays up is not known yet.
    pub fn at_rest(&mut self, unit: &str) {
        self.busy.retain(|_, owner| owner != unit);
    }

    /// The remedy for `unit` has ended: verified, not verified, or given up half-way (`None`).
    pub fn end(&mut self, unit: &str, helped: Option<bool>, now: Moment) {
        self.busy.retain(|_, owner| owner != unit);
        match helped {
            Some(true) => {
                if let Some(record) = self.units.get_mut(unit) {
                    (record.failures, record.opened, record.open_until) = (0, 0, None);
                }
            }
            Some(false) => {
                let record = self.units.entry(unit.to_owned()).or_default();
                record.failures = record.failures.saturating_add(1);
                if record.failures >= self.limits.open_after || record.opened > 0 {
                    self.open(unit, now);
                }
            }
            None => {}
        }
    }

    /// Opens the circuit of a unit, longer each time in a row. Returns until when.
    pub fn open(&mut self, unit: &str, now: Moment) -> Moment {
        let record = self.units.entry(unit.to_owned()).or_default();
        if let Some(until) = record.open_until.filter(|until| *until > now) {
            return until;
        }
        let until = now + self.limits.open_for * (1 << record.opened.min(MAX_DOUBLINGS));
        record.opened += 1;
        record.open_until = Some(until);
        until
    }

    /// Whether the circuit was open and has been so for long enough to try once.
    pub fn trial_is_due(&self, unit: &str, now: Moment) -> bool {
        self.units.get(unit).and_then(|record| record.open_until).is_some_and(|until| until <= now)
    }

    /// What was tried in vain says nothing any more.
    pub fn close(&mut self, unit: &str) {
        if let Some(record) = self.units.get_mut(unit) {
            (record.failures, record.opened, record.open_until) = (0, 0, None);
        }
    }

    /// A person wants it tried now: the next remedy for the unit waits for nothing of its own.
    pub fn excuse(&mut self, unit: &str) {
        self.close(unit);
        if let Some(record) = self.units.get_mut(unit) {
            record.excused = true;
        }
    }

    fn refusal(&self, unit: &str, now: Moment) -> Option<NotNow> {
        let record = self.units.get(unit).filter(|record| !record.excused)?;
        let not_yet = |reason, until: Option<Moment>| {
            until.filter(|until| *until > now).map(|until| NotNow { reason, until: Some(until) })
        };
        let doubled = self
            .limits
            .cooldown
            .saturating_mul(1_u32.checked_shl(record.failures.saturating_sub(1)).unwrap_or(u32::MAX));
        let backoff =
            doubled.min(self.limits.backoff_max.max(self.limits.cooldown)).mul_f64(1.0 + JITTER * record.jitter);
        let last = record.touched.back().copied();
        let (reason, pause) =
            if record.failures == 0 { (Reason::Cooldown, self.limits.cooldown) } else { (Reason::Backoff, backoff) };
        let full = record.touched.len() >= self.limits.per_hour as usize;
        not_yet(Reason::CircuitOpen, record.open_until)
            .or_else(|| not_yet(reason, last.map(|last| last + pause)))
            .or_else(|| {
                not_yet(Reason::HourlyLimit, record.touched.front().filter(|_| full).map(|first| *first + HOUR))
            })
    }

    /// Drops what no bound looks at any more, so that memory stays bounded by the number of units.
    fn forget(&mut self, now: Moment) {
        let leave = |window: Duration, list: &mut VecDeque<Moment>| {
            while list.front().is_some_and(|at| *at + window <= now) {
                list.pop_front();
            }
        };
        leave(SPENT, &mut self.spent);
        let longest = self.limits.backoff_max.max(self.limits.cooldown).mul_f64(1.0 + JITTER).max(HOUR);
        for record in self.units.values_mut() {
            // The last one stays for the backoff, which may be longer than an hour.
            while record.touched.len() > 1 && record.touched.front().is_some_and(|at| *at + HOUR <= now) {
                record.touched.pop_front();
            }
            if record.touched.len() == 1 && record.touched.front().is_some_and(|at| *at + longest <= now) {
                record.touched.clear();
            }
        }
        self.units.retain(|_, r| !r.touched.is_empty() || r.failures > 0 || r.opened > 0);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const T0: Moment = Moment::from_millis(1_000_000);

    fn touch(restraint: &mut Restraint, unit: &str, now: Moment) -> Result<(), NotNow> {
        restraint.begin(unit, &[unit.to_owned()], &Needs::default(), now, 0.0)
    }

    fn not_now(reason: Reason, until: Moment) -> Result<(), NotNow> {
        Err(NotNow { reason, until: Some(until) })
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_unit_rests_sixty_seconds_and_is_touched_six_times_an_hour() {
        let mut restraint = Restraint::new(Limits::default());
        let mut now = T0;
        for _ in 0..6 {
            touch(&mut restraint, "a", now).unwrap();
            restraint.end("a", Some(true), now);
            assert_eq!(touch(&mut restraint, "a", now + secs(59)), not_now(Reason::Cooldown, now + secs(60)));
            now = now + secs(60);
        }
        assert_eq!(touch(&mut restraint, "a", now), not_now(Reason::HourlyLimit, T0 + HOUR));
        assert_eq!(touch(&mut restraint, "a", T0 + HOUR), Ok(()));
    }

    #[test]
    fn failures_double_the_wait_and_open_the_circuit_which_allows_one_trial_and_then_opens_for_twice_as_long() {
        let mut restraint = Restraint::new(Limits { per_hour: 100, ..Limits::default() });
        touch(&mut restraint, "a", T0).unwrap();
        restraint.end("a", Some(false), T0);
        assert_eq!(touch(&mut restraint, "a", T0), not_now(Reason::Backoff, T0 + secs(60)));
        let second = T0 + secs(60);
        touch(&mut restraint, "a", second).unwrap();
        restraint.end("a", Some(false), second);
        assert_eq!(touch(&mut restraint, "a", second), not_now(Reason::Backoff, second + secs(120)));
        let third = second + secs(120);
        touch(&mut restraint, "a", third).unwrap();
        restraint.end("a", Some(false), third);
        let due = third + secs(600);
        assert_eq!(touch(&mut restraint, "a", third + secs(599)), not_now(Reason::CircuitOpen, due));
        assert!(restraint.trial_is_due("a", due) && !restraint.trial_is_due("a", third));
        touch(&mut restraint, "a", due).unwrap();
        restraint.end("a", Some(false), due);
        assert_eq!(touch(&mut restraint, "a", due + secs(600)), not_now(Reason::CircuitOpen, due + secs(1200)));
        restraint.close("a");
        assert_eq!(touch(&mut restraint, "a", due + secs(600)), Ok(()));
    }

    #[test]
    fn who_asks_for_it_waits_for_nothing_once() {
        let mut restraint = Restraint::new(Limits::default());
        touch(&mut restraint, "a", T0).unwrap();
        restraint.end("a", Some(false), T0);
        restraint.excuse("a");
        touch(&mut restraint, "a", T0 + secs(1)).unwrap();
        restraint.end("a", Some(false), T0 + secs(1));
        assert_eq!(touch(&mut restraint, "a", T0 + secs(2)), not_now(Reason::Backoff, T0 + secs(61)));
    }

    #[test]
    fn a_chain_takes_one_remedy_and_siblings_go_side_by_side() {
        let mut needs = Needs::default();
        needs.set("a", vec!["db".into()]);
        needs.set("b", vec!["db".into()]);
        let mut restraint = Restraint::new(Limits::default());
        let busy = Err(NotNow { reason: Reason::ChainBusy, until: None });
        restraint.begin("a", &["a".into(), "db".into()], &needs, T0, 0.0).unwrap();
        assert_eq!(restraint.begin("b", &["b".into()], &needs, T0, 0.0), busy);
        restraint.end("a", Some(true), T0);
        restraint.begin("b", &["b".into()], &needs, T0, 0.0).unwrap();
        assert_eq!(restraint.begin("db", &["db".into()], &needs, T0 + secs(60), 0.0), busy);
        assert_eq!(restraint.begin("a", &["a".into()], &needs, T0 + secs(60), 0.0), Ok(()));
    }

    #[derive(Debug, Clone)]
    enum Do {
        Begin { unit: usize, with_dependency: bool },
        End { unit: usize, helped: Option<bool> },
        Pass(u64),
    }

    fn actions() -> impl Strategy<Value = Vec<Do>> {
        let one = prop_oneof![
            4 => (0_usize..6, any::<bool>()).prop_map(|(unit, with_dependency)| Do::Begin { unit, with_dependency }),
            4 => (0_usize..6, any::<Option<bool>>()).prop_map(|(unit, helped)| Do::End { unit, helped }),
            3 => (0_u64..200_000).prop_map(Do::Pass),
        ];
        proptest::collection::vec(one, 0..300)
    }

    proptest! {
        /// u0 needs u1 needs u2 … needs u5 needs u3: a chain that ends in a circle.
        #[test]
        fn no_bound_is_ever_broken(actions in actions()) {
            let limits = Limits { budget: 4, per_hour: 5, ..Limits::default() };
            let name = |n: usize| format!("u{n}");
            let mut needs = Needs::default();
            for n in 0..6 {
                needs.set(&name(n), vec![name(if n == 5 { 3 } else { n + 1 })]);
            }
            needs.set("u6", Vec::new());
            let mut restraint = Restraint::new(limits.clone());
            let mut now = T0;
            let (mut log, mut running) = (Vec::<(Moment, String)>::new(), Vec::<(usize, Vec<String>)>::new());
            for action in actions {
                match action {
                    Do::Pass(ms) => now = now + Duration::from_millis(ms),
                    Do::End { unit, helped } => {
                        restraint.end(&name(unit), helped, now);
                        running.retain(|(owner, _)| *owner != unit);
                    }
                    Do::Begin { unit, with_dependency } => {
                        let mut touches = vec![name(unit)];
                        if with_dependency && unit < 5 {
                            touches.push(name(unit + 1));
                        }
                        if restraint.begin(&name(unit), &touches, &needs, now, 0.5).is_ok() {
                            // Never two in a chain.
                            for touched in &touches {
                                prop_assert!(!running.iter().flat_map(|(_, t)| t).any(|t| needs.related(t, touched)));
                                let last = log.iter().rev().find(|(_, u)| u == touched);
                                prop_assert!(last.is_none_or(|(at, _)| now.since(*at) >= limits.cooldown));
                                log.push((now, touched.clone()));
                                let hour = log.iter().filter(|(at, u)| u == touched && now.since(*at) < HOUR).count();
                                prop_assert!(hour <= limits.per_hour as usize);
                            }
                            let window = log.iter().filter(|(at, _)| now.since(*at) < MINUTE).count();
                            prop_assert!(window <= limits.budget as usize);
                            running.push((unit, touches));
                        }
                    }
                }
            }
        }
    }
}
