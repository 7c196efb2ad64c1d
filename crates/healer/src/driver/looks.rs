//! Looking at units: when, and with what is known of them.

use std::sync::Arc;
use std::time::Duration;

use lares_store::incidents::Pause;
use lares_units::port::{Listed, LoadState, ManagerError, UnitId};
use tokio::time::timeout;

use super::{Driver, Input, LOOK_LIMIT};
use crate::facts::{Facts, Load};
use crate::observe::{self, Context, Observed, Observer};
use crate::track::Tracked;

/// Looks at the same time: each asks systemd twice and reads the end of a journal.
const LOOKS: usize = 16;

impl Driver {
    /// Has a unit looked at soon; several wishes to look are one.
    pub(super) fn look(&mut self, name: &str) {
        let Some(unit) = self.units.get_mut(name).filter(|unit| unit.config.is_some()) else { return };
        if unit.looking {
            unit.look_again = true;
        } else {
            unit.looking = true;
            self.queue.push_back(name.to_owned());
        }
    }

    pub(super) fn begin_looks(&mut self) {
        while self.looks < LOOKS
            && let Some(name) = self.queue.pop_front()
        {
            let Some(unit) = self.units.get(&name) else { continue };
            self.looks += 1;
            let look = self.observation(unit.id.clone());
            self.beside.spawn(async move {
                let seen = look.await;
                let unknown_unit = matches!(seen, Err(ManagerError::Unknown(_)));
                Input::Seen { unit: name, seen: seen.map_err(|error| error.to_string()), unknown_unit }
            });
        }
    }

    pub(super) fn observation(
        &self,
        unit: UnitId,
    ) -> impl Future<Output = Result<Observed, ManagerError>> + Send + 'static {
        let manager = Arc::clone(&self.parts.manager);
        let classifier = Arc::clone(&self.parts.classifier);
        let settings = Arc::clone(&self.parts.settings);
        let now = jiff::Timestamp::now();
        let in_force = |pause: &&Pause| pause.until.is_none_or(|until| until > now);
        let context = Context {
            probes: self.units.iter().map(|(name, unit)| (name.clone(), unit.probe)).collect(),
            paused: self.pauses.values().filter(in_force).map(|pause| pause.unit.clone()).collect(),
            stopped_by_us: self
                .units
                .iter()
                .filter_map(|(name, unit)| Some((name.clone(), unit.stopped.clone()?)))
                .collect(),
            recent: self.parts.policies.get(unit.as_str()).map_or(Duration::from_secs(10), |policy| policy.verify_hold),
        };
        async move {
            let observer = Observer::new(&*manager, &classifier, &settings);
            match timeout(LOOK_LIMIT, observer.observe(&unit, &context)).await {
                Ok(seen) => seen,
                Err(_) => Err(ManagerError::Unavailable(format!(
                    "looking at {unit} took longer than {} s",
                    LOOK_LIMIT.as_secs()
                ))),
            }
        }
    }

    /// Those that need a unit and wait for it.
    pub(super) fn look_at_dependents(&mut self, name: &str) {
        let waiting: Vec<String> = self
            .healed()
            .filter(|unit| *unit != name && self.ward.incident(unit).is_some())
            .map(str::to_owned)
            .collect();
        for unit in waiting {
            if self.ward.does_need(&unit, name) {
                if let Some(unit) = self.units.get_mut(&unit) {
                    unit.gets_time();
                }
                self.look(&unit);
            }
        }
    }

    /// Units that it turns out to need are listened to, too.
    pub(super) fn watch_what_it_needs(&mut self, facts: &Facts) {
        let new: Vec<UnitId> = facts
            .dependencies
            .iter()
            .filter(|needed| !self.units.contains_key(&needed.unit))
            .filter_map(|needed| UnitId::new(needed.unit.as_str()).ok())
            .collect();
        self.ward.needs(&facts.unit, facts.dependencies.iter().map(|needed| needed.unit.clone()).collect());
        for needed in &facts.dependencies {
            self.ward.needs(&needed.unit, needed.needs.clone());
        }
        if new.is_empty() {
            return;
        }
        for id in &new {
            self.units.insert(id.to_string(), Tracked::new(id.clone(), None, Duration::ZERO));
        }
        let manager = Arc::clone(&self.parts.manager);
        let unit = facts.unit.clone();
        self.beside.spawn(async move {
            // What cannot be watched now is compared by the backstop.
            let listed = manager.watch(&new).await.unwrap_or_default();
            Input::Watched { unit, listed }
        });
    }

    /// Compares what is remembered with what the service manager says, in one question.
    pub(super) async fn compare_all(&mut self) {
        let ids = self.watched();
        match self.parts.manager.watch(&ids).await {
            Ok(listed) => {
                self.compare(&listed);
                let held: Vec<String> = self.pages.values().map(|page| page.incident().unit.clone()).collect();
                held.iter().for_each(|unit| self.look(unit));
            }
            Err(error) => tracing::debug!(%error, "units cannot be compared now"),
        }
    }

    pub(super) fn compare(&mut self, listed: &[Listed]) {
        let mut odd = Vec::new();
        for found in listed {
            let name = found.unit.to_string();
            let Some(unit) = self.units.get_mut(&name) else { continue };
            let active = observe::active(&found.standing.active);
            let was = std::mem::replace(&mut unit.active, active);
            let other = |ours, theirs| (unit.load == ours) != (found.load == theirs);
            if was != active || other(Load::Masked, LoadState::Masked) || other(Load::NotFound, LoadState::NotFound) {
                odd.push(name);
            }
        }
        for name in odd {
            self.look(&name);
            self.probe_soon(&name);
        }
    }
}
