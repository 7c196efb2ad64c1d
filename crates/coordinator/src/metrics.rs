//! What this door counts, for `/metrics`.

use std::fmt;

use lares_store::events::{Event, Recorder};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use tokio::time::Instant;

use crate::account::Outcome;
use crate::queue::Lanes;

/// Upper bounds in seconds: from an embedding to a long answer of a large model on CPU.
const BUCKETS: [f64; 13] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    model: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModelLabels {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    model: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
}

/// Counters of requests. Clones count together.
#[derive(Debug, Clone)]
pub struct Metrics {
    requests: Family<OutcomeLabels, Counter>,
    latency: Family<ModelLabels, Histogram, fn() -> Histogram>,
    first_byte: Family<ModelLabels, Histogram, fn() -> Histogram>,
    tokens: Family<TokenLabels, Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            first_byte: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
            tokens: Family::default(),
        }
    }
}

impl Metrics {
    /// Makes them, and the state of the lanes, part of a daemon's metrics.
    pub fn register(&self, metrics: &lares_gate::Metrics, lanes: Lanes, upstreams: Vec<String>) {
        metrics.register(|registry| {
            registry.register("model_requests", "Requests ended, by model and outcome", self.requests.clone());
            registry.register(
                "model_request_duration_seconds",
                "Time from a request to the end of its answer",
                self.latency.clone(),
            );
            registry.register(
                "model_first_byte_seconds",
                "Time from a request to the first byte of its answer",
                self.first_byte.clone(),
            );
            registry.register("model_tokens", "Tokens as the upstreams counted them", self.tokens.clone());
            registry.register_collector(Box::new(LaneMetrics { lanes, upstreams }));
        });
    }

    /// Counts a request that ended.
    pub fn ended(&self, model: &str, outcome: Outcome, event: &Event) {
        let model = model.to_owned();
        self.requests.get_or_create(&OutcomeLabels { model: model.clone(), outcome: outcome.as_str() }).inc();
        let labels = ModelLabels { model };
        self.latency.get_or_create(&labels).observe(event.latency.as_secs_f64());
        if let Some(first_byte) = event.first_byte {
            self.first_byte.get_or_create(&labels).observe(first_byte.as_secs_f64());
        }
        for (kind, count) in [("prompt", event.prompt_tokens), ("completion", event.completion_tokens)] {
            if let Some(count) = count.and_then(|count| u64::try_from(count).ok()) {
                self.tokens.get_or_create(&TokenLabels { model: labels.model.clone(), kind }).inc_by(count);
            }
        }
    }
}

/// Makes the recorder's losses part of a daemon's metrics.
pub fn register_recorder(metrics: &lares_gate::Metrics, recorder: Recorder) {
    metrics.register(|registry| registry.register_collector(Box::new(RecorderMetrics { recorder })));
}

#[derive(Debug)]
struct RecorderMetrics {
    recorder: Recorder,
}

impl Collector for RecorderMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let dropped = ConstCounter::new(self.recorder.dropped());
        let about = "Events dropped because the spool was full";
        dropped.encode(encoder.encode_descriptor("events_dropped", about, None, dropped.metric_type())?)?;
        let waiting = ConstGauge::new(i64::try_from(self.recorder.spooled_bytes()).unwrap_or(i64::MAX));
        let about = "Bytes of events not yet in PostgreSQL";
        waiting.encode(encoder.encode_descriptor("events_spooled_bytes", about, None, waiting.metric_type())?)
    }
}

/// Reads the lanes when metrics are asked for.
#[derive(Debug)]
struct LaneMetrics {
    lanes: Lanes,
    upstreams: Vec<String>,
}

impl Collector for LaneMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (lanes, now) = (self.lanes.snapshot(), Instant::now());
        let gauge = |value: usize| ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
        let queued = gauge(self.lanes.queued());
        queued.encode(encoder.encode_descriptor(
            "queued",
            "Requests waiting for an upstream",
            None,
            queued.metric_type(),
        )?)?;
        let labelled = || self.upstreams.iter().zip(&lanes);
        let mut in_flight = encoder.encode_descriptor(
            "upstream_in_flight",
            "Requests an upstream is working on",
            None,
            queued.metric_type(),
        )?;
        for (upstream, lane) in labelled() {
            let labels = UpstreamLabels { upstream: upstream.clone() };
            gauge(lane.in_flight).encode(in_flight.encode_family(&labels)?)?;
        }
        let mut live = encoder.encode_descriptor(
            "upstream_live",
            "Whether an upstream is not in a back-off (1) or is (0)",
            None,
            queued.metric_type(),
        )?;
        for (upstream, lane) in labelled() {
            let labels = UpstreamLabels { upstream: upstream.clone() };
            gauge(usize::from(lane.is_live(now))).encode(live.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_and_requests_are_on_the_page() {
        let page = lares_gate::Metrics::new();
        let metrics = Metrics::default();
        metrics.register(&page, Lanes::new([2], 4), vec!["qwen".into()]);
        let event = Event { prompt_tokens: Some(12), ..Event::new("request") };
        metrics.ended("coder", Outcome::Ok, &event);
        let text = page.encode();
        for line in [
            "lares_queued 0",
            r#"lares_upstream_in_flight{upstream="qwen"} 0"#,
            r#"lares_upstream_live{upstream="qwen"} 1"#,
            r#"lares_model_requests_total{model="coder",outcome="ok"} 1"#,
            r#"lares_model_tokens_total{model="coder",kind="prompt"} 12"#,
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(!text.contains("completion"), "what is unknown is not counted as 0");
    }
}
