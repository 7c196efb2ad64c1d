//! Timelines on their way to the store and back.

use jiff::{SignedDuration, Timestamp};
use lares_store::incidents::{self, Lesson, State};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::incident::{Incident, Phase};
use crate::moment::Moment;
use crate::timeline::{Entry, Event, Outcome};

/// An incident as the store lists it, kept up to date entry by entry.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    incident: Incident,
    opened_at: Option<Timestamp>,
    closed_at: Option<Timestamp>,
    recovered_ms: Option<u64>,
    shared: Option<serde_json::Value>,
}

impl Page {
    pub(crate) fn new(id: Uuid, unit: &str) -> Self {
        let incident = Incident::new(id, unit, Moment::default());
        Self { incident, opened_at: None, closed_at: None, recovered_ms: None, shared: None }
    }

    pub(crate) fn add(&mut self, entry: &Entry) {
        if self.opened_at.is_none() {
            let before = SignedDuration::from_millis(i64::try_from(entry.ms).unwrap_or(0));
            self.opened_at = Some(entry.at.checked_sub(before).unwrap_or(entry.at));
        }
        match &entry.event {
            Event::Considered { shared, .. } => {
                self.shared = shared.as_ref().and_then(|shared| serde_json::to_value(shared).ok());
            }
            Event::Verified { up_ms, .. } => self.recovered_ms = Some(*up_ms),
            Event::Closed { .. } => self.closed_at = Some(entry.at),
            _ => {}
        }
        self.incident.apply(entry);
    }

    /// Whether nothing follows any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed_at.is_some()
    }

    pub(crate) fn incident(&self) -> &Incident {
        &self.incident
    }

    /// As the store lists it.
    pub(crate) fn row(&self) -> incidents::Incident {
        let (state, outcome) = match self.incident.phase() {
            Phase::Open => (State::Open, None),
            Phase::Held { .. } => (State::Held, None),
            Phase::Asking { .. } => (State::Asking, None),
            Phase::Approved { .. } | Phase::Decided { .. } | Phase::Acting { .. } => (State::Healing, None),
            Phase::Verifying { .. } => (State::Verifying, None),
            Phase::Closed(outcome) => (State::Closed, Some(named(*outcome).to_owned())),
        };
        incidents::Incident {
            id: self.incident.id,
            unit: self.incident.unit.clone(),
            state,
            outcome,
            known_as: self.incident.known_as().to_owned(),
            cause: self.incident.cause().map(ToString::to_string).unwrap_or_default(),
            shared: self.shared.clone(),
            needs_person: self.incident.needs_person(),
            opened_at: self.opened_at.unwrap_or_default(),
            closed_at: self.closed_at,
            recovered_ms: self.recovered_ms.map(|ms| i64::try_from(ms).unwrap_or(i64::MAX)),
        }
    }
}

/// The name an outcome has in the store and in metrics.
pub(crate) const fn named(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Healed => "healed",
        Outcome::CameBack => "came_back",
        Outcome::LeftAlone => "left_alone",
    }
}

/// Entries that were written together, with the incident as they leave it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Line {
    /// As the store lists it.
    pub(crate) incident: incidents::Incident,
    /// Boot that wrote them.
    pub(crate) boot: Uuid,
    /// In order.
    pub(crate) entries: Vec<Entry>,
}

impl Line {
    /// The entries for the store, each with what it teaches.
    pub(crate) fn rows(&self) -> Result<Vec<incidents::Entry>, serde_json::Error> {
        self.entries.iter().map(|entry| row(entry, self.boot)).collect()
    }
}

fn row(entry: &Entry, boot: Uuid) -> Result<incidents::Entry, serde_json::Error> {
    let lesson = match &entry.event {
        Event::Verified { remedy, known_as, .. } => Some((remedy, known_as, true)),
        Event::NotVerified { remedy, known_as, .. } => Some((remedy, known_as, false)),
        _ => None,
    };
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    Ok(incidents::Entry {
        seq: i32::try_from(entry.seq).unwrap_or(i32::MAX),
        at: entry.at,
        boot,
        boot_ms: signed(entry.moment.as_millis()),
        ms: signed(entry.ms),
        kind: entry.event.kind().to_owned(),
        message: entry.event.to_string(),
        data: serde_json::to_value(&entry.event)?,
        lesson: lesson.map(|(remedy, known_as, helped)| Lesson {
            known_as: known_as.clone(),
            remedy: remedy.name().to_owned(),
            helped,
        }),
    })
}

/// An entry as it was before it went to the store.
pub(crate) fn from_row(row: &incidents::Entry) -> Result<Entry, serde_json::Error> {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Entry {
        seq: u32::try_from(row.seq).unwrap_or(0),
        at: row.at,
        moment: Moment::from_millis(unsigned(row.boot_ms)),
        ms: unsigned(row.ms),
        event: serde_json::from_value(row.data.clone())?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::diagnose::Cause;
    use crate::remedy::{Remedy, Step};
    use crate::symptom::Symptom;
    use crate::timeline::Plan;

    fn timeline() -> Vec<Entry> {
        let unit = || "app.service".to_owned();
        let plan = Plan { attempt: 1, remedy: Remedy::Restart, steps: vec![Step::Start { unit: unit() }] };
        let events = vec![
            Event::Symptoms { symptoms: vec![Symptom::Signal { signal: 9 }], heard_after_us: Some(1500) },
            Event::Considered { cause: Cause::Crashed, shared: None },
            Event::Decided(plan.clone()),
            Event::Acting { attempt: 1, step: 0, action: Step::Start { unit: unit() }, invocation: "a".into() },
            Event::Acted { attempt: 1, step: 0, error: None },
            Event::Verified { attempt: 1, remedy: Remedy::Restart, known_as: "f1".into(), up_ms: 230 },
            Event::Closed { outcome: Outcome::Healed, reason: None },
        ];
        let at = Timestamp::from_second(1_800_000_000).unwrap();
        let entry = |(n, event): (u64, Event)| Entry {
            seq: u32::try_from(n).unwrap() + 1,
            at: at + SignedDuration::from_millis(i64::try_from(n * 100).unwrap()),
            moment: Moment::from_millis(5000 + n * 100),
            ms: 50 + n * 100,
            event,
        };
        (0..).zip(events).map(entry).collect()
    }

    #[test]
    fn every_entry_comes_back_from_the_store_as_it_went() {
        for entry in timeline() {
            assert_eq!(from_row(&row(&entry, Uuid::nil()).unwrap()).unwrap(), entry);
            let line = serde_json::to_string(&entry).unwrap();
            assert_eq!(serde_json::from_str::<Entry>(&line).unwrap(), entry);
        }
    }

    #[test]
    fn a_page_tells_where_an_incident_stands() {
        let mut page = Page::new(Uuid::from_u128(1), "app.service");
        let mut states = Vec::new();
        for entry in timeline() {
            page.add(&entry);
            states.push(page.row().state.as_str());
        }
        assert_eq!(states, ["open", "open", "healing", "healing", "verifying", "verifying", "closed"]);
        let row = page.row();
        assert_eq!((row.outcome.as_deref(), row.recovered_ms), (Some("healed"), Some(230)));
        assert_eq!(row.opened_at, timeline()[0].at - SignedDuration::from_millis(50));
        assert!(page.is_closed() && !row.needs_person);
    }

    #[test]
    fn lessons_are_what_was_verified_and_what_was_not() {
        let lessons: Vec<_> = timeline().iter().filter_map(|entry| row(entry, Uuid::nil()).unwrap().lesson).collect();
        assert_eq!(lessons.len(), 1);
        assert!(lessons[0].helped && lessons[0].remedy == "restart" && lessons[0].known_as == "f1");
    }
}
