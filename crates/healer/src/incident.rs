//! One failure of one unit: its timeline, folded into where it stands.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::decide::Reason;
use crate::diagnose::Cause;
use crate::facts::{Active, Facts};
use crate::moment::{Moment, Now};
use crate::remedy::{Remedy, Step};
use crate::symptom::Symptom;
use crate::timeline::{Entry, Event, Outcome, Plan};

/// Where an incident stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Something is wrong; what to do is to be decided.
    Open,
    /// Nothing is done for now.
    Held {
        /// Why.
        reason: Reason,
        /// Since when.
        since: Moment,
    },
    /// A person is asked.
    Asking {
        /// To agree to this.
        remedy: Remedy,
    },
    /// A person agreed.
    Approved {
        /// To this.
        remedy: Remedy,
    },
    /// A remedy is under way and the next step is to begin.
    Decided {
        /// The remedy.
        plan: Plan,
        /// Place of the step.
        next: usize,
        /// Since when that is so.
        since: Moment,
    },
    /// A step is carried out.
    Acting {
        /// The remedy.
        plan: Plan,
        /// Place of the step.
        step: usize,
        /// Since when.
        since: Moment,
        /// Run of the unit it changes, before it.
        invocation: String,
    },
    /// All steps are done; whether they helped shows now.
    Verifying {
        /// The remedy.
        plan: Plan,
        /// Since when.
        since: Moment,
    },
    /// It has ended.
    Closed(Outcome),
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Open => f.write_str("looked at"),
            Self::Held { reason, .. } => write!(f, "held: {reason}"),
            Self::Asking { remedy } => write!(f, "waits for a person to approve {}", remedy.name()),
            Self::Approved { remedy } | Self::Decided { plan: Plan { remedy, .. }, .. } => {
                write!(f, "about to {}", remedy.name())
            }
            Self::Acting { plan, step, .. } => match plan.steps.get(*step) {
                Some(step) => step.fmt(f),
                None => f.write_str(plan.remedy.name()),
            },
            Self::Verifying { plan, .. } => write!(f, "verifies whether {} helped", plan.remedy.name()),
            Self::Closed(_) => f.write_str("closed"),
        }
    }
}

/// An incident.
#[derive(Debug, Clone)]
pub struct Incident {
    /// Its id.
    pub id: Uuid,
    /// The unit.
    pub unit: String,
    pub(crate) phase: Phase,
    pub(crate) symptoms: Vec<Symptom>,
    pub(crate) known_as: String,
    pub(crate) cause: Option<Cause>,
    /// Remedies that did not help.
    pub(crate) tried: Vec<Remedy>,
    pub(crate) attempts: u32,
    /// Why a person was told last.
    pub(crate) told: Option<Reason>,
    pub(crate) seq: u32,
    /// Moment of the first entry.
    first: Option<Moment>,
    /// A moment and the milliseconds of the incident at it.
    pub(crate) clock: (Moment, u64),
    /// Since when it is well again, to be confirmed.
    pub(crate) up_since: Option<Moment>,
    /// When to look again though nothing was heard.
    pub(crate) look_at: Moment,
    /// Read back from the store and not looked at yet: what was under way may be done or not.
    pub(crate) resumed: Option<Resumed>,
}

/// What happened between the last entry and now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resumed {
    /// The healer was restarted.
    Healer,
    /// The machine was.
    Machine,
    /// The healer lost sight of the service manager while a step was under way.
    Sight,
}

impl Incident {
    /// One that begins now.
    pub(crate) fn new(id: Uuid, unit: &str, now: Moment) -> Self {
        Self {
            id,
            unit: unit.to_owned(),
            phase: Phase::Open,
            symptoms: Vec::new(),
            known_as: String::new(),
            cause: None,
            tried: Vec::new(),
            attempts: 0,
            told: None,
            seq: 0,
            first: None,
            clock: (now, 0),
            up_since: None,
            look_at: now,
            resumed: None,
        }
    }

    /// The incident a timeline tells of, the entries in the order of their numbers.
    pub fn replay(id: Uuid, unit: &str, timeline: &[Entry]) -> Self {
        let start = timeline.first().map_or(Moment::default(), |entry| entry.moment);
        let mut incident = Self::new(id, unit, start);
        for entry in timeline {
            incident.apply(entry);
        }
        incident
    }

    /// Where it stands.
    pub fn phase(&self) -> &Phase {
        &self.phase
    }

    /// The cause found last.
    pub fn cause(&self) -> Option<&Cause> {
        self.cause.as_ref()
    }

    /// How long ago its first entry was written, or would be now.
    pub(crate) fn since_noticed(&self, now: Moment) -> Duration {
        self.first.map_or(Duration::ZERO, |first| now.since(first))
    }

    /// Milliseconds since it began.
    pub(crate) fn ms(&self, now: Moment) -> u64 {
        self.clock.1 + u64::try_from(now.since(self.clock.0).as_millis()).unwrap_or(u64::MAX)
    }

    /// Adds an event.
    pub(crate) fn write(&mut self, event: Event, now: &Now) -> Entry {
        let ms = self.ms(now.moment);
        let entry = Entry { seq: self.seq + 1, at: now.wall, moment: now.moment, ms, event };
        self.apply(&entry);
        entry
    }

    /// Takes symptoms in. A probe that fails once more is the same symptom with a larger number.
    pub(crate) fn sees(&mut self, symptoms: &[Symptom]) {
        for symptom in symptoms {
            self.symptoms.retain(|s| std::mem::discriminant(s) != std::mem::discriminant(symptom));
            self.symptoms.push(symptom.clone());
        }
    }

    /// Whether a person was told or is asked, and it is not over.
    pub fn needs_person(&self) -> bool {
        match self.phase {
            Phase::Asking { .. } => true,
            Phase::Closed(_) => false,
            _ => self.told.is_some(),
        }
    }

    /// Pattern or fingerprint it is known by; empty: neither.
    pub fn known_as(&self) -> &str {
        &self.known_as
    }

    pub(crate) fn apply(&mut self, entry: &Entry) {
        self.seq = entry.seq;
        self.first.get_or_insert(entry.moment);
        self.clock = (entry.moment, entry.ms);
        let since = entry.moment;
        match &entry.event {
            Event::Symptoms { symptoms, .. } => self.sees(symptoms),
            Event::Evidence { known_as, .. } => self.known_as.clone_from(known_as),
            Event::Considered { cause, .. } => self.cause = Some(cause.clone()),
            Event::Held { reason, .. } => self.phase = Phase::Held { reason: *reason, since },
            Event::Asked { remedy } => self.phase = Phase::Asking { remedy: remedy.clone() },
            Event::Answered { approved, .. } => {
                // Whoever agrees, agrees to a new start.
                let asked = std::mem::replace(&mut self.phase, Phase::Open);
                match asked {
                    Phase::Asking { remedy } if *approved => self.phase = Phase::Approved { remedy },
                    Phase::Asking { remedy } => self.tried.push(remedy),
                    _ => {}
                }
                if *approved {
                    self.tried.clear();
                }
            }
            Event::Decided(plan) => {
                self.attempts = plan.attempt;
                self.up_since = None;
                self.phase = Phase::Decided { plan: plan.clone(), next: 0, since };
            }
            Event::Acting { step, invocation, .. } => {
                if let Phase::Decided { plan, .. } = &self.phase {
                    let (plan, step, invocation) = (plan.clone(), *step, invocation.clone());
                    self.phase = Phase::Acting { plan, step, since, invocation };
                }
            }
            Event::Acted { step, error, .. } => {
                if let Phase::Decided { plan, .. } | Phase::Acting { plan, .. } = &self.phase {
                    let (plan, next) = (plan.clone(), step + 1);
                    self.phase = if error.is_some() {
                        Phase::Open
                    } else if next < plan.steps.len() {
                        Phase::Decided { plan, next, since }
                    } else {
                        Phase::Verifying { plan, since }
                    };
                }
            }
            Event::NotVerified { remedy, .. } => {
                self.tried.push(remedy.clone());
                self.up_since = None;
                self.phase = Phase::Open;
            }
            Event::Resumed { dropped: true, .. } => self.phase = Phase::Open,
            Event::HandedOver { .. } => {
                self.told = match self.phase {
                    Phase::Held { reason, .. } => Some(reason),
                    _ => Some(Reason::Exhausted),
                }
            }
            Event::Closed { outcome, .. } => self.phase = Phase::Closed(*outcome),
            Event::Proposed { .. } | Event::Diagnosed { .. } | Event::Resumed { .. } | Event::Verified { .. } => {}
        }
    }
}

/// Whether a step was carried out whose beginning was written down and whose end was not, by what the machine looks
/// like now; `None` when that cannot be told. What can be done twice without harm counts as not done.
pub fn was_done(step: &Step, invocation: &str, facts: &Facts) -> Option<bool> {
    let state = |unit: &str| -> Option<(Active, &str)> {
        if unit == facts.unit {
            return Some((facts.active, facts.invocation.as_str()));
        }
        facts.dependencies.iter().find(|d| d.unit == unit).map(|d| (d.active, d.invocation.as_str()))
    };
    match step {
        Step::ResetFailed { unit } => state(unit).map(|(active, _)| active != Active::Failed),
        Step::Start { unit } | Step::Restart { unit } => {
            let queued = unit == &facts.unit && facts.job_queued;
            state(unit).map(|(_, now)| queued || now != invocation)
        }
        Step::Stop { unit } => state(unit).map(|(active, _)| active.is_down()),
        Step::EndProcess { pid, started } => {
            Some(facts.port_holder.as_ref().is_none_or(|holder| (holder.pid, holder.started) != (*pid, *started)))
        }
        Step::SetMemoryMax { bytes, .. } => Some(facts.memory.limit == Some(*bytes)),
        Step::Rollback { to } => Some(facts.rebuilding || facts.switch.as_ref().is_some_and(|s| s.generation == *to)),
        Step::SetPort { .. } | Step::FetchModel { .. } | Step::Await { .. } => Some(false),
    }
}
