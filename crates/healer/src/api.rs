//! What the healer's routes take and give; the command line uses the same types.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use lares_store::incidents;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use crate::facts::{Active, Load, Probe};
use crate::outlook::Outlook;

/// Longest a pause may last. Whoever wants a unit left alone for longer takes it out of the configuration.
pub const PAUSE_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Longest reason of a pause, in bytes.
pub const REASON_MAX: usize = 1000;

/// All units that are watched: `GET /api/v1/units`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Units {
    /// By name.
    pub units: Vec<WatchedUnit>,
    /// Whether this healer acts; if not, another one does on this machine and this one waits for it to end.
    pub acting: bool,
    /// Whether systemd can be heard; if not, nothing is known of what happens until it can.
    pub hearing: bool,
    /// Entries of timelines that wait for PostgreSQL, on disk.
    pub unshipped: u64,
}

/// One unit that is watched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct WatchedUnit {
    /// Its name.
    pub unit: String,
    /// `LoadState`.
    #[schema(value_type = String, example = "loaded")]
    pub load: Load,
    /// `ActiveState`; `reloading` counts as `active`.
    #[schema(value_type = String, example = "active")]
    pub active: Active,
    /// What its probe says: `state` is `none`, `pending`, `green`, or `red` with the failures in a row as `times`.
    #[schema(value_type = Object, example = json!({ "state": "green" }))]
    pub probe: Probe,
    /// Automatic restarts by the service manager since somebody started it.
    pub restarts: u32,
    /// Its open incident.
    pub incident: Option<Uuid>,
    /// What is done about that, in a word or a sentence.
    pub doing: Option<String>,
    /// Set while it is left alone.
    pub paused: Option<PausedUntil>,
}

/// A pause that is in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PausedUntil {
    /// Its end; unset: until it is resumed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// Who wants it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
}

/// Where an incident stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum IncidentState {
    /// What to do is to be decided.
    Open,
    /// Nothing is done for now.
    Held,
    /// A person is asked.
    Asking,
    /// A remedy is under way.
    Healing,
    /// Whether it helped shows now.
    Verifying,
    /// It has ended.
    Closed,
}

impl From<incidents::State> for IncidentState {
    fn from(state: incidents::State) -> Self {
        match state {
            incidents::State::Open => Self::Open,
            incidents::State::Held => Self::Held,
            incidents::State::Asking => Self::Asking,
            incidents::State::Healing => Self::Healing,
            incidents::State::Verifying => Self::Verifying,
            incidents::State::Closed => Self::Closed,
        }
    }
}

impl From<IncidentState> for incidents::State {
    fn from(state: IncidentState) -> Self {
        match state {
            IncidentState::Open => Self::Open,
            IncidentState::Held => Self::Held,
            IncidentState::Asking => Self::Asking,
            IncidentState::Healing => Self::Healing,
            IncidentState::Verifying => Self::Verifying,
            IncidentState::Closed => Self::Closed,
        }
    }
}

impl std::fmt::Display for IncidentState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        incidents::State::from(*self).fmt(f)
    }
}

/// One failure of one unit, as the last entry of its timeline left it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Incident {
    /// Its id.
    pub id: Uuid,
    /// The unit.
    pub unit: String,
    /// Where it stands.
    pub state: IncidentState,
    /// How it ended: `healed`, `came_back` (without a remedy) or `left_alone`; set when it is closed.
    pub outcome: Option<String>,
    /// Pattern, or fingerprint of an unknown failure; empty: neither.
    pub known_as: String,
    /// The cause, in a sentence; empty until one was looked for.
    pub cause: String,
    /// What it has in common with other incidents: the failed dependency or the new generation they share.
    #[schema(value_type = Option<Object>)]
    pub shared: Option<serde_json::Value>,
    /// Whether a person was told.
    pub needs_person: bool,
    /// When it began.
    #[schema(value_type = String, format = DateTime)]
    pub opened_at: Timestamp,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub closed_at: Option<Timestamp>,
    /// Milliseconds from its beginning until the unit was up again, once that is verified.
    pub recovered_ms: Option<i64>,
}

impl From<incidents::Incident> for Incident {
    fn from(incident: incidents::Incident) -> Self {
        Self {
            id: incident.id,
            unit: incident.unit,
            state: incident.state.into(),
            outcome: incident.outcome,
            known_as: incident.known_as,
            cause: incident.cause,
            shared: incident.shared,
            needs_person: incident.needs_person,
            opened_at: incident.opened_at,
            closed_at: incident.closed_at,
            recovered_ms: incident.recovered_ms,
        }
    }
}

/// An incident with its story: `GET /api/v1/incidents/{id}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IncidentDetail {
    /// The incident.
    #[serde(flatten)]
    pub incident: Incident,
    /// What happened, the first entry first.
    pub timeline: Vec<TimelineEntry>,
}

/// One entry of a timeline.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TimelineEntry {
    /// Its place, from 1 on without a gap.
    pub seq: i32,
    /// When it was written.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// Milliseconds since the incident began.
    pub ms: i64,
    /// What it is about: `symptoms`, `evidence`, `considered`, `held`, `proposed`, `diagnosed`, `asked`, `answered`,
    /// `decided`, `acting`, `acted`, `verified`, `not_verified`, `handed_over`, `resumed` or `closed`.
    pub kind: String,
    /// A line for a person.
    pub message: String,
    /// The same for a program.
    #[schema(value_type = Object)]
    pub data: serde_json::Value,
}

impl From<incidents::Entry> for TimelineEntry {
    fn from(entry: incidents::Entry) -> Self {
        Self { seq: entry.seq, at: entry.at, ms: entry.ms, kind: entry.kind, message: entry.message, data: entry.data }
    }
}

/// Which incidents to list: the query of `GET /api/v1/incidents`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ListIncidents {
    /// Only of this unit; `.service` may be left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Only in this state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[param(inline)]
    pub state: Option<IncidentState>,
    /// Only those that have not ended.
    #[serde(default)]
    pub open: bool,
    /// Only those that a person was told of.
    #[serde(default)]
    pub needs_person: bool,
    /// Only those older than this one (its id); for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Uuid>,
    /// At most so many, 1 to 1000. Unset: 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

/// Incidents of this machine, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct IncidentList {
    /// The incidents of this page.
    pub incidents: Vec<Incident>,
    /// `before` of the next page; unset on the last one.
    pub next_before: Option<Uuid>,
}

/// What is wrong with a unit and what follows: `POST /api/v1/heal/{unit}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Healing {
    /// What was found, the decision, its steps, and the facts it follows from.
    #[serde(flatten)]
    #[schema(value_type = Object)]
    pub outlook: Outlook,
    /// The incident that is open for it now. Its timeline goes on from here.
    pub incident: Option<Uuid>,
}

/// The query of `POST /api/v1/heal/{unit}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct HealQuery {
    /// Only say what would be done.
    #[serde(default)]
    pub dry_run: bool,
}

/// Why and for how long: the body of `POST /api/v1/units/{unit}/pause`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// For how long, such as `1h`, at most 366 days. Unset: until it is resumed.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub lasting: Option<String>,
    /// Why, for whoever wonders later; at most 1000 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A pause: `POST /api/v1/units/{unit}/pause`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pause {
    /// The unit that is left alone.
    pub unit: String,
    /// Until when; unset: until it is resumed.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub until: Option<Timestamp>,
    /// Who wants it.
    pub by: String,
    /// Why; may be empty.
    pub reason: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

impl From<incidents::Pause> for Pause {
    fn from(pause: incidents::Pause) -> Self {
        Self { unit: pause.unit, until: pause.until, by: pause.by, reason: pause.reason, since: pause.since }
    }
}

/// The end of a pause: `POST /api/v1/units/{unit}/resume`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Resumed {
    /// The unit.
    pub unit: String,
    /// Whether there was a pause to end.
    pub was_paused: bool,
}

/// How well healing does: `GET /api/v1/statistics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Statistics {
    /// Units that are watched now.
    pub units: usize,
    /// Incidents that began within the last 24 hours.
    pub last_day: Period,
    /// Incidents that began within the last 30 days.
    pub last_month: Period,
    /// What each remedy is worth, since the first start.
    pub remedies: Vec<RemedyStatistics>,
}

/// What came of the incidents of a while.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Period {
    /// Incidents that began in it.
    pub incidents: i64,
    /// Those of them that have not ended.
    pub open: i64,
    /// Those of them that a person was told of.
    pub needs_person: i64,
    /// Those of them that have ended, by outcome.
    pub outcomes: BTreeMap<String, i64>,
    /// By pattern or fingerprint, the most frequent first, at most 100.
    pub patterns: Vec<PatternStatistics>,
}

impl From<incidents::Statistics> for Period {
    fn from(statistics: incidents::Statistics) -> Self {
        Self {
            incidents: statistics.incidents,
            open: statistics.open,
            needs_person: statistics.needs_person,
            outcomes: statistics.outcomes,
            patterns: statistics.patterns.into_iter().map(Into::into).collect(),
        }
    }
}

/// What came of the incidents that are known by one name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PatternStatistics {
    /// Pattern, or fingerprint of an unknown failure; empty: neither.
    pub known_as: String,
    /// Incidents.
    pub incidents: i64,
    /// Those of them that a remedy healed.
    pub healed: i64,
    /// Remedies that helped, and that was verified.
    pub helped: i64,
    /// Remedies that did not help.
    pub failed: i64,
    /// Share of the remedies that helped, 0 to 1; unset before one was tried.
    pub success_rate: Option<f64>,
    /// Milliseconds from the beginning of an incident until the unit was up again, median of those healed.
    pub recovered_median_ms: Option<f64>,
    /// 95 of 100 took no longer.
    pub recovered_p95_ms: Option<f64>,
    /// Milliseconds from systemd's own stamp of the first symptom until the healer heard of it, median.
    pub detected_median_ms: Option<f64>,
    /// 95 of 100 took no longer.
    pub detected_p95_ms: Option<f64>,
}

impl From<incidents::PatternStatistics> for PatternStatistics {
    fn from(found: incidents::PatternStatistics) -> Self {
        let ms = |us: Option<f64>| us.map(|us| us / 1000.0);
        Self {
            success_rate: rate(found.helped, found.failed),
            known_as: found.known_as,
            incidents: found.incidents,
            healed: found.healed,
            helped: found.helped,
            failed: found.failed,
            recovered_median_ms: found.recovered_median_ms,
            recovered_p95_ms: found.recovered_p95_ms,
            detected_median_ms: ms(found.detected_median_us),
            detected_p95_ms: ms(found.detected_p95_us),
        }
    }
}

/// What a remedy is worth against one failure of one unit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RemedyStatistics {
    /// The unit.
    pub unit: String,
    /// Pattern, or fingerprint of an unknown failure; empty: neither.
    pub known_as: String,
    /// Name of the remedy.
    pub remedy: String,
    /// Times it helped, and that was verified.
    pub helped: i32,
    /// Times it did not.
    pub failed: i32,
    /// Share of the times it helped, 0 to 1; unset before it was tried.
    pub success_rate: Option<f64>,
    /// Whether a person allowed it against this unknown failure.
    pub approved: bool,
}

impl From<incidents::Stat> for RemedyStatistics {
    fn from(stat: incidents::Stat) -> Self {
        Self {
            success_rate: rate(stat.helped.into(), stat.failed.into()),
            unit: stat.unit,
            known_as: stat.known_as,
            remedy: stat.remedy,
            helped: stat.helped,
            failed: stat.failed,
            approved: stat.approved,
        }
    }
}

/// Counts are far below what a float holds exactly.
fn rate(helped: i64, failed: i64) -> Option<f64> {
    let all = helped.saturating_add(failed);
    (all > 0).then(|| helped as f64 / all as f64)
}

/// A unit's name as `systemctl` takes it: without a kind it is a service.
pub fn full_name(name: &str) -> String {
    const KINDS: [&str; 11] =
        ["service", "socket", "target", "timer", "mount", "automount", "swap", "path", "slice", "scope", "device"];
    match name.rsplit_once('.') {
        Some((_, kind)) if KINDS.contains(&kind) => name.to_owned(),
        _ => format!("{name}.service"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_without_a_kind_is_a_service() {
        for (given, meant) in
            [("app", "app.service"), ("app.service", "app.service"), ("a.b", "a.b.service"), ("x.timer", "x.timer")]
        {
            assert_eq!(full_name(given), meant);
        }
    }

    #[test]
    fn a_pause_is_asked_for_with_the_words_of_the_command_line() {
        let request: PauseRequest = serde_json::from_str(r#"{"for":"1h","reason":"upgrade"}"#).unwrap();
        assert_eq!(request.lasting.as_deref(), Some("1h"));
        assert_eq!(serde_json::from_str::<PauseRequest>("{}").unwrap(), PauseRequest::default());
        assert!(serde_json::from_str::<PauseRequest>(r#"{"until":"tomorrow"}"#).is_err());
    }

    #[test]
    fn a_rate_is_known_after_the_first_try() {
        assert_eq!((rate(0, 0), rate(3, 1), rate(0, 2)), (None, Some(0.75), Some(0.0)));
    }
}
