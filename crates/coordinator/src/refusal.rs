//! Every error this door answers with, as a [`Problem`] in the shape OpenAI's clients understand, and how the request
//! counts in its event.
//!
//! The clients choose their exception by the status; people read the message, so it says what to do next.

use std::time::Duration;

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::StatusCode;
use lares_config::ByteSize;
use lares_gate::Problem;
use serde::Deserialize;

use crate::account::Outcome;

/// What a client that is told to come back should wait.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Longest text of others that is quoted in a message, in characters.
const MAX_QUOTE: usize = 500;

/// A request that is answered with an error of ours.
#[derive(Debug, Clone)]
pub struct Refusal {
    problem: Problem,
    outcome: Outcome,
}

impl Refusal {
    fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        let outcome = if status.is_client_error() { Outcome::ClientError } else { Outcome::UpstreamError };
        Self { problem: Problem::new(status, slug, detail), outcome }
    }

    fn counted_as(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    fn at_parameter(mut self, parameter: &'static str) -> Self {
        let detail = self.problem.detail().to_owned();
        self.problem = self.problem.error(parameter, detail);
        self
    }

    fn try_again(mut self) -> Self {
        self.problem = self.problem.retry_after(RETRY_AFTER);
        self
    }

    /// 400: the body is no JSON object.
    pub(crate) fn invalid_body(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-body", detail)
    }

    /// 400: this parameter cannot be used.
    pub(crate) fn parameter(parameter: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid-parameter", detail).at_parameter(parameter)
    }

    /// 404: no such model; says which there are.
    pub(crate) fn unknown_model(model: &str, nearest: Option<&str>, there_is: &[&str]) -> Self {
        let mut detail = format!("the model `{}` does not exist", quote(model));
        if let Some(nearest) = nearest {
            detail.push_str(&format!("; did you mean `{nearest}`?"));
        }
        if there_is.is_empty() {
            detail.push_str("; none is configured: add one under `models` or `coordinator.upstreams`");
        } else {
            let there_is = there_is.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            detail.push_str(if nearest.is_some() { " There is " } else { "; there is " });
            detail.push_str(&there_is);
        }
        Self::new(StatusCode::NOT_FOUND, "model-not-found", detail).at_parameter("model")
    }

    /// 400: the model exists but not at this endpoint.
    pub(crate) fn wrong_endpoint(model: &str, path: &str, embeddings_only: bool, instead: &[String]) -> Self {
        let why = if embeddings_only {
            "it serves embeddings only, at /v1/embeddings"
        } else {
            "it does not serve embeddings; a local model that is to needs `embeddings = true`"
        };
        let mut detail = format!("the model `{model}` cannot answer at /v1{path}: {why}");
        if !instead.is_empty() {
            detail.push_str(&format!("; models that can: {}", instead.join(", ")));
        }
        Self::parameter("model", detail)
    }

    /// 413: the body is over the configured bound.
    pub(crate) fn too_large(max: ByteSize) -> Self {
        let detail = format!("the request body is larger than {max}; `coordinator.max_body` sets this bound");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-large", detail)
    }

    /// 408: the body did not arrive in time.
    pub(crate) fn slow_body(after: Duration) -> Self {
        let detail = format!("the request body did not arrive within {} s", after.as_secs());
        Self::new(StatusCode::REQUEST_TIMEOUT, "body-timeout", detail)
    }

    /// 400 to a client that is most likely gone: the body ended before its announced length.
    pub(crate) fn broken_body() -> Self {
        Self::new(StatusCode::BAD_REQUEST, "body-incomplete", "the request body ended early")
            .counted_as(Outcome::Cancelled)
    }

    /// 429: the queue is full.
    pub(crate) fn queue_full(max: usize) -> Self {
        let detail = format!("{max} requests wait already and no more may; try again later");
        Self::new(StatusCode::TOO_MANY_REQUESTS, "queue-full", detail).counted_as(Outcome::Rejected).try_again()
    }

    /// 503: no upstream became free in time.
    pub(crate) fn queue_timeout(model: &str, after: Duration) -> Self {
        let detail = format!(
            "no upstream for `{model}` became free within {} s (`coordinator.queue_timeout`); try again later",
            after.as_secs_f64()
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "queue-timeout", detail).counted_as(Outcome::Rejected).try_again()
    }

    /// 503: a local model's server is starting, loading or gone, for longer than is waited.
    pub(crate) fn not_ready(upstream: &str, why: &str) -> Self {
        let detail = format!("the model server `{upstream}` is not ready ({}); try again later", quote(why));
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "upstream-not-ready", detail).try_again()
    }

    /// 502: the upstream cannot be reached, or the connection broke before it answered.
    pub(crate) fn unreachable(upstream: &str, why: &str) -> Self {
        let detail = format!("the upstream `{upstream}` gave no answer: {}", quote(why));
        Self::new(StatusCode::BAD_GATEWAY, "upstream-unreachable", detail)
    }

    /// 502: the upstream does not accept the key that is configured for it.
    pub(crate) fn bad_upstream_key(upstream: &str) -> Self {
        let detail = format!("the upstream `{upstream}` refused the key configured for it; check its `api_key_file`");
        Self::new(StatusCode::BAD_GATEWAY, "upstream-refused-key", detail)
    }

    /// 504: no byte of an answer in time.
    pub(crate) fn first_byte_timeout(upstream: &str, after: Duration) -> Self {
        let detail = format!(
            "the upstream `{upstream}` sent nothing for {} s (`coordinator.first_byte_timeout`)",
            after.as_secs_f64()
        );
        Self::new(StatusCode::GATEWAY_TIMEOUT, "upstream-timeout", detail).counted_as(Outcome::Timeout)
    }

    /// An upstream's error whose body is not in OpenAI's shape: its status, and its words quoted. What is neither a
    /// client's nor a server's error, such as a redirect, becomes 502.
    pub(crate) fn wrapped(upstream: &str, status: StatusCode, body: &[u8]) -> Self {
        let text = String::from_utf8_lossy(body);
        let detail = match quote(text.trim()) {
            said if said.is_empty() => format!("the upstream `{upstream}` answered {status}"),
            said => format!("the upstream `{upstream}` answered {status}: {said}"),
        };
        let known = status.is_client_error() || status.is_server_error();
        Self::new(if known { status } else { StatusCode::BAD_GATEWAY }, "upstream-error", detail)
            .counted_as(Outcome::of_error(status))
    }

    /// The status it is answered with.
    pub fn status(&self) -> StatusCode {
        self.problem.status()
    }

    /// How the request counts.
    pub fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// What a person reads.
    pub fn detail(&self) -> &str {
        self.problem.detail()
    }

    /// The parameter at fault.
    pub fn param(&self) -> Option<&str> {
        self.problem.errors().first().map(|error| error.field.as_str())
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.problem.into_openai_response()
    }
}

fn quote(text: &str) -> String {
    text.chars().take(MAX_QUOTE).collect()
}

/// One server-sent event that tells the client of a stream why it ends here.
pub(crate) fn stream_error(message: &str, code: &str) -> Bytes {
    let error = serde_json::json!({
        "error": {"message": message, "type": "server_error", "param": null, "code": code}
    });
    Bytes::from(format!("data: {error}\n\n"))
}

/// Whether an upstream's error body is what OpenAI's clients expect, so that it can go on unchanged.
pub(crate) fn is_openai_shaped(body: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Message {
        #[serde(rename = "message")]
        _message: String,
    }
    #[derive(Deserialize)]
    struct Shape {
        #[serde(rename = "error")]
        _error: Message,
    }
    serde_json::from_slice::<Shape>(body).is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::header;

    use super::*;

    async fn error_of(refusal: Refusal) -> serde_json::Value {
        let body = axum::body::to_bytes(refusal.into_response().into_body(), 4096).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&body).unwrap()["error"].take()
    }

    #[test]
    fn openai_shape_is_recognised() {
        assert!(is_openai_shaped(br#"{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}"#));
        assert!(!is_openai_shaped(br#"{"error":"no"}"#));
        assert!(!is_openai_shaped(b"<html>Bad Gateway</html>"));
    }

    #[tokio::test]
    async fn unknown_model_lists_what_there_is() {
        let error = error_of(Refusal::unknown_model("qwem", Some("qwen"), &["minilm", "qwen"])).await;
        assert_eq!(error["code"], "model_not_found");
        assert_eq!(error["param"], "model");
        assert_eq!(error["message"], "the model `qwem` does not exist; did you mean `qwen`? There is `minilm`, `qwen`");
    }

    #[test]
    fn a_full_queue_says_when_to_come_back() {
        let refusal = Refusal::queue_full(3);
        assert_eq!(refusal.outcome(), Outcome::Rejected);
        let response = refusal.into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
    }

    #[tokio::test]
    async fn a_redirect_of_an_upstream_is_no_answer() {
        let refusal = Refusal::wrapped("box", StatusCode::MOVED_PERMANENTLY, b"");
        assert_eq!((refusal.status(), refusal.outcome()), (StatusCode::BAD_GATEWAY, Outcome::UpstreamError));
        assert_eq!(error_of(refusal).await["message"], "the upstream `box` answered 301 Moved Permanently");
    }
}
