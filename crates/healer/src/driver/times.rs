//! What time brings: probes, looks that failed, pauses that end.

use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Input, PROBES};
use crate::facts::Active;
use crate::{clock, helper};

/// How often a unit that is to become well is probed.
const EAGER: Duration = Duration::from_millis(250);

impl Driver {
    pub(super) fn probe_soon(&mut self, name: &str) {
        if self.units.get(name).is_some_and(|unit| unit.active == Active::Active && unit.is_probed()) {
            self.due.retain(|(_, unit)| unit != name);
            self.due.insert((Instant::now(), name.to_owned()));
        }
    }

    pub(super) fn probed(&mut self, name: &str, answer: Result<(), String>) {
        let Some(unit) = self.units.get_mut(name) else { return };
        self.probes = self.probes.saturating_sub(1);
        let green = answer.is_ok();
        let look = unit.probed(answer, clock::now().moment);
        let (active, probe) = (unit.active, unit.config.as_ref().map(|config| config.probe.clone()));
        if look {
            self.look(name);
            if green {
                self.look_at_dependents(name);
            }
        }
        let Some(probe) = probe.filter(|_| active == Active::Active) else { return };
        let eager = !green && self.awaited(name);
        let pause = if eager { EAGER.min(probe.interval) } else { probe.interval };
        // Spread, so that many probes do not come together.
        let pause = pause.mul_f64(rand::random_range(0.95..1.0));
        self.due.insert((Instant::now() + pause, name.to_owned()));
        self.dirty();
    }

    /// The port that a unit was moved to, for as long as that holds.
    pub(super) fn where_it_is(&mut self, name: &str) -> Option<u16> {
        let moved = self.moved.get(name).copied()?;
        if helper::is_moved(name) {
            return Some(moved);
        }
        self.moved.remove(name);
        None
    }

    /// Whether somebody waits for this unit to become well.
    pub(super) fn awaited(&self, name: &str) -> bool {
        self.ward.incident(name).is_some()
            || self.pages.values().any(|page| self.ward.does_need(&page.incident().unit, name))
    }

    pub(super) fn on_time(&mut self, now: Instant) {
        while self.probes < PROBES
            && let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, name)) = self.due.pop_first()
        {
            let moved = self.where_it_is(&name);
            let Some(unit) = self.units.get_mut(&name) else { continue };
            let Some(probe) = unit.config.as_ref().map(|config| config.probe.clone()) else { continue };
            if unit.probing || unit.active != Active::Active {
                continue;
            }
            unit.probing = true;
            self.probes += 1;
            let prober = self.prober.clone();
            self.beside.spawn(async move {
                let answer = prober.ask(&probe, moved).await;
                Input::Probed { unit: name, answer }
            });
        }
        while let Some((at, _)) = self.later.first()
            && *at <= now
            && let Some((_, name)) = self.later.pop_first()
        {
            self.look(&name);
        }
        let moment = clock::now();
        if self.ward.next_tick().is_some_and(|at| at <= moment.moment) {
            let effects = self.ward.tick(&moment);
            self.take(effects);
        }
        let over: Vec<String> = self
            .pauses
            .values()
            .filter(|pause| pause.until.is_some_and(|until| until <= moment.wall))
            .map(|pause| pause.unit.clone())
            .collect();
        for unit in over {
            self.pauses.remove(&unit);
            self.look(&unit);
            self.dirty();
        }
    }
}
