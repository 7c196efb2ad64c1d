//! One event for every request, however it ends.
//!
//! An [`Account`] is opened when a request arrives and written when it is dropped. It starts out as `cancelled`, which
//! is what remains true when the client leaves and everything of the request is dropped where it stands.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, StatusCode};
use lares_gate::Caller;
use lares_store::events::{Event, Recorder};
use serde_json::json;
use uuid::Uuid;

use crate::metrics::Metrics;
use crate::request::Endpoint;
use crate::usage::Tokens;

/// Agents say with it which task a request is for.
const TASK_HEADER: &str = "x-lares-task";
/// Longest text in an event that a client or an upstream chose, in characters.
const MAX_TEXT: usize = 200;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered in full.
    Ok,
    /// The request was at fault.
    ClientError,
    /// An upstream failed, before or after its answer began.
    UpstreamError,
    /// The client left first.
    Cancelled,
    /// An upstream was silent for too long.
    Timeout,
    /// There was no room for it.
    Rejected,
}

impl Outcome {
    /// As it is written in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ClientError => "client_error",
            Self::UpstreamError => "upstream_error",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
            Self::Rejected => "rejected",
        }
    }

    /// What an upstream's error status means. A 401, 403 or 429 is between this door and the upstream, not the
    /// client's doing.
    pub fn of_error(status: StatusCode) -> Self {
        match status.as_u16() {
            401 | 403 | 429 => Self::UpstreamError,
            400..=499 => Self::ClientError,
            _ => Self::UpstreamError,
        }
    }
}

/// Where events go. Must not block.
pub trait Sink: Send + Sync {
    /// Takes one event.
    fn record(&self, event: Event);
}

impl Sink for Recorder {
    fn record(&self, event: Event) {
        Recorder::record(self, event);
    }
}

/// Opens accounts.
#[derive(Clone)]
pub struct Ledger {
    sink: Arc<dyn Sink>,
    metrics: Metrics,
}

impl Ledger {
    /// Writes events to `sink` and counts in `metrics`.
    pub fn new(sink: Arc<dyn Sink>, metrics: Metrics) -> Self {
        Self { sink, metrics }
    }

    /// For a request that has just arrived.
    pub fn open(
        &self,
        endpoint: Endpoint,
        caller: &Caller,
        headers: &HeaderMap,
        request_id: Option<String>,
    ) -> Account {
        let mut event = Event::new("request");
        event.subject =
            headers.get(TASK_HEADER).and_then(|id| id.to_str().ok()).and_then(|id| Uuid::parse_str(id.trim()).ok());
        Account {
            ledger: self.clone(),
            request_id: request_id.unwrap_or_else(|| event.id.to_string()),
            event,
            arrived: Instant::now(),
            endpoint,
            caller: caller.name.clone(),
            outcome: Outcome::Cancelled,
            known_model: false,
            stream: None,
            attempts: 0,
            queued: None,
            error: None,
        }
    }
}

/// The event of one request in the making. Written when dropped.
pub struct Account {
    ledger: Ledger,
    event: Event,
    request_id: String,
    arrived: Instant,
    endpoint: Endpoint,
    caller: String,
    outcome: Outcome,
    known_model: bool,
    stream: Option<bool>,
    attempts: u32,
    queued: Option<Duration>,
    error: Option<String>,
}

impl Account {
    /// The id this request goes by in logs and headers.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// What is asked; `known` when there is such a model.
    pub fn asked(&mut self, model: &str, stream: bool, known: bool) {
        self.event.model = Some(cut(model));
        self.stream = Some(stream);
        self.known_model = known;
    }

    /// It got its place at an upstream after so long.
    pub fn queued(&mut self, waited: Duration) {
        self.queued = Some(self.queued.unwrap_or_default() + waited);
    }

    /// One more try, at this upstream.
    pub fn attempt(&mut self, upstream: &str) {
        self.attempts += 1;
        self.event.upstream = Some(upstream.to_owned());
    }

    /// The first byte of the answer is here.
    pub fn first_byte(&mut self, status: StatusCode) {
        self.event.first_byte = Some(self.arrived.elapsed());
        self.event.status = Some(i32::from(status.as_u16()));
    }

    /// What the answer said of its tokens.
    pub fn tokens(&mut self, tokens: Tokens) {
        self.event.prompt_tokens = tokens.prompt;
        self.event.completion_tokens = tokens.completion;
    }

    /// How it ended, and the error if it did not end well.
    pub fn end(&mut self, outcome: Outcome, error: Option<&str>) {
        self.outcome = outcome;
        self.error = error.map(cut);
    }

    /// It ended with this status before an answer began.
    pub fn refused(&mut self, status: StatusCode, outcome: Outcome, error: Option<&str>) {
        self.event.status = Some(i32::from(status.as_u16()));
        self.end(outcome, error);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.event.latency = self.arrived.elapsed();
        self.event.outcome = self.outcome.as_str().to_owned();
        self.event.detail = json!({
            "endpoint": self.endpoint.path(),
            "stream": self.stream,
            "caller": self.caller,
            "attempts": self.attempts,
            "queued_us": self.queued.map(|waited| u64::try_from(waited.as_micros()).unwrap_or(u64::MAX)),
            "request_id": self.request_id,
            "error": self.error,
        });
        // A name that a client made up is no label: it would make a series for each.
        let model = self.event.model.as_deref().filter(|_| self.known_model).unwrap_or("unknown");
        self.ledger.metrics.ended(model, self.outcome, &self.event);
        let event = std::mem::replace(&mut self.event, Event::new("request"));
        self.ledger.sink.record(event);
    }
}

fn cut(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use lares_gate::Role;

    use super::*;

    #[derive(Default)]
    struct Kept(Mutex<Vec<Event>>);

    impl Sink for Kept {
        fn record(&self, event: Event) {
            self.0.lock().unwrap().push(event);
        }
    }

    #[test]
    fn an_account_that_is_just_dropped_is_cancelled_with_unknown_tokens() {
        let kept = Arc::new(Kept::default());
        let ledger = Ledger::new(Arc::<Kept>::clone(&kept), Metrics::default());
        let task = Uuid::now_v7();
        let mut headers = HeaderMap::new();
        headers.insert(TASK_HEADER, task.to_string().parse().unwrap());
        let caller = Caller { key_id: Uuid::nil(), name: "agent".into(), role: Role::Client };
        let mut account = ledger.open(Endpoint::ChatCompletions, &caller, &headers, None);
        account.asked("qwen", true, true);
        account.attempt("local");
        drop(account);
        let events = kept.0.lock().unwrap();
        let [event] = events.as_slice() else { panic!("one event, not {}", events.len()) };
        assert_eq!((event.kind.as_str(), event.outcome.as_str()), ("request", "cancelled"));
        assert_eq!(event.subject, Some(task));
        assert_eq!((event.prompt_tokens, event.completion_tokens, event.status), (None, None, None));
        assert_eq!(event.detail["endpoint"], "/chat/completions");
        assert_eq!(event.detail["attempts"], 1);
    }
}
