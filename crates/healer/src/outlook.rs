//! What would be done about a unit as it is now, for a person to read.

use serde::{Deserialize, Serialize};

use crate::decide::{Decision, History, Policy, decide};
use crate::diagnose::{Cause, diagnose};
use crate::facts::Facts;
use crate::observe::Observed;
use crate::remedy::Step;

/// What is wrong with a unit, and what that leads to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outlook {
    /// The cause.
    pub cause: Cause,
    /// The same in a sentence.
    pub explanation: String,
    /// What follows from it.
    pub decision: Decision,
    /// The steps of each remedy of the decision, the first one first.
    pub steps: Vec<Vec<Step>>,
    /// What a person can do.
    pub advice: Option<String>,
    /// What it was concluded from.
    pub facts: Facts,
    /// What could not be found out, and why.
    pub unknown: Vec<String>,
}

impl Outlook {
    /// Concludes. Bounds (cooldowns, budgets, chains) are not looked at: they only say when.
    pub fn of(seen: Observed, policy: &Policy, history: &History<'_>) -> Self {
        let Observed { facts, unknown } = seen;
        let cause = diagnose(&facts, policy);
        let decision = decide(&facts, &cause, policy, history);
        let steps = match &decision {
            Decision::Act { ladder, .. } => ladder.iter().map(|remedy| remedy.steps(&facts)).collect(),
            Decision::Ask { remedy } => vec![remedy.steps(&facts)],
            Decision::Hold { .. } => Vec::new(),
        };
        Self {
            explanation: cause.to_string(),
            advice: cause.advice(&facts.unit),
            cause,
            decision,
            steps,
            facts,
            unknown,
        }
    }
}
