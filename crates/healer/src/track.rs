//! What is remembered of each watched unit between two looks at it: what signals told that its state no longer shows.

use std::collections::VecDeque;
use std::time::Duration;

use lares_config::HealedUnit;
use lares_units::Exit;
use lares_units::port::{ActiveState, InvocationId, StateChange, UnitId};

use crate::facts::{Active, Facts, Load, Noticed, Probe};
use crate::moment::Moment;
use crate::observe;
use crate::symptom::Symptom;

/// A run that ends the same way within this time is one more of a crash loop.
const QUICK: Duration = Duration::from_secs(1);
/// So many automatic restarts within [`LOOP_WINDOW`] are a loop that the service manager never calls a failure.
const LOOP: usize = 5;
const LOOP_WINDOW: Duration = Duration::from_secs(300);
/// Kills for memory are counted over this time.
const HOUR: Duration = Duration::from_secs(3600);

/// One unit.
#[derive(Debug)]
pub(crate) struct Tracked {
    pub(crate) id: UnitId,
    /// What the configuration says of it; none for what is only watched because others need it.
    pub(crate) config: Option<HealedUnit>,
    pub(crate) load: Load,
    pub(crate) active: Active,
    pub(crate) invocation: Option<InvocationId>,
    pub(crate) restarts: u32,
    pub(crate) probe: Probe,
    /// Seen and not handed on yet.
    symptoms: Vec<Symptom>,
    noticed: Option<Noticed>,
    /// When the present run began, on the service manager's clock.
    began: Option<Duration>,
    /// Failures in a row that were alike and quick, and what they were like.
    quick: (u32, String),
    restarted: VecDeque<Moment>,
    killed: VecDeque<Moment>,
    /// Whether it was looked at before.
    seen: bool,
    /// The run that the last facts were of.
    run: String,
    /// The run that we stopped.
    pub(crate) stopped: Option<String>,
    /// The end that was taken in last: several signals tell of one.
    ended: Option<(InvocationId, Symptom)>,
    /// Whether a look is under way, and whether another one has to follow.
    pub(crate) looking: bool,
    pub(crate) look_again: bool,
    /// Looks in a row during which something was heard.
    pub(crate) outdated: u32,
    /// A probe is under way.
    pub(crate) probing: bool,
    /// When the last failed probe was counted.
    counted: Option<Moment>,
    /// Since when the present run may be asked, and whether it ever answered.
    asked_since: Option<Moment>,
    answered: bool,
    /// A run that has not answered yet is still coming up for so long.
    grace: Duration,
}

impl Tracked {
    /// `grace`: a run that has not answered its probe yet is still coming up for so long.
    pub(crate) fn new(id: UnitId, config: Option<HealedUnit>, grace: Duration) -> Self {
        Self {
            id,
            config,
            load: Load::Loaded,
            active: Active::Inactive,
            invocation: None,
            restarts: 0,
            probe: Probe::None,
            symptoms: Vec::new(),
            noticed: None,
            began: None,
            quick: (0, String::new()),
            restarted: VecDeque::new(),
            killed: VecDeque::new(),
            seen: false,
            run: String::new(),
            stopped: None,
            ended: None,
            looking: false,
            look_again: false,
            outdated: 0,
            probing: false,
            counted: None,
            asked_since: None,
            answered: false,
            grace,
        }
    }

    /// Whether it is probed.
    pub(crate) fn is_probed(&self) -> bool {
        self.config.as_ref().is_some_and(|config| crate::probes::is_set(&config.probe))
    }

    /// A signal of the service manager. Says whether somebody has to look at the unit.
    pub(crate) fn changed(&mut self, change: &StateChange, noticed: Noticed) -> bool {
        let before = self.active;
        self.active = observe::active(&change.to.active);
        if change.invocation.is_some() && change.invocation != self.invocation {
            self.invocation = change.invocation;
            self.began = change.at;
            self.start_probing_anew();
        }
        let ended = matches!(change.to.active, ActiveState::Failed) || change.to.sub.starts_with("auto-restart");
        if change.to.active == ActiveState::Activating && !ended {
            self.began = change.at.or(self.began);
        }
        let restarts = change.restarts.unwrap_or(self.restarts);
        if restarts > self.restarts && !change.found_late {
            self.restarted.push_back(noticed.began);
        }
        self.restarts = restarts;
        let result = change.result.as_ref().filter(|result| result.is_failure());
        if ended && let Some(result) = result {
            let status = match change.main_exit {
                Some(Exit::Code { code }) => code,
                Some(Exit::Signal { signal }) => signal,
                _ => 0,
            };
            if let Some(symptom) = Symptom::of_result(result.as_str(), status) {
                let end = change.invocation.map(|run| (run, symptom.clone()));
                if end.is_none() || end != self.ended {
                    self.ended(&symptom, change.at, noticed.began);
                    self.see(symptom, noticed);
                    self.ended = end;
                }
            }
        }
        if self.active != Active::Active && before == Active::Active {
            self.start_probing_anew();
        }
        ended || self.active != before || change.from.is_none()
    }

    /// A run ended badly.
    fn ended(&mut self, symptom: &Symptom, at: Option<Duration>, moment: Moment) {
        // A start limit ends no run.
        if *symptom == Symptom::StartLimitHit {
            return;
        }
        if *symptom == (Symptom::OomKill { main: true }) {
            self.killed.push_back(moment);
        }
        let quick = match (self.began, at) {
            (Some(began), Some(at)) => at.saturating_sub(began) <= QUICK,
            _ => false,
        };
        let like = symptom.to_string();
        self.quick = match &self.quick {
            _ if !quick => (0, String::new()),
            (count, last) if *last == like => (count + 1, like),
            _ => (1, like),
        };
        while self.restarted.front().is_some_and(|at| moment.since(*at) > LOOP_WINDOW) {
            self.restarted.pop_front();
        }
        if self.restarted.len() >= LOOP {
            let restarts = u32::try_from(self.restarted.len()).unwrap_or(u32::MAX);
            self.symptoms.retain(|s| !matches!(s, Symptom::RestartLoop { .. }));
            self.symptoms.push(Symptom::RestartLoop { restarts });
        }
    }

    /// Keeps a symptom until the next facts are handed on.
    pub(crate) fn see(&mut self, symptom: Symptom, noticed: Noticed) {
        self.symptoms.retain(|s| std::mem::discriminant(s) != std::mem::discriminant(&symptom));
        self.symptoms.push(symptom);
        self.noticed.get_or_insert(noticed);
    }

    /// What it needs has come back: failures before that were not its own.
    pub(crate) fn gets_time(&mut self) {
        if matches!(self.probe, Probe::Red { .. }) {
            self.probe = Probe::Pending;
            self.counted = None;
            self.symptoms.retain(|symptom| !matches!(symptom, Symptom::ProbeFailing { .. }));
        }
    }

    fn start_probing_anew(&mut self) {
        self.probe = if self.is_probed() { Probe::Pending } else { Probe::None };
        self.counted = None;
        self.asked_since = None;
        self.answered = false;
    }

    /// A probe has ended. Says whether somebody has to look at the unit.
    pub(crate) fn probed(&mut self, answer: Result<(), String>, now: Moment) -> bool {
        self.probing = false;
        let Some(config) = &self.config else { return false };
        let (before, interval, threshold) = (self.probe, config.probe.interval, config.probe.threshold);
        match answer {
            Ok(()) => {
                self.probe = Probe::Green;
                self.counted = None;
                self.answered = true;
            }
            Err(_) if !self.answered && now.since(*self.asked_since.get_or_insert(now)) < self.grace => {}
            Err(error) => {
                // Between two counted ones lies the configured time, however often it is asked meanwhile.
                let times = match before {
                    Probe::Red { times } => times,
                    _ => 0,
                };
                if self.counted.is_none_or(|last| now.since(last) + interval / 10 >= interval) {
                    self.counted = Some(now);
                    self.probe = Probe::Red { times: times + 1 };
                }
                if let Probe::Red { times } = self.probe
                    && times >= threshold
                    && self.active == Active::Active
                {
                    self.see(Symptom::ProbeFailing { times, error }, Noticed { began: now, heard_after_us: None });
                }
            }
        }
        match (before, self.probe) {
            (Probe::Red { .. } | Probe::Pending, Probe::Green) => true,
            (_, Probe::Red { times }) => times >= threshold && self.probe != before,
            _ => false,
        }
    }

    /// Completes facts with what is remembered. What was seen is handed on with these.
    pub(crate) fn complete(&mut self, facts: &mut Facts, now: Moment) {
        self.load = facts.load;
        self.active = facts.active;
        self.run.clone_from(&facts.invocation);
        self.restarts = facts.restarts;
        if facts.active == Active::Active && self.probe == Probe::None && self.is_probed() {
            self.probe = Probe::Pending;
        }
        facts.probe = self.probe;
        let seen = std::mem::take(&mut self.symptoms);
        let new: Vec<Symptom> = facts
            .symptoms
            .drain(..)
            .filter(|s| !seen.iter().any(|known| std::mem::discriminant(known) == std::mem::discriminant(s)))
            .collect();
        facts.symptoms = seen;
        facts.symptoms.extend(new);
        let by_us = self.stopped.as_ref().is_some_and(|run| *run == facts.invocation);
        if facts.symptoms.len() > 1 || by_us || facts.job_queued {
            // Whatever failed is inactive, too, and so is what is about to be started.
            facts.symptoms.retain(|s| *s != Symptom::InactiveUnexpectedly);
        }
        if !std::mem::replace(&mut self.seen, true) && facts.stopped_by_operator {
            // Stopped before anybody watched: there is a wish to know of, and nothing to tell.
            facts.symptoms.retain(|s| *s != Symptom::InactiveUnexpectedly);
        }
        facts.noticed = self.noticed.take();
        facts.quick_failures = self.quick.0;
        while self.killed.front().is_some_and(|at| now.since(*at) > HOUR) {
            self.killed.pop_front();
        }
        facts.memory.kills = facts.memory.kills.max(u32::try_from(self.killed.len()).unwrap_or(u32::MAX));
    }

    /// We are about to make it inactive: that is nobody else's wish.
    pub(crate) fn about_to_end(&mut self) {
        self.stopped = Some(self.run.clone());
    }

    /// A kill for memory before the healer was started.
    pub(crate) fn was_killed(&mut self, at: Moment) {
        self.killed.push_back(at);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lares_config::HealthProbe;

    use super::*;

    fn tracked() -> Tracked {
        let probe = HealthProbe {
            http: Some("http://127.0.0.1:9000/".into()),
            interval: Duration::from_secs(5),
            threshold: 3,
            ..HealthProbe::default()
        };
        let config = HealedUnit { probe, ..HealedUnit::default() };
        let mut unit = Tracked::new(UnitId::new("app.service").unwrap(), Some(config), Duration::from_secs(60));
        unit.active = Active::Active;
        unit.start_probing_anew();
        unit
    }

    const fn at(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    fn noticed(ms: u64) -> Noticed {
        Noticed { began: at(ms), heard_after_us: Some(900) }
    }

    #[test]
    fn three_probes_an_interval_apart_make_it_sick_however_often_it_is_asked() {
        let mut unit = tracked();
        let no = || Err("refused".to_owned());
        assert!(unit.probed(Ok(()), at(0)));
        assert!(!unit.probed(no(), at(0)));
        assert!(!unit.probed(no(), at(250)));
        assert_eq!(unit.probe, Probe::Red { times: 1 });
        assert!(!unit.probed(no(), at(5000)));
        assert!(unit.probed(no(), at(10_000)));
        let mut facts = Facts::healthy("app.service");
        unit.complete(&mut facts, at(10_001));
        assert_eq!(facts.probe, Probe::Red { times: 3 });
        assert_eq!(facts.symptoms, [Symptom::ProbeFailing { times: 3, error: "refused".into() }]);
        assert_eq!(facts.noticed, Some(Noticed { began: at(10_000), heard_after_us: None }));
        assert!(unit.probed(Ok(()), at(11_000)));
        assert!(!unit.probed(Ok(()), at(16_000)));
        let mut facts = Facts::healthy("app.service");
        unit.complete(&mut facts, at(16_001));
        assert!(facts.is_up() && facts.symptoms.is_empty() && facts.noticed.is_none());
    }

    #[test]
    fn a_run_that_has_not_answered_yet_is_coming_up_for_a_while() {
        let mut unit = tracked();
        let no = || Err("refused".to_owned());
        for second in 0..60 {
            assert!(!unit.probed(no(), at(second * 1000)));
            assert_eq!(unit.probe, Probe::Pending);
        }
        assert!(!unit.probed(no(), at(60_000)) && !unit.probed(no(), at(65_000)));
        assert!(unit.probed(no(), at(70_000)));
        assert_eq!(unit.probe, Probe::Red { times: 3 });
    }

    #[test]
    fn failures_that_are_alike_and_quick_are_counted() {
        let mut unit = tracked();
        let mut fail = |status, began: u64, ended: u64| {
            unit.began = Some(Duration::from_millis(began));
            let symptom = Symptom::ExitCode { status };
            unit.ended(&symptom, Some(Duration::from_millis(ended)), at(ended));
            unit.see(symptom, noticed(ended));
            let mut facts = Facts::healthy("app.service");
            unit.complete(&mut facts, at(ended));
            facts.quick_failures
        };
        assert_eq!(fail(1, 0, 300), 1);
        assert_eq!(fail(1, 400, 900), 2);
        assert_eq!(fail(2, 1000, 1100), 1);
        assert_eq!(fail(2, 1200, 1300), 2);
        assert_eq!(fail(2, 1400, 9000), 0);
    }

    #[test]
    fn a_failure_that_lasted_a_moment_is_told_though_the_unit_runs_again() {
        let mut unit = tracked();
        unit.see(Symptom::Signal { signal: 9 }, noticed(7));
        let mut facts = Facts::healthy("app.service");
        facts.symptoms = vec![Symptom::InactiveUnexpectedly];
        unit.complete(&mut facts, at(9));
        assert_eq!(facts.symptoms, [Symptom::Signal { signal: 9 }]);
        assert_eq!(facts.noticed, Some(noticed(7)));
    }

    #[test]
    fn kills_for_memory_count_for_an_hour() {
        let mut unit = tracked();
        unit.was_killed(at(0));
        unit.was_killed(at(10));
        let kills = |unit: &mut Tracked, now| {
            let mut facts = Facts::healthy("app.service");
            unit.complete(&mut facts, now);
            facts.memory.kills
        };
        assert_eq!(kills(&mut unit, at(1000)), 2);
        assert_eq!(kills(&mut unit, at(3_600_005)), 1);
    }
}
