//! JSON in and out of handlers; what cannot be taken in is a [`Problem`] that names the field.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse, Response};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::problem::Problem;

/// A JSON body. As an extractor it reads one (`application/json` or `…+json`), as an answer it writes one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Json<T>(pub T);

impl<S, T> FromRequest<S> for Json<T>
where
    S: Send + Sync,
    T: DeserializeOwned,
{
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "json-expected",
                "the body must be JSON; send it with `Content-Type: application/json`",
            ));
        }
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
                too_large()
            } else {
                unreadable(rejection.body_text())
            }
        })?;
        from_slice(&body).map(Json)
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        match serde_json::to_vec(&self.0) {
            Ok(body) => ([(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response(),
            Err(error) => Problem::internal(&error).into_response(),
        }
    }
}

/// 413, whoever noticed it first.
pub(crate) fn too_large() -> Problem {
    Problem::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "body-too-large",
        "the body is larger than this surface takes; send less at a time",
    )
}

fn unreadable(why: String) -> Problem {
    Problem::bad_request("body-unreadable", why)
}

fn is_json(headers: &HeaderMap) -> bool {
    let essence = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).and_then(|v| v.split(';').next());
    essence.is_some_and(|e| {
        let e = e.trim().to_ascii_lowercase();
        e == "application/json" || (e.starts_with("application/") && e.ends_with("+json"))
    })
}

fn from_slice<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        explain(&path, error.inner())
    })?;
    deserializer.end().map_err(|error| explain(".", &error))?;
    Ok(value)
}

fn explain(path: &str, error: &serde_json::Error) -> Problem {
    let said = error.to_string();
    if !error.is_data() {
        return Problem::bad_request("invalid-json", format!("the body is not JSON: {said}"));
    }
    // serde_json adds where in the text it stopped, which says less than the name of the field.
    let said = said.rsplit_once(" at line ").map_or(said.as_str(), |(said, _)| said);
    let mut field = if path == "." { String::new() } else { path.to_owned() };
    if let Some(name) = quoted(said, "missing field `").or_else(|| quoted(said, "unknown field `"))
        && field != name
        && !field.ends_with(&format!(".{name}"))
    {
        if !field.is_empty() {
            field.push('.');
        }
        field.push_str(name);
    }
    let detail = if field.is_empty() { said.to_owned() } else { format!("{field}: {said}") };
    Problem::bad_request("invalid-body", detail).error(field, said)
}

fn quoted<'a>(said: &'a str, before: &str) -> Option<&'a str> {
    said.strip_prefix(before)?.split('`').next()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use axum::body::Body;
    use axum::extract::DefaultBodyLimit;
    use serde::Deserialize;
    use tower::Layer;
    use tower::ServiceExt;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only taken in")]
    struct Chat {
        messages: Vec<Message>,
        #[serde(default)]
        seed: Option<u8>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only taken in")]
    struct Message {
        role: String,
    }

    #[test]
    fn the_problem_names_the_field() {
        for (body, field, said) in [
            (r#"{"messages":[{"role":"user"},{"role":5}]}"#, "messages[1].role", "invalid type: integer `5`"),
            (r#"{"messages":[{}]}"#, "messages[0].role", "missing field `role`"),
            (r#"{}"#, "messages", "missing field `messages`"),
            (r#"{"messages":[],"sede":1}"#, "sede", "unknown field `sede`, expected `messages` or `seed`"),
            (r#"{"messages":[{"role":"user","x":1}]}"#, "messages[0].x", "unknown field `x`"),
            (r#"{"messages":[],"seed":256}"#, "seed", "invalid value: integer `256`"),
            (r#"[1]"#, "[0]", "invalid type"),
            (r#""text""#, "", "invalid type: string"),
        ] {
            let problem = from_slice::<Chat>(body.as_bytes()).unwrap_err();
            assert_eq!((problem.status().as_u16(), problem.slug()), (400, "invalid-body"), "{body}");
            let error = &problem.errors()[0];
            assert_eq!(error.field, field, "{body}: {}", error.detail);
            assert!(error.detail.contains(said) && !error.detail.contains("line"), "{body}: {}", error.detail);
        }
    }

    #[test]
    fn what_is_not_json_says_where() {
        for body in ["", "{", r#"{"messages":[]} more"#] {
            let problem = from_slice::<Chat>(body.as_bytes()).unwrap_err();
            assert_eq!(problem.slug(), "invalid-json");
            assert!(problem.detail().contains("line 1 column"), "{}", problem.detail());
        }
    }

    async fn sent(content_type: &str, body: &'static str) -> Result<(), Problem> {
        let handle = tower::service_fn(|request: Request| async move {
            Ok::<_, Problem>(Json::<Chat>::from_request(request, &()).await.map(drop))
        });
        let request = Request::post("/").header(CONTENT_TYPE, content_type).body(Body::from(body)).unwrap();
        DefaultBodyLimit::max(64).layer(handle).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn only_json_of_a_bearable_size_is_taken() {
        assert!(sent("application/json; charset=utf-8", r#"{"messages":[]}"#).await.is_ok());
        assert!(sent("application/merge-patch+json", r#"{"messages":[]}"#).await.is_ok());
        assert_eq!(sent("text/plain", r#"{"messages":[]}"#).await.unwrap_err().status(), 415);
        let long = r#"{"messages":[{"role":"user"},{"role":"user"},{"role":"user"},{"role":"user"}]}"#;
        assert_eq!(sent("application/json", long).await.unwrap_err().status(), 413);
    }
}
