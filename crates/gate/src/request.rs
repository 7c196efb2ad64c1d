//! What every request goes through, whatever its route: an id, a span, limits, metrics, and errors in one shape.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::body::{Body, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, StreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use http_body_util::BodyExt;
use tracing::Instrument;

use crate::host::{self, Hosts};
use crate::json;
use crate::metrics::RequestMetrics;
use crate::problem::Problem;

/// Header with the id of a request, taken from the caller or made here, and sent back.
pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest id taken from a caller.
const REQUEST_ID_MAX: usize = 64;
/// Longest silence between two pieces of a request body.
const BODY_SILENCE: Duration = Duration::from_secs(30);
/// Largest plain-text error turned into a problem; longer ones are somebody's content.
const PLAIN_ERROR_MAX: u64 = 8 * 1024;

/// The id of a request, in its extensions, its span and the header `x-request-id` of its answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestId(String);

impl RequestId {
    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The caller's own if it is short and plain, since it goes into the log; else a new one.
    fn of(headers: &HeaderMap) -> Self {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let sent = headers.get(X_REQUEST_ID).and_then(|value| value.to_str().ok());
        let sent = sent.filter(|id| !id.is_empty() && id.len() <= REQUEST_ID_MAX && id.bytes().all(plain));
        Self(sent.map_or_else(|| uuid::Uuid::now_v7().to_string(), ToOwned::to_owned))
    }
}

/// What [`observe`] needs to know about its surface.
#[derive(Debug, Clone)]
pub(crate) struct Observer {
    pub(crate) metrics: RequestMetrics,
    pub(crate) hosts: Hosts,
    /// Bytes.
    pub(crate) max_body: usize,
    pub(crate) openai_below: Option<&'static str>,
}

/// The outermost layer of every surface.
pub(crate) async fn observe(State(observer): State<Observer>, mut request: Request, next: Next) -> Response {
    let id = RequestId::of(request.headers());
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let openai = observer.openai_below.is_some_and(|prefix| is_below(request.uri().path(), prefix));
    let span = tracing::info_span!("request", id = id.as_str(), %method, route, caller = tracing::field::Empty);
    let header = HeaderValue::from_str(id.as_str()).ok();
    request.extensions_mut().insert(id);

    async move {
        let began = Instant::now();
        let in_flight = observer.metrics.begin();
        let response = match admit(&observer, &request) {
            Ok(()) => match AssertUnwindSafe(next.run(request.map(|body| end_silence(body, BODY_SILENCE))))
                .catch_unwind()
                .await
            {
                Ok(response) => as_problem(response, &method).await,
                Err(panic) => panicked(panic.as_ref()),
            },
            Err(problem) => problem.into_response(),
        };
        drop(in_flight);
        let mut response = if openai { as_openai(response) } else { response };
        if let Some(header) = header {
            response.headers_mut().insert(X_REQUEST_ID, header);
        }
        let (status, latency) = (response.status(), began.elapsed());
        observer.metrics.answered(&method, &route, status, latency);
        let latency_ms = latency.as_secs_f64() * 1e3;
        if status.is_server_error() {
            tracing::warn!(status = status.as_u16(), latency_ms, "answered");
        } else {
            tracing::debug!(status = status.as_u16(), latency_ms, "answered");
        }
        response
    }
    .instrument(span)
    .await
}

/// Whether a path is `prefix` or continues it with another segment.
pub(crate) fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn admit(observer: &Observer, request: &Request) -> Result<(), Problem> {
    host::check(observer.hosts, request.uri(), request.headers())?;
    // Bodies without a length are measured while they are read.
    if request.body().size_hint().lower() > observer.max_body as u64 {
        return Err(json::too_large());
    }
    Ok(())
}

/// Ends a body whose sender is silent for longer than `longest`, so that whoever reads it does not wait for ever.
fn end_silence(body: Body, longest: Duration) -> Body {
    if body.is_end_stream() {
        return body;
    }
    Body::from_stream(stream::unfold(Some(body.into_data_stream()), move |pieces| async move {
        let mut pieces = pieces?;
        match tokio::time::timeout(longest, pieces.next()).await {
            Ok(piece) => piece.map(|piece| (piece, Some(pieces))),
            Err(_) => {
                let why = format!("the request body stopped coming for {} s", longest.as_secs_f32());
                Some((Err(axum::Error::new(why)), None))
            }
        }
    }))
}

fn panicked(panic: &(dyn std::any::Any + Send)) -> Response {
    let said = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message");
    tracing::error!(panic = said, "a handler panicked");
    Problem::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal-error",
        "the request failed because of a bug in Lares; the log has the cause, under the request id of this answer",
    )
    .into_response()
}

/// Turns errors without a shape (axum's own refusals, a bare status) into problems.
async fn as_problem(response: Response, method: &Method) -> Response {
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    let is_plain = response.headers().get(CONTENT_TYPE).is_none_or(|t| t.as_bytes().starts_with(b"text/plain"));
    let is_short = response.body().size_hint().exact().is_some_and(|size| size <= PLAIN_ERROR_MAX);
    if !is_error || !is_plain || !is_short || response.extensions().get::<Problem>().is_some() {
        return response;
    }
    let (head, body) = response.into_parts();
    let text = body.collect().await.map(|body| String::from_utf8_lossy(&body.to_bytes()).trim().to_owned());
    let (slug, meaning) = plain_problem(status, method);
    let detail = text.ok().filter(|text| !text.is_empty()).unwrap_or(meaning);
    with_headers(Problem::new(status, slug, detail).into_response(), &head.headers)
}

fn plain_problem(status: StatusCode, method: &Method) -> (&'static str, String) {
    let (slug, meaning) = match status {
        StatusCode::BAD_REQUEST => ("bad-request", "the request is not understood"),
        StatusCode::NOT_FOUND => ("not-found", "there is nothing at this path; /openapi.json lists the routes"),
        StatusCode::METHOD_NOT_ALLOWED => {
            return ("method-not-allowed", format!("this path does not take {method}; see the header `Allow`"));
        }
        StatusCode::REQUEST_TIMEOUT => ("request-timeout", "the request took too long"),
        StatusCode::PAYLOAD_TOO_LARGE => ("body-too-large", "the body is larger than this surface takes"),
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ("media-type-not-supported", "the type of the body is not supported"),
        StatusCode::UNPROCESSABLE_ENTITY => ("invalid-body", "the body does not fit"),
        StatusCode::TOO_MANY_REQUESTS => ("too-many-requests", "too many requests; try again later"),
        StatusCode::BAD_GATEWAY => ("bad-gateway", "a server this answer depends on gave none"),
        StatusCode::SERVICE_UNAVAILABLE => ("unavailable", "not available now; try again later"),
        status if status.is_server_error() => ("internal-error", "the request failed; the log has the cause"),
        _ => ("request-refused", "the request was refused"),
    };
    (slug, meaning.to_owned())
}

/// Gives an error the shape of OpenAI's API if it is a [`Problem`].
fn as_openai(mut response: Response) -> Response {
    match response.extensions_mut().remove::<Problem>() {
        Some(problem) => with_headers(problem.into_openai_response(), response.headers()),
        None => response,
    }
}

/// Keeps what others said in headers (`Allow`, …) when an answer gets another body.
fn with_headers(mut response: Response, headers: &HeaderMap) -> Response {
    for (name, value) in headers.iter().filter(|(name, _)| **name != CONTENT_TYPE && **name != CONTENT_LENGTH) {
        if !response.headers().contains_key(name) {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_plain_request_id_is_kept_and_any_other_replaced() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(X_REQUEST_ID, value.parse().unwrap());
            RequestId::of(&headers).0
        };
        assert_eq!(of("build-7_a.2"), "build-7_a.2");
        for bad in ["", "two words", "level=error", &"x".repeat(65)] {
            assert!(uuid::Uuid::parse_str(&of(bad)).is_ok(), "{bad}");
        }
    }

    #[test]
    fn a_prefix_covers_whole_segments() {
        assert!(is_below("/v1", "/v1") && is_below("/v1/models", "/v1"));
        assert!(!is_below("/v10/models", "/v1") && !is_below("/api/v1", "/v1"));
    }

    #[tokio::test]
    async fn a_sender_that_falls_silent_is_given_up() {
        let first = stream::once(async { Ok::<_, axum::Error>(axum::body::Bytes::from_static(b"begin")) });
        let mut pieces = end_silence(Body::from_stream(first.chain(stream::pending())), Duration::from_millis(250))
            .into_data_stream();
        assert_eq!(pieces.next().await.unwrap().unwrap(), "begin");
        let error = pieces.next().await.unwrap().unwrap_err();
        assert!(error.to_string().contains("stopped coming for 0.25 s"), "{error}");
        assert!(pieces.next().await.is_none());
    }
}
