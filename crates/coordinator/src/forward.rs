//! The way of one request: read, route, wait for a place, send, try again while nothing has come back, relay.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Body as _;
use lares_config::{ByteSize, Config};
use lares_gate::{Caller, RequestId};
use rand::Rng;
use tokio::time::{Instant, sleep, timeout};

use crate::Error;
use crate::account::{Account, Ledger, Outcome, Sink};
use crate::metrics::Metrics;
use crate::queue::{Lanes, Permit, Refused, Turn};
use crate::refusal::{Refusal, is_openai_shaped};
use crate::relay::{Head, Relay};
use crate::request::{Ask, Endpoint};
use crate::route::{Candidates, NoRoute, Routes};
use crate::upstream::{Answer, Clients, MAX_ERROR_BODY, SendError, Upstream};

/// Longest time a request body may take to arrive in full: 16 MiB over half a megabit a second.
const BODY_TIMEOUT: Duration = Duration::from_secs(300);
/// How much more than allowed is read and thrown away, as a multiple: a client that is still sending when the
/// connection closes may never see why.
const DRAIN_FACTOR: usize = 4;
/// Pause before another try, in milliseconds; drawn anew each time, so that requests do not come back in step.
const PAUSE_MS: std::ops::Range<u64> = 50..500;
/// How long a local model's server may be gone before requests for it fail: it is started again at once, and loads a
/// small model in less than this.
const RESTART_GRACE: Duration = Duration::from_secs(15);
/// Longest wait for the rest of an error's body.
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// Headers of an upstream's answer that are passed on.
const PASSED_BACK: [HeaderName; 4] = [
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    header::RETRY_AFTER,
    HeaderName::from_static("openai-processing-ms"),
];

/// The bounds a request runs under.
#[derive(Debug, Clone)]
struct Limits {
    max_body: ByteSize,
    max_queued: usize,
    queue_timeout: Duration,
    first_byte_timeout: Duration,
    idle_timeout: Duration,
    retries: u32,
}

/// Everything a request needs; made once.
pub struct Door {
    routes: Routes,
    lanes: Lanes,
    clients: Clients,
    ledger: Ledger,
    metrics: Metrics,
    limits: Limits,
}

impl Door {
    /// A door to the upstreams of the configuration, which writes its events to `sink`.
    ///
    /// # Errors
    /// When an upstream's URL or key file cannot be used, or TLS cannot be set up.
    pub async fn open(config: &Config, sink: Arc<dyn Sink>) -> Result<Self, Error> {
        let routes = Routes::from_config(config).await?;
        let clients = Clients::new(&routes.upstreams).await?;
        let coordinator = &config.coordinator;
        let limits = Limits {
            max_body: coordinator.max_body,
            max_queued: coordinator.max_queued as usize,
            queue_timeout: coordinator.queue_timeout,
            first_byte_timeout: coordinator.first_byte_timeout,
            idle_timeout: coordinator.idle_timeout,
            retries: coordinator.retries,
        };
        let lanes = Lanes::new(routes.upstreams.iter().map(Upstream::capacity), limits.max_queued);
        let metrics = Metrics::default();
        let ledger = Ledger::new(sink, metrics.clone());
        Ok(Self { routes, lanes, clients, ledger, metrics, limits })
    }

    /// The table of models.
    pub fn routes(&self) -> &Routes {
        &self.routes
    }

    /// The connections to the upstreams.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// The lanes to the upstreams.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Makes this door's counters part of a daemon's metrics.
    pub fn register(&self, metrics: &lares_gate::Metrics) {
        let upstreams = self.routes.upstreams.iter().map(|upstream| upstream.name().to_owned()).collect();
        self.metrics.register(metrics, self.lanes.clone(), upstreams);
    }

    /// Answers one request. Exactly one event is written for it, also when the returned future is dropped.
    pub async fn answer(&self, endpoint: Endpoint, caller: &Caller, request: Request) -> Response {
        let (parts, body) = request.into_parts();
        let request_id = parts.extensions.get::<RequestId>().map(|id| id.as_str().to_owned());
        let mut account = self.ledger.open(endpoint, caller, &parts.headers, request_id);
        match self.find_answer(endpoint, caller, &parts.headers, body, &mut account).await {
            Ok(Found::Begun(begun)) => self.relay(*begun, account),
            Ok(Found::Error { status, headers, body }) => {
                account.refused(status, Outcome::of_error(status), Some(&String::from_utf8_lossy(&body)));
                let mut response = Response::new(Body::from(body));
                *response.status_mut() = status;
                pass_back(&headers, response.headers_mut());
                response
            }
            Err(refusal) => {
                account.refused(refusal.status(), refusal.outcome(), Some(refusal.detail()));
                refusal.into_response()
            }
        }
    }

    async fn find_answer(
        &self,
        endpoint: Endpoint,
        caller: &Caller,
        headers: &HeaderMap,
        body: Body,
        account: &mut Account,
    ) -> Result<Found, Refusal> {
        let body = self.read_body(body).await?;
        let ask = Ask::read(body)?;
        account.asked(&ask.model, ask.stream, self.routes.get(&ask.model).is_some());
        let candidates = self.candidates(&ask.model, endpoint)?;
        let arrived = Instant::now();
        let deadline = arrived + self.limits.queue_timeout;
        let mut permit = self.wait(caller, &ask, candidates, Turn::First, deadline, account).await?;
        let mut retries_left = self.limits.retries;
        let mut gone_since = None;
        loop {
            let upstream = &self.routes.upstreams[permit.lane()];
            account.attempt(upstream.name());
            let name = candidates.upstream_model(permit.lane()).unwrap_or(&ask.model);
            let sent = self.attempt(upstream, endpoint, headers, account.request_id(), ask.body_for(name));
            let failure = match timeout(self.limits.first_byte_timeout, sent).await {
                Ok(Ok(Attempt::Begun(head, first, answer))) => {
                    permit.worked();
                    return Ok(Found::Begun(Box::new(Begun { head, first, answer, permit })));
                }
                Ok(Ok(Attempt::Error(status, headers, body))) => {
                    permit.worked();
                    return found_error(upstream, status, headers, body);
                }
                Ok(Err(failure)) => failure,
                Err(_) => return Err(Refusal::first_byte_timeout(upstream.name(), self.limits.first_byte_timeout)),
            };
            if !matches!(failure, Failure::Lost(_)) {
                permit.failed();
            }
            let now = Instant::now();
            // A local server that is loading, or being started again, will be ready in a moment: that is waiting, as in
            // the queue, and no retry.
            let give_up_at = match &failure {
                Failure::Connect(_) if upstream.is_local() => {
                    Some(deadline.min(*gone_since.get_or_insert(now) + RESTART_GRACE))
                }
                Failure::Busy(StatusCode::SERVICE_UNAVAILABLE, ..) if upstream.is_local() => {
                    gone_since = None;
                    Some(deadline)
                }
                _ => None,
            };
            let give_up = match give_up_at {
                Some(at) => now >= at,
                None => retries_left == 0,
            };
            if give_up {
                return failure.given_up(upstream, give_up_at.is_some());
            }
            if give_up_at.is_none() {
                retries_left -= 1;
            }
            tracing::debug!(upstream = upstream.name(), ?failure, "trying again");
            // The place is kept meanwhile: nobody else should try this upstream now, and nothing piles up outside the
            // queue's bound.
            let pause = Duration::from_millis(rand::rng().random_range(PAUSE_MS));
            sleep(pause).await;
            if self.lanes.another_lives(candidates, permit.lane()) {
                drop(permit);
                let deadline = deadline.max(Instant::now() + Duration::from_secs(1));
                permit = self.wait(caller, &ask, candidates, Turn::Again, deadline, account).await?;
            }
        }
    }

    async fn read_body(&self, mut body: Body) -> Result<Bytes, Refusal> {
        let max = self.limits.max_body.as_usize();
        let read = async {
            let (mut first, mut rest, mut length) = (Bytes::new(), BytesMut::new(), 0_usize);
            if body.size_hint().lower() > max.saturating_mul(DRAIN_FACTOR) as u64 {
                return Err(Refusal::too_large(self.limits.max_body));
            }
            while let Some(frame) = body.frame().await {
                let Ok(piece) = frame.map_err(|_| Refusal::broken_body())?.into_data() else { continue };
                length = length.saturating_add(piece.len());
                if length > max.saturating_mul(DRAIN_FACTOR) {
                    break;
                } else if length > max {
                    (first, rest) = (Bytes::new(), BytesMut::new());
                } else if first.is_empty() && rest.is_empty() {
                    first = piece;
                } else {
                    if rest.is_empty() {
                        rest.reserve(length.max(usize::try_from(body.size_hint().lower()).unwrap_or(0) + length));
                        rest.extend_from_slice(&std::mem::take(&mut first));
                    }
                    rest.extend_from_slice(&piece);
                }
            }
            if length > max {
                return Err(Refusal::too_large(self.limits.max_body));
            }
            Ok(if rest.is_empty() { first } else { rest.freeze() })
        };
        timeout(BODY_TIMEOUT, read).await.unwrap_or_else(|_| Err(Refusal::slow_body(BODY_TIMEOUT)))
    }

    fn candidates(&self, model: &str, endpoint: Endpoint) -> Result<&Arc<Candidates>, Refusal> {
        self.routes.find(model, endpoint).map_err(|no_route| match no_route {
            NoRoute::Unknown { nearest } => {
                let there_is: Vec<_> = self.routes.iter().map(|(name, _)| name).collect();
                Refusal::unknown_model(model, nearest.as_deref(), &there_is)
            }
            NoRoute::WrongEndpoint { instead } => {
                Refusal::wrong_endpoint(model, endpoint.path(), endpoint != Endpoint::Embeddings, &instead)
            }
        })
    }

    async fn wait(
        &self,
        caller: &Caller,
        ask: &Ask,
        candidates: &Arc<Candidates>,
        turn: Turn,
        deadline: Instant,
        account: &mut Account,
    ) -> Result<Permit, Refusal> {
        let before = Instant::now();
        let permit = self.lanes.acquire(caller.key_id, candidates, turn, deadline).await;
        account.queued(before.elapsed());
        permit.map_err(|refused| match refused {
            Refused::Full => Refusal::queue_full(self.limits.max_queued),
            Refused::TimedOut => Refusal::queue_timeout(&ask.model, self.limits.queue_timeout),
        })
    }

    /// One try: sends the request and waits for the first byte of the answer's body.
    async fn attempt(
        &self,
        upstream: &Upstream,
        endpoint: Endpoint,
        client: &HeaderMap,
        request_id: &str,
        body: Bytes,
    ) -> Result<Attempt, Failure> {
        let response = self.clients.send(upstream, endpoint, client, request_id, body).await?;
        let (parts, mut answer) = response.into_parts();
        if !parts.status.is_success() {
            let body = read_error(answer).await;
            return match parts.status {
                StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                    Err(Failure::Busy(parts.status, parts.headers, body))
                }
                status => Ok(Attempt::Error(status, parts.headers, body)),
            };
        }
        loop {
            match answer.frame().await {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(first) if !first.is_empty() => return Ok(Attempt::Begun(parts, Some(first), answer)),
                    _ => {}
                },
                Some(Err(why)) => return Err(Failure::Lost(why)),
                None => return Ok(Attempt::Begun(parts, None, answer)),
            }
        }
    }

    fn relay(&self, begun: Begun, mut account: Account) -> Response {
        let Begun { head, first, answer, permit } = begun;
        account.first_byte(head.status);
        let content_type = head.headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
        let about = Head {
            is_stream: content_type.to_ascii_lowercase().starts_with(b"text/event-stream"),
            length: head
                .headers
                .get(header::CONTENT_LENGTH)
                .and_then(|length| length.to_str().ok())
                .and_then(|length| length.parse().ok()),
        };
        let upstream = self.routes.upstreams[permit.lane()].name();
        let relay = Relay::new(first, answer, &about, upstream, self.limits.idle_timeout, permit, account);
        let mut response = Response::new(Body::new(relay));
        *response.status_mut() = head.status;
        pass_back(&head.headers, response.headers_mut());
        if about.is_stream {
            response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        }
        response
    }
}

/// What became of a request.
enum Found {
    /// An answer whose first byte is here.
    Begun(Box<Begun>),
    /// An upstream's error in OpenAI's shape.
    Error { status: StatusCode, headers: HeaderMap, body: Bytes },
}

struct Begun {
    head: http::response::Parts,
    first: Option<Bytes>,
    answer: Answer,
    permit: Permit,
}

/// A try that was answered.
enum Attempt {
    Begun(http::response::Parts, Option<Bytes>, Answer),
    Error(StatusCode, HeaderMap, Bytes),
}

/// A try that may be repeated.
#[derive(Debug)]
enum Failure {
    Connect(String),
    Lost(String),
    /// 502, 503 or 429.
    Busy(StatusCode, HeaderMap, Bytes),
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Connect(why) => Self::Connect(why),
            SendError::Lost(why) => Self::Lost(why),
        }
    }
}

impl Failure {
    fn given_up(self, upstream: &Upstream, was_awaited: bool) -> Result<Found, Refusal> {
        match self {
            Self::Connect(why) if was_awaited => Err(Refusal::not_ready(upstream.name(), &why)),
            Self::Connect(why) | Self::Lost(why) => Err(Refusal::unreachable(upstream.name(), &why)),
            Self::Busy(_, _, body) if was_awaited => {
                Err(Refusal::not_ready(upstream.name(), &String::from_utf8_lossy(&body)))
            }
            Self::Busy(status, headers, body) => found_error(upstream, status, headers, body),
        }
    }
}

/// An upstream's error as the client shall see it.
fn found_error(upstream: &Upstream, status: StatusCode, headers: HeaderMap, body: Bytes) -> Result<Found, Refusal> {
    match status {
        // Passed on, the client would take it for its own key.
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Refusal::bad_upstream_key(upstream.name())),
        status if (status.is_client_error() || status.is_server_error()) && is_openai_shaped(&body) => {
            Ok(Found::Error { status, headers, body })
        }
        status => Err(Refusal::wrapped(upstream.name(), status, &body)),
    }
}

/// As much of an error's body as there is, within bounds.
async fn read_error(mut answer: Answer) -> Bytes {
    let mut body = BytesMut::new();
    let read = async {
        while let Some(Ok(frame)) = answer.frame().await {
            if let Ok(piece) = frame.into_data() {
                body.extend_from_slice(&piece[..piece.len().min(MAX_ERROR_BODY - body.len())]);
            }
            if body.len() >= MAX_ERROR_BODY {
                break;
            }
        }
    };
    // What came in time is quoted; that the rest is missing changes nothing.
    let _ = timeout(ERROR_BODY_TIMEOUT, read).await;
    body.freeze()
}

fn pass_back(from: &HeaderMap, to: &mut HeaderMap) {
    for name in &PASSED_BACK {
        if let Some(value) = from.get(name) {
            to.insert(name, value.clone());
        }
    }
}
