//! The story of an incident as a list of events: what the store keeps, the API shows and a restart resumes from.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::chain::Shared;
use crate::decide::Reason;
use crate::diagnose::Cause;
use crate::moment::Moment;
use crate::remedy::{Remedy, Step};
use crate::symptom::Symptom;

/// One entry of a timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place, from 1 on. With the incident's id it names the entry: writing it again changes nothing.
    pub seq: u32,
    /// When, for people.
    pub at: Timestamp,
    /// When, in the boot that wrote it.
    pub moment: Moment,
    /// Milliseconds since the incident began; time during which no healer ran and the machine was off is left out.
    pub ms: u64,
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
}

/// A remedy on its way: what is done, in which order, under which number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Counts up within the incident. A step is carried out once an attempt at most.
    pub attempt: u32,
    /// The remedy.
    pub remedy: Remedy,
    /// Its steps.
    pub steps: Vec<Step>,
}

impl Plan {
    /// The units it changes; `unit` is the one it is for.
    pub fn touches(&self, unit: &str) -> Vec<String> {
        let mut units: Vec<String> =
            self.steps.iter().filter_map(Step::unit).chain([unit]).map(str::to_owned).collect();
        units.sort();
        units.dedup();
        units
    }
}

/// How an incident ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// A remedy helped and that was verified.
    Healed,
    /// It came back without a remedy: systemd, a person or the program itself.
    CameBack,
    /// Somebody's wish, or the end of the machine, stood against acting.
    LeftAlone,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Event {
    /// What was seen.
    Symptoms {
        /// At least one.
        symptoms: Vec<Symptom>,
        /// Microseconds from the service manager's own stamp of the first until it was heard of.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        heard_after_us: Option<u64>,
    },
    /// Lines of the journal, and the pattern or fingerprint they match.
    Evidence {
        /// Its name.
        known_as: String,
        /// The lines.
        lines: Vec<String>,
    },
    /// A cause was found.
    Considered {
        /// It.
        cause: Cause,
        /// What other incidents may have in common with this one.
        shared: Option<Shared>,
    },
    /// Nothing is done for now.
    Held {
        /// Why.
        reason: Reason,
        /// When that changes, if known.
        until: Option<Moment>,
    },
    /// A remedy that helped against the same unknown failure before, which a person may allow from now on.
    Proposed {
        /// Its name.
        remedy: String,
    },
    /// What a local model makes of a failure that no pattern knows: words for a person, without any effect.
    Diagnosed {
        /// Name of the model.
        model: String,
        /// Its words, at most 2,000 characters.
        text: String,
    },
    /// A person has to agree.
    Asked {
        /// To what.
        remedy: Remedy,
    },
    /// A person answered.
    Answered {
        /// Whether they agreed.
        approved: bool,
        /// Who.
        by: String,
    },
    /// A remedy was chosen.
    Decided(Plan),
    /// A step begins. Written before it is carried out.
    Acting {
        /// Number of the attempt.
        attempt: u32,
        /// Place of the step in the plan, from 0 on.
        step: usize,
        /// The step.
        action: Step,
        /// Run of the unit that was known before: another one afterwards tells that the step was carried out.
        invocation: String,
    },
    /// A step has ended.
    Acted {
        /// Number of the attempt.
        attempt: u32,
        /// Place of the step in the plan.
        step: usize,
        /// What went wrong, if anything did.
        error: Option<String>,
    },
    /// The remedy helped: up, answering, still so after the hold period, and no new matching line.
    Verified {
        /// Number of the attempt.
        attempt: u32,
        /// Its remedy.
        remedy: Remedy,
        /// Pattern or fingerprint it helped against.
        known_as: String,
        /// Milliseconds from the incident's beginning until the unit was up again.
        up_ms: u64,
    },
    /// It did not help.
    NotVerified {
        /// Number of the attempt.
        attempt: u32,
        /// Its remedy.
        remedy: Remedy,
        /// Pattern or fingerprint it did not help against.
        known_as: String,
        /// Why.
        why: String,
    },
    /// A person is told.
    HandedOver {
        /// What.
        text: String,
    },
    /// The healer was restarted in the middle of it, or could not see how a step went.
    Resumed {
        /// What it found and does.
        note: String,
        /// Whether the remedy that was under way is given up.
        dropped: bool,
    },
    /// The end.
    Closed {
        /// How.
        outcome: Outcome,
        /// Why, where that is a reason of ours.
        reason: Option<Reason>,
    },
}

impl Event {
    /// The name in the column and in metrics: that of the `kind` field.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Symptoms { .. } => "symptoms",
            Self::Evidence { .. } => "evidence",
            Self::Considered { .. } => "considered",
            Self::Held { .. } => "held",
            Self::Proposed { .. } => "proposed",
            Self::Diagnosed { .. } => "diagnosed",
            Self::Asked { .. } => "asked",
            Self::Answered { .. } => "answered",
            Self::Decided(_) => "decided",
            Self::Acting { .. } => "acting",
            Self::Acted { .. } => "acted",
            Self::Verified { .. } => "verified",
            Self::NotVerified { .. } => "not_verified",
            Self::HandedOver { .. } => "handed_over",
            Self::Resumed { .. } => "resumed",
            Self::Closed { .. } => "closed",
        }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symptoms { symptoms, .. } => {
                let all: Vec<String> = symptoms.iter().map(Symptom::to_string).collect();
                f.write_str(&all.join("; "))
            }
            Self::Evidence { known_as, lines } => write!(f, "{known_as}: {}", lines.join(" | ")),
            Self::Considered { cause, .. } => cause.fmt(f),
            Self::Held { reason, .. } => write!(f, "nothing done: {reason}"),
            Self::Proposed { remedy } => write!(f, "{remedy} helped against this before; approve it to let it be used"),
            Self::Diagnosed { model, text } => write!(f, "{model} thinks: {text}"),
            Self::Asked { remedy } => write!(f, "waits for a person to approve {}", remedy.name()),
            Self::Answered { approved: true, by } => write!(f, "approved by {by}"),
            Self::Answered { approved: false, by } => write!(f, "rejected by {by}"),
            Self::Decided(plan) => {
                let steps: Vec<String> = plan.steps.iter().map(Step::to_string).collect();
                write!(f, "attempt {}, {}: {}", plan.attempt, plan.remedy.name(), steps.join(", "))
            }
            Self::Acting { action, .. } => action.fmt(f),
            Self::Acted { error: None, .. } => f.write_str("done"),
            Self::Acted { error: Some(error), .. } => write!(f, "failed: {error}"),
            Self::Verified { remedy, up_ms, .. } => write!(f, "{} helped; up after {up_ms} ms", remedy.name()),
            Self::NotVerified { remedy, why, .. } => write!(f, "{} did not help: {why}", remedy.name()),
            Self::HandedOver { text } => write!(f, "over to a person: {text}"),
            Self::Resumed { note, .. } => f.write_str(note),
            Self::Closed { outcome, reason } => {
                f.write_str(match outcome {
                    Outcome::Healed => "healed",
                    Outcome::CameBack => "it came back without a remedy",
                    Outcome::LeftAlone => "left alone",
                })?;
                reason.map_or(Ok(()), |reason| write!(f, ": {reason}"))
            }
        }
    }
}
