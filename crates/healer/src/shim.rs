#![allow(missing_docs)]
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;
use lares_units::port::{ActiveState, Manager, ManagerError, UnitId};
use crate::classify::Classifier;
use crate::facts::{Active, Probe};
pub use crate::observe::Observed;
#[derive(Debug)]
pub struct Settings { pub units: BTreeMap<String, lares_config::HealedUnit> }
impl Settings { pub fn of(c: &lares_config::Config, _p: PathBuf) -> Self { Self { units: c.healer.units.clone() } } }
#[derive(Debug)]
pub struct Context { pub probes: BTreeMap<String, Probe>, pub paused: BTreeSet<String>, pub stopped_by_us: BTreeMap<String, String>, pub recent: Duration }
pub struct Observer<'a>(crate::observe::Observer<'a>);
impl<'a> Observer<'a> {
    pub fn new(m: &'a dyn Manager, c: &'a Classifier, s: &'a Settings) -> Self { Self(crate::observe::Observer::new(m, c, s.units.keys().cloned())) }
    pub async fn observe(&self, u: &UnitId, _c: &Context) -> Result<Observed, ManagerError> { self.0.observe(u).await }
}
pub fn active(state: &ActiveState) -> Active {
    match state {
        ActiveState::Active | ActiveState::Reloading | ActiveState::Refreshing => Active::Active,
        ActiveState::Inactive => Active::Inactive,
        ActiveState::Failed => Active::Failed,
        ActiveState::Deactivating => Active::Deactivating,
        _ => Active::Activating,
    }
}
