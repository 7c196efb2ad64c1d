//! The one shape of an error: RFC 9457 problem details, and the shape of OpenAI's API below `/v1`.
//!
//! A [`Problem`] travels in the extensions of its own response, so the surface can turn it into the other shape on the
//! way out and handlers need not know which routes they serve.

use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use serde::Serialize;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// An error as callers see it (`application/problem+json`).
#[derive(Debug, Clone, Serialize)]
pub struct Problem(Box<Details>);

/// What a problem consists of. Boxed, since errors travel through every `Result` of a handler.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(description = "What went wrong (RFC 9457).")]
struct Details {
    /// `urn:lares:problem:` and the kind of problem; stable, made for programs.
    #[serde(rename = "type")]
    #[schema(example = "urn:lares:problem:not-found")]
    kind: String,
    /// The kind of problem in words; the same for every problem of that type.
    title: String,
    /// The HTTP status, repeated.
    #[serde(serialize_with = "as_number")]
    #[schema(value_type = u16, example = 404)]
    status: StatusCode,
    /// What happened this time, and what to do about it.
    detail: String,
    /// The fields of the request that are wrong.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<FieldError>,
    #[serde(skip)]
    #[schema(ignore)]
    slug: &'static str,
    #[serde(skip)]
    #[schema(ignore)]
    headers: HeaderMap,
}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        Details::schema()
    }
}

impl ToSchema for Problem {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        Details::schemas(schemas);
    }
}

/// One wrong field of a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub struct FieldError {
    /// Where it is, for example `messages[0].role`; empty for the body as a whole.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

/// An error as OpenAI's API shows it.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiError {
    error: OpenAiErrorDetails,
}

/// What an error of OpenAI's API consists of.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct OpenAiErrorDetails {
    /// What happened, and what to do about it.
    message: String,
    /// The class of error, by status.
    #[serde(rename = "type")]
    #[schema(example = "invalid_request_error")]
    kind: &'static str,
    /// The field of the request that is wrong.
    #[schema(required)]
    param: Option<String>,
    /// The kind of problem; stable, made for programs.
    code: String,
}

fn as_number<S: serde::Serializer>(status: &StatusCode, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u16(status.as_u16())
}

impl Problem {
    /// A problem of the kind `slug` (kebab-case, such as `task-not-found`); `detail` says what to do next.
    pub fn new(status: StatusCode, slug: &'static str, detail: impl Into<String>) -> Self {
        let mut title = slug.replace('-', " ");
        if let Some(first) = title.get_mut(..1) {
            first.make_ascii_uppercase();
        }
        Self(Box::new(Details {
            kind: format!("urn:lares:problem:{slug}"),
            title,
            status,
            detail: detail.into(),
            errors: Vec::new(),
            slug,
            headers: HeaderMap::new(),
        }))
    }

    /// 400.
    pub fn bad_request(slug: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, slug, detail)
    }

    /// 404.
    pub fn not_found(slug: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, slug, detail)
    }

    /// 409.
    pub fn conflict(slug: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, slug, detail)
    }

    /// 503.
    pub fn unavailable(slug: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, slug, detail)
    }

    /// 500 for a cause that is logged but, since it may name things the caller must not learn, not told.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %chain(cause), "request failed");
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal-error",
            "the request failed; the log has the cause, under the request id of this answer",
        )
    }

    /// Adds a wrong field.
    #[must_use]
    pub fn error(mut self, field: impl Into<String>, detail: impl Into<String>) -> Self {
        self.0.errors.push(FieldError { field: field.into(), detail: detail.into() });
        self
    }

    /// Adds a header to the answer.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.insert(name, value);
        self
    }

    /// Tells the caller when to try again, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        self.header(RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.0.status
    }

    /// The kind of problem, in kebab-case.
    pub fn slug(&self) -> &'static str {
        self.0.slug
    }

    /// What happened this time.
    pub fn detail(&self) -> &str {
        &self.0.detail
    }

    /// The fields of the request that are wrong.
    pub fn errors(&self) -> &[FieldError] {
        &self.0.errors
    }

    /// The same error in the shape of OpenAI's API; its `code` is the slug with `_` for `-`.
    ///
    /// Routes below [`Surface::openai_errors_below`](crate::Surface::openai_errors_below) need not call it.
    pub fn into_openai_response(self) -> Response {
        let body = OpenAiError {
            error: OpenAiErrorDetails {
                message: self.0.detail.clone(),
                kind: openai_type(self.0.status),
                param: self.0.errors.first().map(|e| e.field.clone()).filter(|f| !f.is_empty()),
                code: self.0.slug.replace('-', "_"),
            },
        };
        let body = serde_json::to_string(&body).unwrap_or_else(|_| "{}".to_owned());
        self.answer("application/json", body)
    }

    fn answer(self, content_type: &'static str, body: String) -> Response {
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.0.status;
        response.headers_mut().extend(self.0.headers.clone());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        response.extensions_mut().insert(self);
        response
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_string(&self).unwrap_or_else(|_| "{}".to_owned());
        self.answer("application/problem+json", body)
    }
}

impl From<lares_store::Error> for Problem {
    fn from(error: lares_store::Error) -> Self {
        if error.is_temporary() {
            tracing::warn!(%error, "request failed for want of PostgreSQL");
            return Self::unavailable("store-unavailable", "PostgreSQL cannot be reached; try again in a moment")
                .retry_after(Duration::from_secs(1));
        }
        match error {
            lares_store::Error::KeyNameTaken(_) => Self::conflict("key-name-taken", error.to_string()),
            other => Self::internal(&other),
        }
    }
}

/// The `type` of OpenAI's errors. Its clients raise by status; people read this.
fn openai_type(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "authentication_error",
        StatusCode::FORBIDDEN => "permission_error",
        StatusCode::NOT_FOUND => "not_found_error",
        StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
        status if status.is_server_error() => "server_error",
        _ => "invalid_request_error",
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http_body_util::BodyExt;

    async fn body(response: Response) -> String {
        String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_problem_has_the_members_of_rfc_9457() {
        let problem = Problem::bad_request("invalid-body", "`prompt` is missing").error("prompt", "missing");
        let response = problem.into_response();
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
        insta::assert_snapshot!(body(response).await, @r#"{"type":"urn:lares:problem:invalid-body","title":"Invalid body","status":400,"detail":"`prompt` is missing","errors":[{"field":"prompt","detail":"missing"}]}"#);
    }

    #[tokio::test]
    async fn the_openai_shape_keeps_status_and_headers() {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "queue-full", "256 requests wait; try again")
            .retry_after(Duration::from_millis(1200));
        let response = problem.into_openai_response();
        assert_eq!(response.status(), 429);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        insta::assert_snapshot!(body(response).await, @r#"{"error":{"message":"256 requests wait; try again","type":"rate_limit_error","param":null,"code":"queue_full"}}"#);
    }

    #[test]
    fn openai_types_follow_the_status() {
        for (status, expected) in [
            (400, "invalid_request_error"),
            (401, "authentication_error"),
            (403, "permission_error"),
            (404, "not_found_error"),
            (413, "invalid_request_error"),
            (429, "rate_limit_error"),
            (500, "server_error"),
            (503, "server_error"),
        ] {
            assert_eq!(openai_type(StatusCode::from_u16(status).unwrap()), expected);
        }
    }

    #[test]
    fn an_internal_error_does_not_tell_its_cause() {
        let cause = std::io::Error::other("password of postgres://lares:hunter2@db");
        let problem = Problem::internal(&cause);
        assert!(!serde_json::to_string(&problem).unwrap().contains("hunter2"));
    }
}
