//! What the tools daemon counts, for `/metrics`.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use rmcp::model::CallToolResponse;

use crate::api::{Health, SearchMode};
use crate::definition::ServerName;
use crate::offers::OfferError;
use crate::port::UpstreamError;

/// Upper bounds in seconds of the time of a call: from a server in memory to one that asks a slow web site.
const CALL: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5, 10.0, 30.0, 120.0];
/// Upper bounds in seconds of the time of a search: from one that is cached to one over very many tools.
const SEARCH: [f64; 11] = [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 1.0];
/// Most servers with series of their own: what discovery finds must not fill the memory of whoever scrapes.
const SERVERS_MAX: usize = 200;
/// Label of calls of all further servers, and of names that no server has.
const OTHER: &str = "other";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    server: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ServerLabels {
    server: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HealthLabels {
    server: String,
    health: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ModeLabels {
    mode: &'static str,
}

/// What is read when metrics are asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reading {
    /// Tools that may be used.
    pub approved: usize,
    /// Tools that wait for a person.
    pub quarantined: usize,
    /// Tools that a person put aside.
    pub blocked: usize,
    /// Servers and how they are.
    pub servers: Vec<(ServerName, Health)>,
    /// Tools that wait for an embedding of the present model.
    pub embedding_queue: usize,
}

/// Where [`Reading`]s come from: memory, at once.
pub trait Gauges: Send + Sync + fmt::Debug + 'static {
    /// How things are now.
    fn read(&self) -> Reading;
}

/// Counters of what happened. Clones count together.
#[derive(Debug, Clone)]
pub struct ToolMetrics {
    calls: Family<CallLabels, Counter>,
    call_seconds: Family<ServerLabels, Histogram, fn() -> Histogram>,
    searches: Family<ModeLabels, Counter>,
    search_seconds: Histogram,
    servers: Arc<Mutex<BTreeSet<String>>>,
}

impl Default for ToolMetrics {
    fn default() -> Self {
        Self {
            calls: Family::default(),
            call_seconds: Family::new_with_constructor(|| Histogram::new(CALL)),
            searches: Family::default(),
            search_seconds: Histogram::new(SEARCH),
            servers: Arc::default(),
        }
    }
}

impl ToolMetrics {
    /// Makes them, and what `gauges` reads, part of a daemon's metrics.
    pub fn register(&self, metrics: &lares_gate::Metrics, gauges: Arc<dyn Gauges>) {
        metrics.register(|registry| {
            registry.register("tools_calls", "Calls of tools, by server and outcome", self.calls.clone());
            registry.register(
                "tools_call_seconds",
                "Time of calls that reached their server",
                self.call_seconds.clone(),
            );
            registry.register("tools_searches", "Searches, by how they were done", self.searches.clone());
            registry.register(
                "tools_search_seconds",
                "Time of searches, embedding included",
                self.search_seconds.clone(),
            );
            registry.register_collector(Box::new(Read { gauges }));
        });
    }

    /// Counts a call. `server`: whose tool was meant, if there is such a one.
    pub fn called(&self, server: Option<&ServerName>, result: &Result<CallToolResponse, OfferError>, took: Duration) {
        let server = self.label(server);
        let outcome = outcome(result);
        self.calls.get_or_create(&CallLabels { server: server.clone(), outcome }).inc();
        if reached(result) {
            self.call_seconds.get_or_create(&ServerLabels { server }).observe(took.as_secs_f64());
        }
    }

    /// Counts a search that was answered.
    pub fn searched(&self, mode: SearchMode, took: Duration) {
        let mode = match mode {
            SearchMode::Hybrid => "hybrid",
            SearchMode::Words => "words",
        };
        self.searches.get_or_create(&ModeLabels { mode }).inc();
        self.search_seconds.observe(took.as_secs_f64());
    }

    fn label(&self, server: Option<&ServerName>) -> String {
        let Some(server) = server else { return OTHER.to_owned() };
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.contains(server.as_str()) {
            if servers.len() >= SERVERS_MAX {
                return OTHER.to_owned();
            }
            servers.insert(server.as_str().to_owned());
        }
        server.as_str().to_owned()
    }
}

/// How a call ended, as a label.
fn outcome(result: &Result<CallToolResponse, OfferError>) -> &'static str {
    match result {
        Ok(CallToolResponse::Complete(result)) if result.is_error == Some(true) => "tool_error",
        Ok(CallToolResponse::InputRequired(_)) => "input_required",
        Ok(_) => "ok",
        Err(error) => match error {
            OfferError::Upstream(error) => match error {
                UpstreamError::Unknown(_) | UpstreamError::Unavailable { .. } => "unavailable",
                UpstreamError::Timeout { .. } => "timeout",
                UpstreamError::Busy { .. } => "busy",
                UpstreamError::TooLarge { .. } => "too_large",
                UpstreamError::Protocol { .. } => "protocol_error",
                UpstreamError::Cancelled => "cancelled",
            },
            OfferError::NoTool { .. } | OfferError::NotFound { .. } | OfferError::Toolset(_) => "not_found",
            OfferError::Held { .. } => "held",
            OfferError::Denied { .. } => "denied",
            OfferError::Consent(_) => "consent",
            OfferError::Declined(_) => "declined",
            OfferError::Query(_) => "arguments",
        },
    }
}

/// Whether the server got the call, so that its time says something about the server.
fn reached(result: &Result<CallToolResponse, OfferError>) -> bool {
    use UpstreamError::{Protocol, Timeout, TooLarge};
    match result {
        Ok(_) => true,
        Err(OfferError::Upstream(error)) => matches!(error, Protocol { .. } | Timeout { .. } | TooLarge { .. }),
        Err(_) => false,
    }
}

/// Reads the gauges when metrics are asked for.
#[derive(Debug)]
struct Read {
    gauges: Arc<dyn Gauges>,
}

impl Collector for Read {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let reading = self.gauges.read();
        let count = |all: usize| i64::try_from(all).unwrap_or(i64::MAX);
        let tools: Family<StateLabels, Gauge> = Family::default();
        for (state, all) in
            [("approved", reading.approved), ("quarantined", reading.quarantined), ("blocked", reading.blocked)]
        {
            tools.get_or_create(&StateLabels { state }).set(count(all));
        }
        tools.encode(encoder.encode_descriptor(
            "tools_tools",
            "Tools that their servers list, by state",
            None,
            tools.metric_type(),
        )?)?;
        let servers: Family<HealthLabels, Gauge> = Family::default();
        for (server, health) in reading.servers.iter().take(SERVERS_MAX) {
            let labels = HealthLabels { server: server.as_str().to_owned(), health: health_label(*health) };
            servers.get_or_create(&labels).set(1);
        }
        servers.encode(encoder.encode_descriptor(
            "tools_server_health",
            "How each tool server is; 1 at the label that holds",
            None,
            servers.metric_type(),
        )?)?;
        let queue = ConstGauge::new(count(reading.embedding_queue));
        queue.encode(encoder.encode_descriptor(
            "tools_embedding_queue",
            "Tools that wait for an embedding of the present model",
            None,
            queue.metric_type(),
        )?)
    }
}

const fn health_label(health: Health) -> &'static str {
    match health {
        Health::Idle => "idle",
        Health::Starting => "starting",
        Health::Up => "up",
        Health::Down => "down",
        Health::Resting => "resting",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use rmcp::model::{CallToolResult, ContentBlock};

    use super::*;

    #[derive(Debug)]
    struct Fixed(Reading);

    impl Gauges for Fixed {
        fn read(&self) -> Reading {
            self.0.clone()
        }
    }

    fn name(text: &str) -> ServerName {
        text.parse().unwrap()
    }

    fn has(page: &lares_gate::Metrics, lines: &[&str]) {
        let text = page.encode();
        for line in lines {
            assert!(text.lines().any(|l| l == *line), "{line} in\n{text}");
        }
    }

    #[test]
    fn calls_searches_and_readings_are_on_the_page() {
        let page = lares_gate::Metrics::new();
        let metrics = ToolMetrics::default();
        let reading = Reading {
            approved: 7,
            quarantined: 2,
            blocked: 1,
            servers: vec![(name("git"), Health::Up), (name("time"), Health::Resting)],
            embedding_queue: 3,
        };
        metrics.register(&page, Arc::new(Fixed(reading)));
        let ok = || Ok(CallToolResponse::Complete(CallToolResult::success(vec![ContentBlock::text("a")])));
        let failed = Ok(CallToolResponse::Complete(CallToolResult::error(Vec::new())));
        let timeout = Err(UpstreamError::Timeout { server: name("git"), limit: Duration::from_secs(1) }.into());
        let unknown = Err(OfferError::NoTool { name: "made_up".to_owned(), hint: String::new() });
        let git = name("git");
        for (server, result, ms) in
            [(Some(&git), ok(), 2), (Some(&git), failed, 2), (Some(&git), timeout, 60_000), (None, unknown, 0)]
        {
            metrics.called(server, &result, Duration::from_millis(ms));
        }
        metrics.searched(SearchMode::Words, Duration::from_micros(200));
        has(
            &page,
            &[
                r#"lares_tools_calls_total{server="git",outcome="ok"} 1"#,
                r#"lares_tools_calls_total{server="git",outcome="tool_error"} 1"#,
                r#"lares_tools_calls_total{server="git",outcome="timeout"} 1"#,
                r#"lares_tools_calls_total{server="other",outcome="not_found"} 1"#,
                r#"lares_tools_call_seconds_bucket{le="0.0025",server="git"} 2"#,
                r#"lares_tools_call_seconds_count{server="git"} 3"#,
                r#"lares_tools_searches_total{mode="words"} 1"#,
                r#"lares_tools_search_seconds_bucket{le="0.00025"} 1"#,
                r#"lares_tools_tools{state="quarantined"} 2"#,
                r#"lares_tools_server_health{server="time",health="resting"} 1"#,
                "lares_tools_embedding_queue 3",
            ],
        );
        assert!(!page.encode().contains(r#"lares_tools_call_seconds_count{server="other"}"#));
    }

    #[test]
    fn servers_beyond_the_bound_are_one_series() {
        let page = lares_gate::Metrics::new();
        let metrics = ToolMetrics::default();
        metrics.register(&page, Arc::new(Fixed(Reading::default())));
        for number in 0..SERVERS_MAX + 5 {
            let busy = Err(UpstreamError::Busy { server: name("a") }.into());
            metrics.called(Some(&name(&format!("s{number}"))), &busy, Duration::ZERO);
        }
        has(&page, &[r#"lares_tools_calls_total{server="other",outcome="busy"} 5"#]);
        let series = page.encode().lines().filter(|line| line.starts_with("lares_tools_calls_total")).count();
        assert_eq!(series, SERVERS_MAX + 1);
    }
}
