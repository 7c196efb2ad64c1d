//! Asking the coordinator, over the OpenAI-compatible API.
//!
//! Answers are streamed, so a server that hangs is told from one that is slow, and dropping a request stops the
//! model. A request that got no answer is sent again a few times: llama-server takes seconds to come back.

use std::path::PathBuf;
use std::time::Duration;

use futures_util::StreamExt;
use rand::Rng;
use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::backend::{BackendError, Usage};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the list of models.
const DESCRIBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Tries after the first; with their pauses they last about half a minute.
const RETRIES: u32 = 5;
/// First pause; it doubles.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest pause, also when the server asks for more.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// Most bytes of an answer: far more than `max_answer_tokens` of text.
const MAX_ANSWER: usize = 4 << 20;
/// Most characters of an error that are passed on.
const MAX_MESSAGE: usize = 500;

#[derive(Debug)]
pub(super) struct Client {
    http: reqwest::Client,
    url: String,
    key_file: Option<PathBuf>,
}

/// One question.
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) model: &'a str,
    pub(super) system: &'a str,
    pub(super) user: &'a str,
    pub(super) temperature: f32,
    pub(super) seed: Option<u32>,
    pub(super) max_tokens: u32,
    /// For the whole answer.
    pub(super) timeout: Duration,
}

/// One answer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) finish_reason: String,
    pub(super) usage: Usage,
}

impl Answer {
    /// It ended because there was no room left, not because it was finished.
    pub(super) fn truncated(&self) -> bool {
        self.finish_reason == "length"
    }
}

/// What a server says of a model.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Description {
    pub(super) window: Option<u32>,
    pub(super) billions: Option<f64>,
}

/// A failed try, and whether another one may help.
enum Failure {
    Again(String, Option<Duration>),
    Final(BackendError),
}

impl Client {
    pub(super) fn new(url: &str, key_file: Option<PathBuf>) -> Result<Self, BackendError> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .build()
            .map_err(|error| BackendError::Setup(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self { http, url: url.trim_end_matches('/').to_owned(), key_file })
    }

    /// Adds the key. The file is read each time, as keys are replaced while daemons run.
    async fn authorized(&self, request: reqwest::RequestBuilder) -> Result<reqwest::RequestBuilder, BackendError> {
        let Some(file) = &self.key_file else { return Ok(request) };
        let key = tokio::fs::read_to_string(file).await.map_err(|error| {
            BackendError::Setup(format!("the key for the coordinator, {}: {error}", file.display()))
        })?;
        Ok(request.bearer_auth(key.trim()))
    }

    /// What the server says of `model`. Not knowing is no error.
    pub(super) async fn describe(&self, model: &str) -> Description {
        let Ok(request) = self.authorized(self.http.get(format!("{}/models", self.url))).await else {
            return Description::default();
        };
        let fetch = async { request.send().await?.error_for_status()?.json::<Value>().await };
        match tokio::time::timeout(DESCRIBE_TIMEOUT, fetch).await {
            Ok(Ok(models)) => description(&models, model),
            _ => Description::default(),
        }
    }

    pub(super) async fn ask(&self, request: &Request<'_>) -> Result<Answer, BackendError> {
        let asked = tokio::time::timeout(request.timeout, self.ask_until_answered(request)).await;
        asked.unwrap_or_else(|_| {
            let reason = format!("no whole answer within {:?} (agents.builtin.answer_timeout)", request.timeout);
            Err(BackendError::Unreachable { url: self.url.clone(), reason })
        })
    }

    async fn ask_until_answered(&self, request: &Request<'_>) -> Result<Answer, BackendError> {
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            match self.ask_once(request).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(reason, _)) if tries == RETRIES => {
                    return Err(BackendError::Unreachable { url: self.url.clone(), reason });
                }
                Err(Failure::Again(reason, wanted)) => {
                    let wait = wanted.unwrap_or(pause).min(PAUSE_MAX);
                    let wait = wait.mul_f64(rand::rng().random_range(0.75..1.25));
                    tracing::debug!(reason, ?wait, "asking the model again");
                    tokio::time::sleep(wait).await;
                    pause *= 2;
                    tries += 1;
                }
            }
        }
    }

    async fn ask_once(&self, request: &Request<'_>) -> Result<Answer, Failure> {
        let mut body = json!({
            "model": request.model,
            "messages": [
                {"role": "system", "content": request.system},
                {"role": "user", "content": request.user},
            ],
            "temperature": request.temperature,
            "max_tokens": request.max_tokens,
            "stream": true,
            "stream_options": {"include_usage": true},
        });
        if let Some(seed) = request.seed {
            body["seed"] = seed.into();
        }
        let post = self.http.post(format!("{}/chat/completions", self.url)).json(&body);
        let post = self.authorized(post).await.map_err(Failure::Final)?;
        let response = post.send().await.map_err(|error| Failure::Again(reason(&error), None))?;
        let status = response.status();
        if !status.is_success() {
            let wanted = retry_after(response.headers());
            let text = response.text().await.unwrap_or_default();
            let message = error_message(&text);
            return Err(match status {
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT => Failure::Again(format!("status {status}: {message}"), wanted),
                _ => Failure::Final(BackendError::Refused { status: status.as_u16(), message }),
            });
        }
        let mut stream = response.bytes_stream();
        let mut events = Events::default();
        while let Some(chunk) = stream.next().await {
            let chunk =
                chunk.map_err(|error| Failure::Again(format!("the answer broke off: {}", reason(&error)), None))?;
            events.push(&chunk).map_err(|message| Failure::Again(message, None))?;
            if events.done {
                break;
            }
        }
        events.finish().map_err(|message| Failure::Again(message, None))
    }
}

/// What is below an error of reqwest: its own text only says which request it was.
fn reason(error: &reqwest::Error) -> String {
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// The words in an error body: OpenAI's shape, a problem document, or whatever came.
fn error_message(body: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let said = parsed.as_ref().and_then(|value| {
        [value.pointer("/error/message"), value.pointer("/detail"), value.pointer("/error"), value.pointer("/title")]
            .into_iter()
            .flatten()
            .find_map(Value::as_str)
    });
    said.unwrap_or(body).trim().chars().take(MAX_MESSAGE).collect()
}

/// Finds `model` in a `/v1/models` answer, by id or alias; several servers say more than the API asks for.
fn description(models: &Value, model: &str) -> Description {
    let named = |entry: &&Value| {
        entry["id"] == model || entry["aliases"].as_array().is_some_and(|aliases| aliases.iter().any(|a| a == model))
    };
    let Some(entry) = models["data"].as_array().and_then(|entries| entries.iter().find(named)) else {
        return Description::default();
    };
    let places = ["/context_size", "/context_length", "/context_window", "/max_model_len", "/meta/n_ctx"];
    let window = places.into_iter().find_map(|place| entry.pointer(place)?.as_u64());
    let parameters = entry.pointer("/meta/n_params").and_then(Value::as_f64);
    Description {
        window: window.and_then(|window| u32::try_from(window).ok()).filter(|&window| window > 0),
        billions: parameters.map(|parameters| parameters / 1e9),
    }
}

/// The server-sent events of one answer, put together as they come.
#[derive(Default)]
struct Events {
    pending: Vec<u8>,
    answer: Answer,
    pieces: u64,
    done: bool,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<ChunkUsage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize, Default)]
struct Delta {
    content: Option<String>,
}

#[derive(Deserialize)]
struct ChunkUsage {
    #[serde(default)]
    prompt_tokens: u64,
    #[serde(default)]
    completion_tokens: u64,
}

impl Events {
    fn push(&mut self, bytes: &[u8]) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() + self.answer.text.len() > MAX_ANSWER {
            return Err("the answer is longer than any that was asked for".to_owned());
        }
        while let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.pending.drain(..=end).collect();
            self.line(&String::from_utf8_lossy(&line))?;
        }
        Ok(())
    }

    fn line(&mut self, line: &str) -> Result<(), String> {
        let Some(data) = line.trim_end().strip_prefix("data:").map(str::trim) else { return Ok(()) };
        if data == "[DONE]" {
            self.done = true;
            return Ok(());
        }
        let chunk: Chunk = serde_json::from_str(data).map_err(|error| format!("an event that is no JSON: {error}"))?;
        if let Some(error) = chunk.error {
            return Err(error_message(&json!({"error": error}).to_string()));
        }
        for choice in chunk.choices.into_iter().take(1) {
            if let Some(content) = choice.delta.content {
                self.pieces += u64::from(!content.is_empty());
                self.answer.text.push_str(&content);
            }
            if let Some(reason) = choice.finish_reason {
                self.answer.finish_reason = reason;
            }
        }
        if let Some(usage) = chunk.usage {
            self.answer.usage =
                Usage { prompt_tokens: usage.prompt_tokens, completion_tokens: usage.completion_tokens };
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Answer, String> {
        if self.answer.finish_reason.is_empty() {
            return Err("the answer broke off".to_owned());
        }
        if self.answer.usage.completion_tokens == 0 {
            // llama-server sends a piece a token.
            self.answer.usage.completion_tokens = self.pieces;
        }
        Ok(self.answer)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chunk(content: &str, finish: Option<&str>) -> String {
        format!("data: {}\r\n\r\n", json!({"choices": [{"delta": {"content": content}, "finish_reason": finish}]}))
    }

    #[test]
    fn an_answer_is_the_same_however_its_bytes_are_cut() {
        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":3}}\n\n";
        let all = format!(": hello\n\n{}{}{usage}data: [DONE]\n\n", chunk("größe ", None), chunk("✓", Some("stop")));
        for cut in 1..all.len() {
            let mut events = Events::default();
            for part in all.as_bytes().chunks(cut) {
                events.push(part).unwrap();
            }
            assert!(events.done);
            let answer = events.finish().unwrap();
            assert_eq!((answer.text.as_str(), answer.finish_reason.as_str()), ("größe ✓", "stop"));
            assert_eq!(answer.usage, Usage { prompt_tokens: 7, completion_tokens: 3 });
        }
    }

    #[test]
    fn an_answer_without_an_end_is_broken_off() {
        let mut events = Events::default();
        events.push(chunk("def f(", None).as_bytes()).unwrap();
        assert!(events.finish().unwrap_err().contains("broke off"));
    }

    #[test]
    fn an_error_in_the_stream_is_said_in_its_words() {
        let mut events = Events::default();
        let error = events.push(b"data: {\"error\":{\"message\":\"slot lost\"}}\n").unwrap_err();
        assert_eq!(error, "slot lost");
    }

    #[test]
    fn errors_are_read_in_every_shape() {
        assert_eq!(error_message(r#"{"error":{"message":"too long"}}"#), "too long");
        assert_eq!(error_message(r#"{"type":"about:blank","title":"No","detail":"no such model"}"#), "no such model");
        assert_eq!(error_message(r#"{"error":"plain"}"#), "plain");
        assert_eq!(error_message("  bad gateway\n"), "bad gateway");
    }

    #[test]
    fn a_server_may_say_how_much_context_a_model_has() {
        let models = json!({"data": [
            {"id": "other"},
            {"id": "coder", "aliases": ["c"], "meta": {"n_ctx": 8192, "n_params": 494_032_768u64}},
        ]});
        let known = Description { window: Some(8192), billions: Some(0.494032768) };
        assert_eq!(description(&models, "coder"), known);
        assert_eq!(description(&models, "c"), known);
        assert_eq!(description(&models, "other"), Description::default());
        assert_eq!(description(&json!("x"), "c"), Description::default());
    }
}
