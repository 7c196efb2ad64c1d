//! What helped before: counts per unit, pattern and remedy, and what follows from them for unknown failures.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::timeline::Event;

/// How often a remedy helped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Count {
    /// Times it was verified.
    pub helped: u32,
    /// Times it was not.
    pub failed: u32,
    /// Whether a person allowed it.
    pub approved: bool,
}

impl Count {
    /// Share of the times it helped; `None` before it was tried.
    pub fn rate(&self) -> Option<f64> {
        let all = self.helped.saturating_add(self.failed);
        (all > 0).then(|| f64::from(self.helped) / f64::from(all))
    }
}

/// The counts.
#[derive(Debug, Clone, Default)]
pub struct Lessons {
    /// By unit, then pattern or fingerprint, then remedy.
    counts: BTreeMap<String, BTreeMap<String, BTreeMap<String, Count>>>,
    /// So many successes make a remedy trusted without a person.
    approve_after: u32,
}

impl Lessons {
    /// Nothing is known yet. `approve_after` is at least 1.
    pub fn new(approve_after: u32) -> Self {
        Self { counts: BTreeMap::new(), approve_after: approve_after.max(1) }
    }

    /// What is known of one remedy, to be read, set from the store, or approved.
    pub fn count(&mut self, unit: &str, known_as: &str, remedy: &str) -> &mut Count {
        let of_unit = self.counts.entry(unit.to_owned()).or_default();
        of_unit.entry(known_as.to_owned()).or_default().entry(remedy.to_owned()).or_default()
    }

    /// Learns from an event of a timeline; only verified and not verified teach anything.
    pub fn hear(&mut self, unit: &str, event: &Event) {
        match event {
            Event::Verified { remedy, known_as, .. } => self.count(unit, known_as, remedy.name()).helped += 1,
            Event::NotVerified { remedy, known_as, .. } => self.count(unit, known_as, remedy.name()).failed += 1,
            _ => {}
        }
    }

    /// The remedy with the best rate against a failure, and whether it may be used without asking. One that never
    /// helped is none.
    pub fn best(&self, unit: &str, known_as: &str) -> Option<(&str, bool)> {
        let known = self.counts.get(unit)?.get(known_as)?;
        let rate = |count: &Count| count.rate().unwrap_or(0.0);
        let (remedy, count) = known
            .iter()
            .filter(|(_, count)| count.helped > 0)
            .max_by(|(_, a), (_, b)| rate(a).total_cmp(&rate(b)).then(a.helped.cmp(&b.helped)))?;
        Some((remedy, count.approved || count.helped >= self.approve_after))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::remedy::Remedy;

    fn verified() -> Event {
        let remedy = Remedy::RestartDependencies { units: vec!["db.service".into()] };
        Event::Verified { attempt: 1, remedy, known_as: "f1".into(), up_ms: 5 }
    }

    #[test]
    fn a_remedy_is_a_proposal_until_it_helped_often_enough() {
        let mut lessons = Lessons::new(3);
        assert_eq!(lessons.best("a", "f1"), None);
        lessons.hear("a", &verified());
        lessons.hear("a", &verified());
        assert_eq!(lessons.best("a", "f1"), Some(("restart_dependencies", false)));
        lessons.hear("a", &verified());
        assert_eq!(lessons.best("a", "f1"), Some(("restart_dependencies", true)));
        assert_eq!(lessons.best("b", "f1"), None);
    }

    #[test]
    fn a_person_may_approve_earlier_and_the_better_rate_wins() {
        let mut lessons = Lessons::new(3);
        lessons.hear("a", &verified());
        lessons.count("a", "f1", "restart_dependencies").approved = true;
        *lessons.count("a", "f1", "restart") = Count { helped: 2, failed: 2, approved: false };
        assert_eq!(lessons.best("a", "f1"), Some(("restart_dependencies", true)));
        assert_eq!(lessons.count("a", "f1", "restart").rate(), Some(0.5));
        let why = "died again".to_owned();
        lessons.hear("a", &Event::NotVerified { attempt: 2, remedy: Remedy::Restart, known_as: "f2".into(), why });
        assert_eq!(lessons.best("a", "f2"), None);
    }
}
