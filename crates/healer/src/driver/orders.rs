//! What people want: orders over HTTP, pauses and approvals.

use std::collections::BTreeMap;

use lares_store::incidents::{Pause, Stat};
use uuid::Uuid;

use super::{Answer, Driver, Input};
use crate::clock;
use crate::desk::{Order, Refusal};
use crate::incident::Phase;
use crate::keeper::{Known, News};
use crate::moment::Moment;
use crate::observe::Observed;
use crate::outlook::Outlook;

impl Driver {
    pub(super) fn order(&mut self, order: Order) {
        match order {
            Order::Heal { unit, dry_run, by, answer } => {
                let Some(tracked) = self.units.get(&unit).filter(|tracked| tracked.config.is_some()) else {
                    // Whoever asked may be gone.
                    let _ = answer.send(Err(Refusal::NotWatched(unit)));
                    return;
                };
                let look = self.observation(tracked.id.clone());
                self.beside.spawn(async move {
                    let seen = look.await.map_err(|error| error.to_string());
                    Input::Asked { unit, dry_run, by, seen, answer }
                });
            }
            Order::Answer { incident, approved, by, answer } => {
                let _ = answer.send(self.answer(incident, approved, &by));
            }
            Order::Wishes => self.parts.wishes.notify_one(),
            // Whoever asked may be gone.
            Order::Pulse { answer } => drop(answer.send(())),
        }
    }

    pub(super) fn answer(&mut self, incident: Uuid, approved: bool, by: &str) -> Result<(), Refusal> {
        let page = self.pages.get(&incident).ok_or(Refusal::NotOpen(incident))?;
        let open = self.ward.incident(&page.incident().unit).filter(|open| open.id == incident);
        match open.ok_or(Refusal::NotOpen(incident))?.phase() {
            Phase::Open | Phase::Held { .. } | Phase::Asking { .. } => {
                let effects = self.ward.answered(incident, approved, by, &clock::now());
                self.take(effects);
                Ok(())
            }
            _ => Err(Refusal::UnderWay(incident)),
        }
    }

    pub(super) fn asked(
        &mut self,
        name: &str,
        dry_run: bool,
        by: &str,
        seen: Result<Observed, String>,
        answer: Answer<Outlook>,
    ) {
        let now = clock::now();
        let outlook = match seen {
            Ok(observed) if dry_run => {
                let mut facts = observed.facts.clone();
                if let Some(unit) = self.units.get(name) {
                    facts.probe = unit.probe;
                }
                self.clusters.rename(&mut facts);
                self.outlook(Observed { facts, ..observed }, now.moment)
            }
            Ok(observed) => {
                let unknown = observed.unknown.clone();
                let facts = self.completed(name, observed, &now);
                let outlook = self.outlook(Observed { facts: facts.clone(), unknown }, now.moment);
                let effects = match self.ward.incident(name) {
                    // A question stays a question: to heal is not to agree.
                    Some(incident) if matches!(incident.phase(), Phase::Open | Phase::Held { .. }) => {
                        let id = incident.id;
                        self.ward.answered(id, true, by, &now)
                    }
                    _ => self.ward.observed(facts, &now),
                };
                self.take(effects);
                outlook
            }
            Err(why) => Err(Refusal::Manager(why)),
        };
        let _ = answer.send(outlook);
    }

    pub(super) fn outlook(&self, observed: Observed, now: Moment) -> Result<Outlook, Refusal> {
        let name = observed.facts.unit.clone();
        self.ward.outlook(observed, now).ok_or(Refusal::NotWatched(name))
    }

    pub(super) fn news(&mut self, news: News) {
        match news {
            News::Known(known) => {
                // Incidents of the store are taken up at the start only; what is open now is in the book.
                let Known { pauses, stats, clusters, bad, .. } = *known;
                self.wishes(pauses, &stats);
                self.clusters.load(clusters);
                bad.into_iter().for_each(|generation| self.ward.was_proposed(generation));
            }
            News::Wishes { pauses, stats } => self.wishes(pauses, &stats),
        }
    }

    pub(super) fn wishes(&mut self, pauses: Vec<Pause>, stats: &[Stat]) {
        for stat in stats {
            let count = self.ward.lessons().count(&stat.unit, &stat.known_as, &stat.remedy);
            let counted = |number: i32| u32::try_from(number).unwrap_or(0);
            count.helped = count.helped.max(counted(stat.helped));
            count.failed = count.failed.max(counted(stat.failed));
            count.approved = stat.approved;
        }
        self.parts.pauses.write(&pauses);
        let pauses: BTreeMap<String, Pause> = pauses.into_iter().map(|pause| (pause.unit.clone(), pause)).collect();
        let changed: Vec<String> = self
            .pauses
            .keys()
            .chain(pauses.keys())
            .filter(|unit| self.pauses.get(*unit) != pauses.get(*unit))
            .cloned()
            .collect();
        self.pauses = pauses;
        for unit in changed {
            self.look(&unit);
        }
        self.dirty();
    }
}
