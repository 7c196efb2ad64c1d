//! What is read of a request body, and the one thing that is ever changed in it.
//!
//! Only `model` and `stream` are looked at, borrowed from the body; everything else is checked to be JSON and passed
//! on. When the upstream knows the model by another name, that string is replaced in place, so every other byte (order,
//! white space, unknown fields) arrives as it was sent.

use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::refusal::Refusal;

/// The endpoints that are routed to upstreams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "the names are OpenAI's")]
pub enum Endpoint {
    ChatCompletions,
    Completions,
    Embeddings,
}

impl Endpoint {
    /// All of them, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::ChatCompletions, Self::Completions, Self::Embeddings];

    /// The path below `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::ChatCompletions => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
        }
    }
}

/// A request body with what routing needs to know of it.
#[derive(Debug, Clone)]
pub struct Ask {
    /// The model asked for.
    pub model: String,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    body: Bytes,
    /// Where in the body the model's name is, quotes included.
    model_at: std::ops::Range<usize>,
}

#[derive(Deserialize)]
struct Looked<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    stream: Option<&'a RawValue>,
}

impl Ask {
    /// Reads a body.
    ///
    /// # Errors
    /// A 400 that names the parameter when the body is no JSON object, `model` is missing or not a string, or `stream`
    /// is not a boolean.
    pub fn read(body: Bytes) -> Result<Self, Refusal> {
        let looked: Looked<'_> = match serde_json::from_slice(&body) {
            Ok(looked) => looked,
            Err(error) if error.is_data() => {
                return Err(Refusal::invalid_body(format!("the request body must be one JSON object: {error}")));
            }
            Err(error) => return Err(Refusal::invalid_body(format!("the request body is not valid JSON: {error}"))),
        };
        // serde would take an array for the fields in order.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(Refusal::invalid_body("the request body must be one JSON object".to_owned()));
        }
        let Some(raw) = looked.model else {
            return Err(Refusal::parameter("model", "`model` is missing; `GET /v1/models` lists the names"));
        };
        let model: String =
            serde_json::from_str(raw.get()).map_err(|_| Refusal::parameter("model", "`model` must be a string"))?;
        let stream = match looked.stream.map(RawValue::get) {
            None | Some("false") => false,
            Some("true") => true,
            Some(_) => return Err(Refusal::parameter("stream", "`stream` must be true or false")),
        };
        // The raw value is borrowed from the body, so the distance of the two is its place.
        let start = raw.get().as_ptr() as usize - body.as_ptr() as usize;
        let model_at = start..start + raw.get().len();
        Ok(Self { model, stream, body, model_at })
    }

    /// The body for an upstream that knows the model as `upstream_model`.
    pub fn body_for(&self, upstream_model: &str) -> Bytes {
        if upstream_model == self.model {
            return self.body.clone();
        }
        let name = serde_json::Value::from(upstream_model).to_string();
        let mut body = BytesMut::with_capacity(self.body.len() + name.len());
        body.extend_from_slice(&self.body[..self.model_at.start]);
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&self.body[self.model_at.end..]);
        body.freeze()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn read(body: &'static str) -> Result<Ask, Refusal> {
        Ask::read(Bytes::from_static(body.as_bytes()))
    }

    #[test]
    fn same_name_passes_the_very_bytes() {
        let ask = read(r#"{ "model" : "a", "x": 1.50, "stream":true}"#).unwrap();
        assert_eq!(ask.model, "a");
        assert!(ask.stream);
        assert_eq!(ask.body_for("a").as_ptr(), ask.body.as_ptr());
    }

    #[test]
    fn another_name_changes_the_model_and_nothing_else() {
        let ask = read("{\"z\":1e5,\n \"model\" :\t\"a\\u0062\", \"tools\":[{\"model\":\"ab\"}],\"a\":\"\\u00e9\"} ")
            .unwrap();
        assert_eq!(ask.model, "ab");
        assert_eq!(
            ask.body_for("Qwen/\"2\""),
            "{\"z\":1e5,\n \"model\" :\t\"Qwen/\\\"2\\\"\", \"tools\":[{\"model\":\"ab\"}],\"a\":\"\\u00e9\"} "
        );
    }

    #[test]
    fn bad_bodies_name_the_parameter() {
        let cases = [
            ("", None),
            ("{", None),
            ("[]", None),
            ("\"model\"", None),
            (r#"{"model":"a","model":"b"}"#, None),
            (r#"{"messages":[]}"#, Some("model")),
            (r#"{"model":null}"#, Some("model")),
            (r#"{"model":7}"#, Some("model")),
            (r#"{"model":"a","stream":"yes"}"#, Some("stream")),
            (r#"{"model":"a","stream":1}"#, Some("stream")),
        ];
        for (body, parameter) in cases {
            let refusal = read(body).unwrap_err();
            assert_eq!(refusal.status(), 400, "{body}");
            assert_eq!(refusal.param(), parameter, "{body}");
        }
        assert!(!read(r#"{"model":"a","stream":null}"#).unwrap().stream);
    }

    proptest! {
        #[test]
        fn the_rewritten_body_differs_only_in_the_model(name in ".{0,12}", other in ".{0,12}", text in ".*", n in any::<i64>()) {
            let mut value = serde_json::json!({"a": n, "messages": [{"role": "user", "content": text}], "model": name});
            let ask = Ask::read(Bytes::from(serde_json::to_vec(&value).unwrap())).unwrap();
            prop_assert_eq!(&ask.model, &name);
            value["model"] = other.clone().into();
            prop_assert_eq!(ask.body_for(&other), serde_json::to_vec(&value).unwrap());
        }
    }
}
