//! All units that are watched and their incidents: facts, outcomes and time go in, effects come out.
//!
//! ```text
//!           ┌──────────── NotVerified ────────────┐
//!           ↓                                     │
//! Open ─→ Decided ─→ Acting ─→ Decided … ─→ Verifying ─→ Closed (healed)
//!   ↕                                                      ↑
//! Held, Asking ────────────────────────────────────────────┘ (came back, left alone)
//! ```
//!
//! The caller writes the entries of one call down, all or none, before it carries out a step of the same call; a step
//! begins only on facts that are fresh.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use crate::chain::Needs;
use crate::decide::{self, Decision, History, Policy, Reason, decide, forbidden};
use crate::diagnose::{Cause, diagnose, is_up};
use crate::facts::{Active, Facts, Probe};
use crate::incident::{Incident, Phase, Resumed, was_done};
use crate::learn::Lessons;
use crate::moment::{Moment, Now};
use crate::observe::Observed;
use crate::outlook::Outlook;
use crate::remedy::{Remedy, Step};
use crate::restraint::Restraint;
use crate::symptom::Symptom;
use crate::timeline::{Entry, Event, Outcome, Plan};

/// How long to wait for something that is expected any moment.
const SOON: Duration = Duration::from_secs(1);
/// How long to wait for something that will be heard of, in case it is not.
const BACKSTOP: Duration = Duration::from_secs(30);
/// From this share of the time on, in percent, a machine is short of memory.
const PRESSED: u32 = 10;
/// How long an incident over what a unit needs waits for that unit's own: the news of both come at about the same time.
const TOGETHER: Duration = Duration::from_millis(300);
/// From so many entries on, what is only thought about an incident is not written down any more, or a unit that
/// flickers for weeks would fill the store.
const NOTES: u32 = 1000;
/// Lines that are shown of a failure that no pattern knows.
const LAST_LINES: usize = 5;

/// What the caller has to do, in this order.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write an entry down.
    Record {
        /// Of this incident.
        incident: Uuid,
        /// Its unit.
        unit: String,
        /// The entry.
        entry: Entry,
    },
    /// Carry out a step and report with [`Ward::acted`].
    Act {
        /// For this incident.
        incident: Uuid,
        /// Number of the attempt.
        attempt: u32,
        /// Place of the step in the plan.
        step: usize,
        /// The step.
        action: Step,
    },
    /// Gather facts of a unit and hand them to [`Ward::observed`].
    Look {
        /// Which.
        unit: String,
    },
}

/// A timeline as it comes back from the store.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Id of the incident.
    pub id: Uuid,
    /// Its unit.
    pub unit: String,
    /// Its entries, in order.
    pub timeline: Vec<Entry>,
    /// Whether the last entry was written since the machine started.
    pub same_boot: bool,
}

/// The state machine.
#[derive(Debug, Clone, Default)]
pub struct Ward {
    policies: BTreeMap<String, Policy>,
    needs: Needs,
    restraint: Restraint,
    lessons: Lessons,
    incidents: BTreeMap<String, Incident>,
    /// Units that somebody wishes not to be touched, and whether that was recorded for the failure at hand.
    wishes: BTreeMap<String, Reason>,
    noted: BTreeMap<String, Reason>,
    /// Generations that going back from was proposed for.
    proposed: BTreeSet<u64>,
}

impl Ward {
    /// Nothing is watched yet.
    pub fn new(restraint: Restraint, lessons: Lessons) -> Self {
        Self { restraint, lessons, ..Self::default() }
    }

    /// Watches a unit. Units that are not watched are never acted on.
    pub fn watch(&mut self, unit: &str, policy: Policy, needs: Vec<String>) {
        self.policies.insert(unit.to_owned(), policy);
        self.needs.set(unit, needs);
    }

    /// Goes on from what the store holds: open incidents, and closed ones of the last hour for the bounds.
    ///
    /// Facts of every open incident's unit have to follow; [`Effect::Look`] asks for them.
    pub fn restore(&mut self, stored: &[Stored], now: &Now) -> Vec<Effect> {
        let mut all: Vec<(&Stored, &Entry)> =
            stored.iter().flat_map(|s| s.timeline.iter().map(move |entry| (s, entry))).collect();
        all.sort_by_key(|(stored, entry)| (entry.moment, stored.id, entry.seq));
        for (stored, entry) in all {
            if let Event::Asked { remedy: Remedy::Rollback { from, .. } } = &entry.event {
                self.proposed.insert(*from);
            }
            if stored.same_boot {
                self.recount(&stored.unit, entry);
            }
        }
        let mut effects = Vec::new();
        for Stored { id, unit, timeline, same_boot } in stored {
            let mut incident = Incident::replay(*id, unit, timeline);
            if matches!(incident.phase, Phase::Closed(_)) {
                continue;
            }
            incident.resumed = Some(if *same_boot { Resumed::Healer } else { Resumed::Machine });
            if !same_boot {
                incident.clock.0 = now.moment;
            }
            incident.look_at = now.moment + BACKSTOP;
            effects.push(Effect::Look { unit: unit.clone() });
            self.incidents.insert(unit.clone(), incident);
        }
        effects
    }

    fn recount(&mut self, unit: &str, entry: &Entry) {
        match &entry.event {
            Event::Decided(plan) => self.restraint.count(unit, &plan.touches(unit), entry.moment, 0.5),
            Event::Verified { .. } => self.restraint.end(unit, Some(true), entry.moment),
            Event::NotVerified { .. } => self.restraint.end(unit, Some(false), entry.moment),
            Event::Closed { .. } | Event::Held { .. } => self.restraint.end(unit, None, entry.moment),
            _ => {}
        }
        if let Event::Held { reason: Reason::CrashLoop | Reason::Exhausted, .. } = entry.event {
            self.restraint.open(unit, entry.moment);
        }
    }

    /// The open incident of a unit.
    pub fn incident(&self, unit: &str) -> Option<&Incident> {
        self.incidents.get(unit)
    }

    /// What would be done about a unit now, and over which cause; nothing is done. None: it is not watched.
    pub fn outlook(&self, seen: Observed, now: Moment) -> Option<Outlook> {
        let policy = self.policies.get(&seen.facts.unit)?;
        let mut facts = seen.facts;
        let history = self.history(self.incidents.get(&facts.unit), &facts, now);
        if let Some(incident) = self.incidents.get(&facts.unit).filter(|_| !facts.is_up()) {
            facts.symptoms.clone_from(&incident.symptoms);
        }
        Some(Outlook::of(Observed { facts, unknown: seen.unknown }, policy, &history))
    }

    /// Going back from this generation was proposed before.
    pub fn was_proposed(&mut self, generation: u64) {
        self.proposed.insert(generation);
    }

    /// What remedies are worth.
    pub fn lessons(&mut self) -> &mut Lessons {
        &mut self.lessons
    }

    /// What a unit turns out to need.
    pub fn needs(&mut self, unit: &str, needs: Vec<String>) {
        self.needs.set(unit, needs);
    }

    /// Whether a unit needs the other, directly or through others.
    pub fn does_need(&self, unit: &str, other: &str) -> bool {
        unit != other && self.needs.reaches(unit, other)
    }

    /// Facts of a unit, because something was seen or because they were asked for.
    ///
    /// Wishes (masked, paused, stopped) of every watched unit have to arrive here too, when they change.
    pub fn observed(&mut self, facts: Facts, now: &Now) -> Vec<Effect> {
        let Some(policy) = self.policies.get(&facts.unit).cloned() else { return Vec::new() };
        match forbidden(&facts, &policy) {
            Some(reason) if reason.is_wish() => self.wishes.insert(facts.unit.clone(), reason),
            _ => self.wishes.remove(&facts.unit),
        };
        let mut case = match self.incidents.remove(&facts.unit) {
            Some(incident) => Case { incident, facts, policy, now: *now, effects: Vec::new() },
            None => match self.admit(facts, policy, now) {
                Some(case) => case,
                None => return Vec::new(),
            },
        };
        case.take_down_what_is_new();
        self.advance(&mut case);
        self.keep(case)
    }

    /// A step has ended, with an error or without. Reports that fit no step under way change nothing.
    pub fn acted(
        &mut self,
        incident: Uuid,
        attempt: u32,
        step: usize,
        error: Option<String>,
        now: &Now,
    ) -> Vec<Effect> {
        let Some(unit) = self.unit_of(incident) else { return Vec::new() };
        let Some(mut case) = self.take(&unit, now) else { return Vec::new() };
        match &case.incident.phase {
            Phase::Acting { plan, step: at, .. } if (plan.attempt, *at) == (attempt, step) => {
                let plan = plan.clone();
                case.write(Event::Acted { attempt, step, error: error.clone() });
                match error {
                    Some(why) => self.fail(&mut case, &plan, why),
                    None => case.look_now(),
                }
            }
            _ => {}
        }
        self.keep(case)
    }

    /// How a step went could not be seen: the service manager could not be reached any more. What the machine looks like
    /// afterwards tells. Reports that fit no step under way change nothing.
    pub fn lost_sight(&mut self, incident: Uuid, attempt: u32, step: usize, now: &Now) -> Vec<Effect> {
        let Some(unit) = self.unit_of(incident) else { return Vec::new() };
        let Some(mut case) = self.take(&unit, now) else { return Vec::new() };
        if matches!(&case.incident.phase, Phase::Acting { plan, step: at, .. } if (plan.attempt, *at) == (attempt, step))
        {
            case.incident.resumed = Some(Resumed::Sight);
            case.look_now();
        }
        self.keep(case)
    }

    /// A person agrees or does not agree to what was asked, or wants another try of an incident that was handed over.
    pub fn answered(&mut self, incident: Uuid, approved: bool, by: &str, now: &Now) -> Vec<Effect> {
        let Some(unit) = self.unit_of(incident) else { return Vec::new() };
        let Some(mut case) = self.take(&unit, now) else { return Vec::new() };
        if matches!(case.incident.phase, Phase::Open | Phase::Held { .. } | Phase::Asking { .. }) {
            case.write(Event::Answered { approved, by: by.to_owned() });
            if approved {
                self.restraint.excuse(&unit);
            }
            case.look_now();
        }
        self.keep(case)
    }

    /// Writes down what was found out about an incident and changes nothing; nothing when it has ended.
    pub fn note(&mut self, incident: Uuid, event: Event, now: &Now) -> Vec<Effect> {
        let Some(unit) = self.unit_of(incident) else { return Vec::new() };
        let Some(mut case) = self.take(&unit, now) else { return Vec::new() };
        if case.incident.seq < NOTES {
            case.write(event);
        }
        self.keep(case)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: &Now) -> Vec<Effect> {
        let due = self.incidents.values_mut().filter(|incident| incident.look_at <= now.moment);
        due.map(|incident| {
            incident.look_at = now.moment + BACKSTOP;
            Effect::Look { unit: incident.unit.clone() }
        })
        .collect()
    }

    /// When [`Self::tick`] is due.
    pub fn next_tick(&self) -> Option<Moment> {
        self.incidents.values().map(|incident| incident.look_at).min()
    }

    fn unit_of(&self, id: Uuid) -> Option<String> {
        self.incidents.values().find(|incident| incident.id == id).map(|incident| incident.unit.clone())
    }

    /// A case without facts: what is done with it must not need any.
    fn take(&mut self, unit: &str, now: &Now) -> Option<Case> {
        let incident = self.incidents.remove(unit)?;
        let policy = self.policies.get(unit).cloned().unwrap_or_default();
        Some(Case { incident, facts: Facts::healthy(unit), policy, now: *now, effects: Vec::new() })
    }

    fn keep(&mut self, case: Case) -> Vec<Effect> {
        let Case { incident, effects, .. } = case;
        if !matches!(incident.phase, Phase::Closed(_)) {
            self.incidents.insert(incident.unit.clone(), incident);
        }
        effects
    }

    /// Begins an incident if something is wrong that was not recorded yet.
    fn admit(&mut self, mut facts: Facts, policy: Policy, now: &Now) -> Option<Case> {
        let cause = diagnose(&facts, &policy);
        if matches!(cause, Cause::Healthy | Cause::Suspected | Cause::Changing) {
            if cause == Cause::Healthy {
                self.noted.remove(&facts.unit);
            }
            return None;
        }
        let wish = forbidden(&facts, &policy).filter(|reason| reason.is_wish());
        if wish.is_some() && wish.as_ref() == self.noted.get(&facts.unit) {
            return None;
        }
        if facts.symptoms.is_empty() {
            facts.symptoms.push(symptom_of(&facts));
        }
        let random = (u128::from(now.random) << 16).to_be_bytes();
        let ms = u64::try_from(now.wall.as_millisecond()).unwrap_or(0);
        let bytes: [u8; 10] = std::array::from_fn(|i| random[i + 6]);
        let id = uuid::Builder::from_unix_timestamp_millis(ms, &bytes).into_uuid();
        let began = facts.noticed.map_or(now.moment, |noticed| noticed.began.min(now.moment));
        let incident = Incident::new(id, &facts.unit, began);
        Some(Case { incident, facts, policy, now: *now, effects: Vec::new() })
    }

    fn history<'a>(&'a self, incident: Option<&'a Incident>, facts: &Facts, now: Moment) -> History<'a> {
        let best = self.lessons.best(&facts.unit, facts.known_as());
        History {
            tried: incident.map_or(&[], |incident| &incident.tried),
            rollback_proposed: facts.switch.as_ref().is_some_and(|s| self.proposed.contains(&s.generation)),
            trial: self.restraint.trial_is_due(&facts.unit, now),
            learned: best.and_then(|(remedy, trusted)| trusted.then_some(remedy)),
        }
    }

    fn advance(&mut self, case: &mut Case) {
        self.settle(case);
        match case.incident.phase.clone() {
            Phase::Open | Phase::Held { .. } => self.consider(case),
            Phase::Approved { remedy } => self.begin(case, remedy, true),
            Phase::Asking { .. } => {
                if case.came_back() {
                    self.close(case, Outcome::CameBack, None);
                }
            }
            Phase::Decided { plan, next, since } => self.step(case, &plan, next, since),
            Phase::Acting { plan, step, since, .. } => {
                let limit = since + case.policy.step_timeout;
                if case.now.moment >= limit {
                    let why = format!("no answer within {} s", case.policy.step_timeout.as_secs());
                    case.write(Event::Acted { attempt: plan.attempt, step, error: Some(why.clone()) });
                    self.fail(case, &plan, why);
                } else {
                    case.incident.look_at = limit;
                }
            }
            Phase::Verifying { plan, since } => self.verify(case, &plan, since),
            Phase::Closed(_) => {}
        }
    }

    /// After a restart, or when sight was lost: finds out how far the remedy got.
    fn settle(&mut self, case: &mut Case) {
        let Some(resumed) = case.incident.resumed.take() else { return };
        let under_way =
            matches!(case.incident.phase, Phase::Decided { .. } | Phase::Acting { .. } | Phase::Verifying { .. });
        if resumed == Resumed::Machine && under_way {
            let note = "the machine was restarted; begins anew".to_owned();
            case.write(Event::Resumed { note, dropped: true });
            return;
        }
        let Phase::Acting { plan, step, invocation, .. } = case.incident.phase.clone() else { return };
        let Some(action) = plan.steps.get(step) else { return };
        let what = if resumed == Resumed::Sight { "systemd could not be heard" } else { "the healer was restarted" };
        let acted = Event::Acted { attempt: plan.attempt, step, error: None };
        let (note, event) = match was_done(action, &invocation, &case.facts) {
            Some(true) => (format!("{what}: `{action}` was carried out"), acted),
            None => (format!("{what}: whether `{action}` was carried out cannot be told; it is not done again"), acted),
            Some(false) => {
                let attempt = case.incident.attempts + 1;
                let again = Plan { attempt, remedy: plan.remedy.clone(), steps: plan.steps[step..].to_vec() };
                (
                    format!("{what}: `{action}` was not carried out; it is done as attempt {attempt}"),
                    Event::Decided(again),
                )
            }
        };
        case.write(Event::Resumed { note, dropped: false });
        case.write(event);
    }

    fn consider(&mut self, case: &mut Case) {
        if case.facts.is_up() && case.facts.symptoms.is_empty() {
            if case.came_back() {
                self.close(case, Outcome::CameBack, None);
            }
            return;
        }
        case.incident.up_since = None;
        case.facts.symptoms = case.incident.symptoms.clone();
        let cause = diagnose(&case.facts, &case.policy);
        if let Cause::DependencyDown { units, .. } = &cause {
            let given_up = |unit: &String| {
                let phase = self.incidents.get(unit).map(|incident| &incident.phase);
                matches!(phase, Some(Phase::Held { reason, .. }) if reason.is_out_of_hands())
            };
            let unheard = |unit: &String| {
                self.policies.contains_key(unit)
                    && !self.incidents.contains_key(unit)
                    && !self.wishes.contains_key(unit)
            };
            if units.iter().any(unheard) && case.incident.since_noticed(case.now.moment) < TOGETHER {
                case.considers(cause);
                case.incident.look_at = case.now.moment + TOGETHER;
                return;
            }
            if units.iter().any(given_up) {
                case.considers(cause);
                return case.hold(Reason::DependencyHeld, None, false);
            }
        }
        if matches!(cause, Cause::CauseGone { .. }) && case.incident.cause.as_ref() != Some(&cause) {
            // What did not help against the old cause says nothing of a start without it.
            self.restraint.close(&case.facts.unit);
        }
        case.considers(cause.clone());
        if cause == Cause::Crashed
            && let Some((remedy, false)) = self.lessons.best(&case.facts.unit, case.facts.known_as())
            && remedy != Remedy::Restart.name()
            && case.incident.attempts == 0
            && case.incident.phase == Phase::Open
        {
            case.write(Event::Proposed { remedy: remedy.to_owned() });
        }
        let history = self.history(Some(&case.incident), &case.facts, case.now.moment);
        match decide(&case.facts, &cause, &case.policy, &history) {
            Decision::Hold { reason, .. } if reason.is_wish() => self.leave_alone(case, reason),
            Decision::Hold { reason, alert } => {
                let opens = matches!(reason, Reason::CrashLoop | Reason::Exhausted);
                let until = opens.then(|| self.restraint.open(&case.facts.unit, case.now.moment));
                case.hold(reason, until, alert);
            }
            Decision::Ask { remedy } => {
                if let Remedy::Rollback { from, .. } = remedy {
                    self.proposed.insert(from);
                }
                case.write(Event::Asked { remedy });
                case.tell();
                case.incident.look_at = case.now.moment + BACKSTOP;
            }
            Decision::Act { ladder, alert } => {
                if let Some(remedy) = ladder.into_iter().next() {
                    self.begin(case, remedy, false);
                    if alert && case.incident.told.is_none() {
                        case.tell();
                    }
                }
            }
        }
    }

    /// Begins a remedy, if the bounds allow. What a person approved is counted but not asked about.
    fn begin(&mut self, case: &mut Case, remedy: Remedy, approved: bool) {
        if let Some(reason) = forbidden(&case.facts, &case.policy) {
            return if reason.is_wish() { self.leave_alone(case, reason) } else { case.wait() };
        }
        let steps = remedy.steps(&case.facts);
        let plan = Plan { attempt: case.incident.attempts + 1, remedy, steps };
        let (unit, touches) = (case.facts.unit.clone(), plan.touches(&case.facts.unit));
        let (moment, jitter) = (case.now.moment, case.now.jitter());
        if approved {
            self.restraint.count(&unit, &touches, moment, jitter);
        } else if let Err(refused) = self.restraint.begin(&unit, &touches, &self.needs, moment, jitter) {
            let alert = matches!(refused.reason, Reason::HourlyLimit | Reason::CircuitOpen);
            return case.hold(refused.reason, refused.until, alert);
        }
        case.write(Event::Decided(plan.clone()));
        self.step(case, &plan, 0, moment);
    }

    fn step(&mut self, case: &mut Case, plan: &Plan, next: usize, since: Moment) {
        let late = case.now.moment.since(since) >= case.policy.step_timeout;
        match forbidden(&case.facts, &case.policy) {
            Some(reason) if reason.is_wish() => return self.leave_alone(case, reason),
            Some(reason) if late => return self.fail(case, plan, format!("given up: {reason}")),
            Some(_) => return case.wait(),
            None => {}
        }
        let Some(action) = plan.steps.get(next) else { return };
        if let Step::Await { unit } = action {
            if case.facts.dependencies.iter().find(|d| &d.unit == unit).is_none_or(is_up) {
                case.write(Event::Acted { attempt: plan.attempt, step: next, error: None });
                return self.advance(case);
            }
            return if late { self.fail(case, plan, format!("{unit} did not come up")) } else { case.wait() };
        }
        if let Some(unit) = action.unit().filter(|unit| *unit != case.facts.unit) {
            let listed = case.facts.dependencies.iter().find(|d| d.unit == unit);
            if !self.policies.contains_key(unit) || self.wishes.contains_key(unit) || listed.is_some_and(|d| !d.ours) {
                return self.fail(case, plan, format!("{unit} must not be touched"));
            }
        }
        let invocation = match action.unit() {
            Some(unit) if unit != case.facts.unit => {
                case.facts.dependencies.iter().find(|d| d.unit == unit).map(|d| d.invocation.clone())
            }
            _ => Some(case.facts.invocation.clone()),
        };
        let (attempt, action) = (plan.attempt, action.clone());
        let invocation = invocation.unwrap_or_default();
        case.write(Event::Acting { attempt, step: next, action: action.clone(), invocation });
        case.effects.push(Effect::Act { incident: case.incident.id, attempt, step: next, action });
        case.incident.look_at = case.now.moment + case.policy.step_timeout;
    }

    fn verify(&mut self, case: &mut Case, plan: &Plan, since: Moment) {
        if let Some(reason) = forbidden(&case.facts, &case.policy).filter(|reason| reason.is_wish()) {
            return self.leave_alone(case, reason);
        }
        let late = case.now.moment.since(since) >= case.policy.verify_timeout;
        if plan.remedy == Remedy::Stop {
            if case.facts.active.is_down() {
                self.release(case, None);
                case.hold(Reason::MemoryCeiling, None, false);
            } else if late {
                self.fail(case, plan, "it still runs".to_owned());
            } else {
                case.wait();
            }
            return;
        }
        if decide::is_well(&case.facts) {
            if case.incident.up_since.is_none() {
                // What needs it need not wait until it has proved itself.
                self.restraint.at_rest(&case.facts.unit);
                self.wake_the_chain(case);
            }
            if case.held_long_enough() {
                let up_ms = case.incident.up_since.map_or(0, |up| case.ms_at(up));
                let (attempt, remedy) = (plan.attempt, plan.remedy.clone());
                let known_as = case.incident.known_as.clone();
                self.teach(case, Event::Verified { attempt, remedy, known_as, up_ms });
                self.release(case, Some(true));
                self.close(case, Outcome::Healed, None);
            }
            return;
        }
        case.incident.up_since = None;
        if decide::may_come_up(&case.facts) && !late {
            return case.wait();
        }
        let cause = diagnose(&case.facts, &case.policy);
        let why = if late && cause == Cause::Healthy { "it did not come up in time".into() } else { cause.to_string() };
        self.fail(case, plan, why);
    }

    fn fail(&mut self, case: &mut Case, plan: &Plan, why: String) {
        let (attempt, remedy, known_as) = (plan.attempt, plan.remedy.clone(), case.incident.known_as.clone());
        self.teach(case, Event::NotVerified { attempt, remedy, known_as, why });
        self.release(case, Some(false));
        case.look_now();
    }

    fn teach(&mut self, case: &mut Case, event: Event) {
        self.lessons.hear(&case.facts.unit, &event);
        case.write(event);
    }

    fn leave_alone(&mut self, case: &mut Case, reason: Reason) {
        self.noted.insert(case.facts.unit.clone(), reason);
        case.write(Event::Held { reason, until: None });
        self.close(case, Outcome::LeftAlone, Some(reason));
    }

    fn close(&mut self, case: &mut Case, outcome: Outcome, reason: Option<Reason>) {
        self.release(case, None);
        case.write(Event::Closed { outcome, reason });
    }

    /// The remedy has ended: what waited for its chain may go on.
    fn release(&mut self, case: &mut Case, helped: Option<bool>) {
        self.restraint.end(&case.facts.unit, helped, case.now.moment);
        self.wake_the_chain(case);
    }

    fn wake_the_chain(&mut self, case: &mut Case) {
        for other in self.incidents.values_mut() {
            if matches!(other.phase, Phase::Held { reason: Reason::ChainBusy, .. }) {
                other.look_at = case.now.moment + BACKSTOP;
                case.effects.push(Effect::Look { unit: other.unit.clone() });
            }
        }
    }
}

/// What stands for facts that came without a symptom, as from the backstop.
fn symptom_of(facts: &Facts) -> Symptom {
    match (facts.active, facts.probe) {
        (Active::Active, Probe::Red { times }) => Symptom::ProbeFailing { times, error: String::new() },
        (Active::Inactive, _) => Symptom::InactiveUnexpectedly,
        _ => Symptom::of_result(&facts.result, facts.exit_status.unwrap_or_default())
            .unwrap_or_else(|| Symptom::Failed { result: facts.result.clone() }),
    }
}

/// One incident with the facts at hand, while it is worked on.
struct Case {
    incident: Incident,
    facts: Facts,
    policy: Policy,
    now: Now,
    effects: Vec<Effect>,
}

impl Case {
    fn write(&mut self, event: Event) {
        let entry = self.incident.write(event, &self.now);
        self.effects.push(Effect::Record { incident: self.incident.id, unit: self.incident.unit.clone(), entry });
    }

    fn considers(&mut self, cause: Cause) {
        if self.incident.seq >= NOTES {
            self.incident.cause = Some(cause);
        } else if self.incident.cause.as_ref() != Some(&cause) {
            self.write(Event::Considered { shared: cause.shared(), cause });
        }
    }

    fn take_down_what_is_new(&mut self) {
        // One more of the same is no news.
        let known = |symptom: &Symptom| {
            self.incident
                .symptoms
                .iter()
                .any(|s| s == symptom || s.counts() && std::mem::discriminant(s) == std::mem::discriminant(symptom))
        };
        let new: Vec<Symptom> = self.facts.symptoms.iter().filter(|s| !known(s)).cloned().collect();
        let counted: Vec<Symptom> = self.facts.symptoms.iter().filter(|s| s.counts()).cloned().collect();
        if !new.is_empty() {
            if self.incident.seq < NOTES {
                let heard_after_us = self.facts.noticed.and_then(|noticed| noticed.heard_after_us);
                self.write(Event::Symptoms { symptoms: new, heard_after_us });
            } else {
                self.incident.sees(&new);
            }
        }
        self.incident.sees(&counted);
        let known_as = self.facts.known_as();
        if !known_as.is_empty() && known_as != self.incident.known_as && self.incident.seq < NOTES {
            let last = || self.facts.said[self.facts.said.len().saturating_sub(LAST_LINES)..].to_vec();
            let lines = self.facts.matched.as_ref().map_or_else(last, |m| m.evidence.clone());
            self.write(Event::Evidence { known_as: known_as.to_owned(), lines });
        }
    }

    fn look_now(&mut self) {
        self.incident.look_at = self.now.moment + BACKSTOP;
        self.effects.push(Effect::Look { unit: self.incident.unit.clone() });
    }

    fn wait(&mut self) {
        self.incident.look_at = self.now.moment + SOON;
    }

    fn ms_at(&self, moment: Moment) -> u64 {
        let ago = self.now.moment.since(moment).as_millis();
        self.incident.ms(self.now.moment).saturating_sub(u64::try_from(ago).unwrap_or(u64::MAX))
    }

    /// Whether it has been well for the hold period. Looks again when that is over.
    fn held_long_enough(&mut self) -> bool {
        let since = *self.incident.up_since.get_or_insert(self.now.moment);
        self.incident.look_at = since + self.policy.verify_hold;
        self.now.moment >= self.incident.look_at
    }

    fn came_back(&mut self) -> bool {
        if self.facts.is_up() && self.facts.symptoms.is_empty() {
            return self.held_long_enough();
        }
        self.incident.up_since = None;
        self.incident.look_at = self.now.moment + BACKSTOP;
        false
    }

    fn hold(&mut self, reason: Reason, until: Option<Moment>, alert: bool) {
        let before = match self.incident.phase {
            Phase::Held { reason: before, since } if before == reason => Some(since),
            _ => None,
        };
        if before.is_none() && self.incident.seq < NOTES {
            self.write(Event::Held { reason, until });
        }
        let impatient = before.is_some_and(|since| self.now.moment.since(since) >= self.policy.patience);
        if (alert && self.incident.told != Some(reason)) || (impatient && self.incident.told.is_none()) {
            self.tell();
        }
        let again = self.now.moment + reason.look_again();
        self.incident.look_at =
            until.map_or(again, |until| if reason_is_bound(reason) { until } else { until.min(again) });
    }

    /// Tells a person what is wrong, why nothing more is done, and what helps.
    fn tell(&mut self) {
        let cause = self.incident.cause.as_ref();
        let mut text = format!("{}: {}", self.incident.unit, cause.map(Cause::to_string).unwrap_or_default());
        if let Phase::Held { reason, .. } = &self.incident.phase {
            text.push_str(&format!("; {reason}"));
        }
        if let Some(advice) = cause.and_then(|cause| cause.advice(&self.incident.unit)) {
            text.push_str(&format!(". {advice}"));
        }
        match &self.incident.phase {
            Phase::Asking { .. } => {
                for change in self.facts.switch.iter().flat_map(|switch| &switch.changes) {
                    text.push_str(&format!(". changed: {change}"));
                }
            }
            _ => {
                if let Some(percent) = self.facts.memory.pressure.filter(|percent| *percent >= PRESSED) {
                    text.push_str(&format!(
                        ". The machine is short of memory: something waited for it {percent} % of the time"
                    ));
                }
            }
        }
        self.write(Event::HandedOver { text });
    }
}

/// Nothing changes before a bound frees, and if the unit comes back that is heard.
fn reason_is_bound(reason: Reason) -> bool {
    matches!(reason, Reason::Cooldown | Reason::Backoff | Reason::HourlyLimit | Reason::Budget)
}

#[cfg(test)]
mod stories;
