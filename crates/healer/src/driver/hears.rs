//! What the loop hears: signals, lines of the journal, and what ran beside it.

use std::time::Duration;

use lares_units::port::{self, Event, EventKind, JobOutcome, UnitId};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Driver, Input};
use crate::clock;
use crate::diagnose::Cause;
use crate::facts::{Active, Facts, Load, Noticed};
use crate::hands::End;
use crate::moment::Now;
use crate::observe::Observed;
use crate::page::Page;
use crate::remedy::Step;
use crate::scholar::{self, Answer as Learnt, Unknown};
use crate::symptom::Symptom;
use crate::timeline::Event as Happening;

/// Pause before a look that failed is tried again.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// So often in a row facts are dropped because something was heard while they were gathered.
const OUTDATED: u32 = 3;
/// A model is asked so often about one incident: at its beginning, and when the unit fails in other words.
const DIAGNOSES: usize = 2;
/// What systemd says when a process of a unit was killed for want of memory, by the kernel or by systemd-oomd.
const OUT_OF_MEMORY: [&str; 2] = ["fe6faa94e7774663a0da52717891d8ef", "d989611b15e44c9dbf31e3c81256e4ed"];

impl Driver {
    pub(super) async fn hear(&mut self, event: Event) {
        let heard = event.heard;
        match event.kind {
            EventKind::Changed(change) => {
                let now = clock::now().moment;
                let noticed = match change.at {
                    Some(at) => {
                        let (began, ago) = clock::stamped(at);
                        let after = ago.saturating_sub(heard.elapsed());
                        let heard_after_us = (!change.found_late).then(|| micros(after));
                        Noticed { began, heard_after_us }
                    }
                    None => Noticed { began: now, heard_after_us: None },
                };
                let name = change.unit.to_string();
                let Some(unit) = self.units.get_mut(&name) else { return };
                let before = unit.active;
                let look = unit.changed(&change, noticed);
                let active = unit.active;
                self.dirty();
                if look {
                    self.look(&name);
                }
                if active == Active::Active && before != Active::Active {
                    self.probe_soon(&name);
                    self.look_at_dependents(&name);
                }
            }
            EventKind::JobRemoved { unit, outcome, .. } => {
                let name = unit.to_string();
                let Some(unit) = self.units.get_mut(&name) else { return };
                if outcome == JobOutcome::Dependency {
                    let began = clock::now().moment;
                    unit.see(Symptom::DependencyFailed, Noticed { began, heard_after_us: None });
                    self.look(&name);
                } else if self.ward.incident(&name).is_some() {
                    self.look(&name);
                }
            }
            // To look at a unit that is not there makes systemd load and forget it, which is told of again.
            EventKind::Appeared(unit) | EventKind::Gone(unit)
                if self.units.get(unit.as_str()).is_some_and(|unit| unit.load != Load::NotFound) =>
            {
                self.look(unit.as_str());
            }
            EventKind::Disconnected { reason } => {
                tracing::warn!(reason, "systemd cannot be heard; trying again until it can");
                self.hearing = false;
                self.dirty();
            }
            EventKind::Resynchronised { gap } => {
                tracing::info!(gap_ms = gap.as_millis(), "systemd can be heard again");
                self.hearing = true;
                self.compare_all().await;
            }
            EventKind::ReloadEnded | EventKind::Missed(_) => self.compare_all().await,
            _ => {}
        }
    }

    /// A line of the journal. Only what systemd itself says of a child that was killed is of interest while units are
    /// well; everything else is read when something is wrong.
    pub(super) fn read(&mut self, entry: &port::Entry) {
        let told = entry.origin == port::Origin::Manager
            && entry.field("MESSAGE_ID").is_some_and(|id| OUT_OF_MEMORY.contains(&id));
        let Some(unit) = entry.unit.as_ref().filter(|_| told).map(UnitId::to_string) else { return };
        if let Some(tracked) = self.units.get_mut(&unit).filter(|tracked| tracked.active == Active::Active) {
            let began = clock::now().moment;
            tracked.see(Symptom::OomKill { main: false }, Noticed { began, heard_after_us: None });
            self.look(&unit);
        }
    }

    pub(super) fn put_in(&mut self, input: Result<Input, tokio::task::JoinError>) {
        match input {
            Ok(Input::Seen { unit, seen, unknown_unit }) => self.seen(&unit, seen, unknown_unit),
            Ok(Input::Asked { unit, dry_run, by, seen, answer }) => self.asked(&unit, dry_run, &by, seen, answer),
            Ok(Input::Acted { incident, attempt, step, action, end }) => {
                self.acted(incident, attempt, step, &action, end);
            }
            Ok(Input::Probed { unit, answer }) => self.probed(&unit, answer),
            Ok(Input::Watched { unit, listed }) => {
                self.compare(&listed);
                // For what happened in between.
                self.look(&unit);
            }
            Err(error) => {
                // A fault of ours must not leave a unit without a watch.
                tracing::error!(%error, "a look, a probe or a step ended by a fault of the healer");
                self.looks = 0;
                self.probes = 0;
                for unit in self.units.values_mut() {
                    (unit.looking, unit.probing) = (false, false);
                }
                let all: Vec<String> = self.healed().map(str::to_owned).collect();
                all.iter().for_each(|unit| self.look(unit));
            }
        }
    }

    pub(super) fn seen(&mut self, name: &str, seen: Result<Observed, String>, unknown_unit: bool) {
        self.looks = self.looks.saturating_sub(1);
        let now = clock::now();
        let Some(unit) = self.units.get_mut(name) else { return };
        unit.looking = false;
        let again = std::mem::take(&mut unit.look_again);
        unit.outdated = if again { unit.outdated + 1 } else { 0 };
        match seen {
            // What was heard meanwhile is about a later state than these facts.
            Ok(_) if again && unit.outdated <= OUTDATED => {}
            Ok(observed) => {
                let unknown = Unknown::of(&observed.facts);
                let facts = self.completed(name, observed, &now);
                self.watch_what_it_needs(&facts);
                let (result, said) = (facts.result.clone(), facts.said.clone());
                let effects = self.ward.observed(facts, &now);
                self.take(effects);
                if let Some(unknown) = unknown {
                    self.study(name, unknown, result, said);
                }
            }
            Err(_) if unknown_unit => {
                let facts = Facts { load: Load::NotFound, active: Active::Inactive, ..Facts::healthy(name) };
                unit.load = Load::NotFound;
                unit.active = Active::Inactive;
                let effects = self.ward.observed(facts, &now);
                self.take(effects);
            }
            Err(why) => {
                tracing::warn!(unit = name, why, "cannot look at a unit; trying again");
                self.later.insert((Instant::now() + LOOK_AGAIN, name.to_owned()));
            }
        }
        if again {
            self.look(name);
        }
        self.dirty();
    }

    /// Facts as the ward gets them: what was looked up, and what is remembered.
    pub(super) fn completed(&mut self, name: &str, observed: Observed, now: &Now) -> Facts {
        let mut facts = observed.facts;
        for why in observed.unknown {
            tracing::debug!(unit = name, why, "not everything could be found out");
        }
        facts.told_port = self.told_port(name);
        self.clusters.rename(&mut facts);
        if let Some(unit) = self.units.get_mut(name) {
            unit.complete(&mut facts, now.moment);
        }
        facts
    }

    /// Has an unknown failure studied, once for each incident that it is seen in.
    pub(super) fn study(&mut self, name: &str, unknown: Unknown, result: String, said: Vec<String>) {
        let Some(incident) = self.ward.incident(name) else { return };
        let id = incident.id;
        let fingerprint = unknown.fingerprint.clone();
        let asked = self.diagnosed.get(&id);
        let asks = matches!(incident.cause(), Some(Cause::Crashed | Cause::CrashLoop))
            && self.parts.scholar.diagnoses()
            && asked.is_none_or(|asked| asked.len() < DIAGNOSES && !asked.contains(&fingerprint));
        if self.studied.get(&id) != Some(&fingerprint) && self.parts.scholar.study(unknown) {
            self.studied.insert(id, fingerprint.clone());
        }
        if asks && self.parts.scholar.ask(scholar::Case { incident: id, unit: name.to_owned(), result, lines: said }) {
            self.diagnosed.entry(id).or_default().insert(fingerprint);
        }
    }

    /// Something was found out about an unknown failure.
    pub(super) fn learnt(&mut self, answer: Learnt) {
        match answer {
            Learnt::Learned { fingerprint, cluster } => {
                let renamed = self.pages.values().map(Page::incident).filter(|open| open.known_as() == fingerprint);
                let units: Vec<String> = renamed.map(|open| open.unit.clone()).collect();
                self.clusters.learn(fingerprint, cluster);
                units.iter().for_each(|unit| self.look(unit));
            }
            Learnt::Diagnosed { incident, model, text } => {
                let effects = self.ward.note(incident, Happening::Diagnosed { model, text }, &clock::now());
                self.take(effects);
            }
        }
    }

    /// Units that take the port of this one from a variable.
    pub(super) fn told_port(&self, name: &str) -> Vec<String> {
        let told = self
            .units
            .iter()
            .filter(|(_, unit)| unit.config.as_ref().is_some_and(|config| config.port_variables.contains_key(name)));
        told.map(|(other, _)| other.clone()).collect()
    }

    pub(super) fn acted(&mut self, incident: Uuid, attempt: u32, step: usize, action: &Step, end: End) {
        let now = clock::now();
        if let (Step::SetPort { unit, to, .. }, End::Done) = (action, &end) {
            self.moved.insert(unit.clone(), *to);
        }
        let effects = match end {
            End::Done => self.ward.acted(incident, attempt, step, None, &now),
            End::Failed(why) => self.ward.acted(incident, attempt, step, Some(why), &now),
            End::Unseen(why) => {
                tracing::warn!(%incident, step = %action, why, "how a step went could not be seen");
                self.ward.lost_sight(incident, attempt, step, &now)
            }
        };
        self.take(effects);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
