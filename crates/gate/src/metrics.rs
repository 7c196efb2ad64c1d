//! The Prometheus registry of a daemon: every crate registers its own counters in it, `/metrics` prints it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, StatusCode};
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// Content type of [`Metrics::encode`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of the latency buckets in seconds: from a lookup in memory to a long answer of a large model.
const LATENCY_BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

/// The metrics of one process, shared by cloning. Names get the prefix `lares_`.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// An empty registry.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Registry::with_prefix("lares"))))
    }

    /// Adds metrics. Families and counters are shared by cloning: register one clone, count on the other.
    pub fn register<T>(&self, add: impl FnOnce(&mut Registry) -> T) -> T {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything registered, in the OpenMetrics text format.
    pub fn encode(&self) -> String {
        let mut page = String::new();
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = text::encode(&mut page, &registry) {
            tracing::error!(%error, "metrics could not be written");
        }
        page
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AnswerLabels {
    method: &'static str,
    route: String,
    status: u16,
}

/// What a surface counts about every request.
#[derive(Debug, Clone)]
pub(crate) struct RequestMetrics {
    answers: Family<AnswerLabels, Counter>,
    latency: Family<RouteLabels, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
}

impl RequestMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        let this = Self {
            answers: Family::default(),
            latency: Family::new_with_constructor(|| Histogram::new(LATENCY_BUCKETS)),
            in_flight: Gauge::default(),
        };
        metrics.register(|registry| {
            registry.register("http_requests", "Requests answered", this.answers.clone());
            registry.register(
                "http_request_duration_seconds",
                "Time from the head of a request to the head of its answer",
                this.latency.clone(),
            );
            registry.register("http_requests_in_flight", "Requests whose answer has not begun", this.in_flight.clone());
        });
        this
    }

    /// Counts a request as in flight until the guard is dropped, also when the caller goes away first.
    pub(crate) fn begin(&self) -> InFlight {
        self.in_flight.inc();
        InFlight(self.in_flight.clone())
    }

    /// Counts an answer. `route` is the pattern that matched, never the path, so that callers cannot make up series.
    pub(crate) fn answered(&self, method: &Method, route: &str, status: StatusCode, latency: Duration) {
        let method = method_label(method);
        let route = route.to_owned();
        let labels = AnswerLabels { method, route: route.clone(), status: status.as_u16() };
        self.answers.get_or_create(&labels).inc();
        self.latency.get_or_create(&RouteLabels { method, route }).observe(latency.as_secs_f64());
    }
}

/// One request in flight.
pub(crate) struct InFlight(Gauge);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The standard methods by name; whatever else a caller makes up is one series.
fn method_label(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "POST" => "POST",
        "PUT" => "PUT",
        "PATCH" => "PATCH",
        "DELETE" => "DELETE",
        "HEAD" => "HEAD",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_are_counted_by_route_method_and_status() {
        let metrics = Metrics::new();
        let requests = RequestMetrics::register(&metrics);
        requests.answered(&Method::GET, "/tasks/{id}", StatusCode::OK, Duration::from_millis(3));
        let made_up = Method::from_bytes(b"MADEUP").unwrap();
        requests.answered(&made_up, "/tasks/{id}", StatusCode::METHOD_NOT_ALLOWED, Duration::ZERO);
        let in_flight = requests.begin();
        let page = metrics.encode();
        for line in [
            r#"lares_http_requests_total{method="GET",route="/tasks/{id}",status="200"} 1"#,
            r#"lares_http_requests_total{method="other",route="/tasks/{id}",status="405"} 1"#,
            r#"lares_http_request_duration_seconds_bucket{le="0.005",method="GET",route="/tasks/{id}"} 1"#,
            "lares_http_requests_in_flight 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} in\n{page}");
        }
        assert!(page.ends_with("# EOF\n"));
        drop(in_flight);
        assert!(metrics.encode().contains("lares_http_requests_in_flight 0"));
    }

    #[test]
    fn another_crate_counts_on_its_own_clone() {
        let (metrics, counter) = (Metrics::new(), Counter::<u64>::default());
        metrics.register(|registry| registry.register("dropped_events", "Events dropped", counter.clone()));
        counter.inc_by(7);
        assert!(metrics.encode().contains("lares_dropped_events_total 7"));
    }
}
