//! What the healer counts, for `/metrics`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::watch;

use crate::desk::Board;
use crate::timeline::{Event, Outcome};

/// Upper bounds in seconds of the time to detect: from a signal over D-Bus to a machine that is busy.
const DETECT: [f64; 11] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0];
/// Upper bounds in seconds of the time to recover: from a small program to a large model that is loaded from disk.
const RECOVER: [f64; 13] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 60.0, 180.0, 600.0];

/// Label of failures that no pattern knows: fingerprints would be a series for each.
const UNKNOWN: &str = "unknown";
/// Label of failures of which nothing was found that could be known.
const NONE: &str = "none";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct IncidentLabels {
    outcome: &'static str,
    pattern: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RemedyLabels {
    remedy: &'static str,
    helped: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PatternLabels {
    pattern: String,
}

/// Counters of what happened. Clones count together.
#[derive(Debug, Clone)]
pub(crate) struct HealerMetrics {
    patterns: Arc<BTreeSet<String>>,
    incidents: Family<IncidentLabels, Counter>,
    remedies: Family<RemedyLabels, Counter>,
    detect: Histogram,
    recover: Family<PatternLabels, Histogram, fn() -> Histogram>,
}

impl HealerMetrics {
    /// `patterns`: the names that become labels of their own.
    pub(crate) fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            patterns: Arc::new(patterns.into_iter().map(str::to_owned).collect()),
            incidents: Family::default(),
            remedies: Family::default(),
            detect: Histogram::new(DETECT),
            recover: Family::new_with_constructor(|| Histogram::new(RECOVER)),
        }
    }

    /// Makes them, and what the board shows, part of a daemon's metrics.
    pub(crate) fn register(&self, metrics: &lares_gate::Metrics, board: watch::Receiver<Arc<Board>>) {
        metrics.register(|registry| {
            registry.register("healer_incidents", "Incidents ended, by outcome and pattern", self.incidents.clone());
            registry.register("healer_remedies", "Remedies tried, and whether they helped", self.remedies.clone());
            registry.register(
                "healer_detect_seconds",
                "Time from systemd's own stamp of a failure until the healer heard of it",
                self.detect.clone(),
            );
            registry.register(
                "healer_recover_seconds",
                "Time from the beginning of an incident until the unit was up again, by a remedy that helped",
                self.recover.clone(),
            );
            registry.register_collector(Box::new(BoardMetrics { board }));
        });
    }

    /// Counts an entry of a timeline that is written for the first time. `known_as`: what its incident is known by.
    pub(crate) fn heard(&self, event: &Event, known_as: &str) {
        match event {
            Event::Symptoms { heard_after_us: Some(us), .. } => self.detect.observe(*us as f64 / 1e6),
            Event::Verified { remedy, known_as, up_ms, .. } => {
                self.remedies.get_or_create(&RemedyLabels { remedy: remedy.name(), helped: "true" }).inc();
                let labels = PatternLabels { pattern: self.pattern(known_as) };
                self.recover.get_or_create(&labels).observe(*up_ms as f64 / 1e3);
            }
            Event::NotVerified { remedy, .. } => {
                self.remedies.get_or_create(&RemedyLabels { remedy: remedy.name(), helped: "false" }).inc();
            }
            Event::Closed { outcome, .. } => {
                let outcome = match outcome {
                    Outcome::Healed => "healed",
                    Outcome::CameBack => "came_back",
                    Outcome::LeftAlone => "left_alone",
                };
                self.incidents.get_or_create(&IncidentLabels { outcome, pattern: self.pattern(known_as) }).inc();
            }
            _ => {}
        }
    }

    fn pattern(&self, known_as: &str) -> String {
        match known_as {
            "" => NONE.to_owned(),
            name if self.patterns.contains(name) => name.to_owned(),
            _ => UNKNOWN.to_owned(),
        }
    }
}

/// Reads the board when metrics are asked for.
#[derive(Debug)]
struct BoardMetrics {
    board: watch::Receiver<Arc<Board>>,
}

impl Collector for BoardMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let board = Arc::clone(&self.board.borrow());
        let count = |all: usize| i64::try_from(all).unwrap_or(i64::MAX);
        let with = |has: fn(&crate::api::WatchedUnit) -> bool| count(board.units.values().filter(|u| has(u)).count());
        for (name, about, value) in [
            ("healer_acting", "Whether this healer acts (1) or waits for another one (0)", i64::from(board.acting)),
            ("healer_incidents_open", "Incidents that have not ended", with(|unit| unit.incident.is_some())),
            ("healer_units_paused", "Units that are left alone for now", with(|unit| unit.paused.is_some())),
            ("healer_units_watched", "Units that are watched", count(board.units.len())),
            (
                "healer_entries_waiting",
                "Entries of timelines not yet in PostgreSQL",
                i64::try_from(board.unshipped).unwrap_or(i64::MAX),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, about, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remedy::Remedy;
    use crate::symptom::Symptom;

    #[test]
    fn an_incident_is_on_the_page_and_fingerprints_are_one_series() {
        let page = lares_gate::Metrics::new();
        let metrics = HealerMetrics::new(["port_conflict"]);
        let (_writer, board) = watch::channel(Arc::new(Board { acting: true, unshipped: 7, ..Board::default() }));
        metrics.register(&page, board);
        let symptoms = vec![Symptom::StartLimitHit];
        metrics.heard(&Event::Symptoms { symptoms: symptoms.clone(), heard_after_us: Some(700) }, "");
        metrics.heard(&Event::Symptoms { symptoms, heard_after_us: None }, "");
        let verified = |known_as: &str| Event::Verified {
            attempt: 1,
            remedy: Remedy::Restart,
            known_as: known_as.to_owned(),
            up_ms: 112,
        };
        let not = Event::NotVerified {
            attempt: 1,
            remedy: Remedy::RaiseMemory { to: 1 },
            known_as: "oom_kill".to_owned(),
            why: "died again".to_owned(),
        };
        for known_as in ["port_conflict", "1f2e3d4c5b6a7988", "0000000000000001"] {
            metrics.heard(&verified(known_as), known_as);
            metrics.heard(&Event::Closed { outcome: Outcome::Healed, reason: None }, known_as);
        }
        metrics.heard(&not, "oom_kill");
        metrics.heard(&Event::Closed { outcome: Outcome::LeftAlone, reason: None }, "");
        let text = page.encode();
        for line in [
            r#"lares_healer_incidents_total{outcome="healed",pattern="port_conflict"} 1"#,
            r#"lares_healer_incidents_total{outcome="healed",pattern="unknown"} 2"#,
            r#"lares_healer_incidents_total{outcome="left_alone",pattern="none"} 1"#,
            r#"lares_healer_remedies_total{remedy="restart",helped="true"} 3"#,
            r#"lares_healer_remedies_total{remedy="raise_memory",helped="false"} 1"#,
            r#"lares_healer_detect_seconds_bucket{le="0.0005"} 0"#,
            r#"lares_healer_detect_seconds_bucket{le="0.001"} 1"#,
            "lares_healer_detect_seconds_count 1",
            r#"lares_healer_recover_seconds_bucket{le="0.1",pattern="unknown"} 0"#,
            r#"lares_healer_recover_seconds_bucket{le="0.25",pattern="unknown"} 2"#,
            "lares_healer_acting 1",
            "lares_healer_entries_waiting 7",
            "lares_healer_units_watched 0",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
    }
}
