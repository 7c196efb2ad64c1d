//! Asks a running llama-server how it is and what it serves.

use std::time::Duration;

use reqwest::Client;
use serde::Deserialize;

/// Longest wait for an answer. Both routes answer at once, even while the server computes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Why a server was not asked, or did not answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// No connection, or a broken one.
    #[error("llama-server at {base} does not answer: {source}")]
    Http {
        /// Where it should be.
        base: String,
        /// What happened.
        source: reqwest::Error,
    },
    /// The server's answer was no.
    #[error("llama-server at {base} answered {status} to {route}")]
    Status {
        /// Where it is.
        base: String,
        /// What it was asked.
        route: &'static str,
        /// What it answered.
        status: u16,
    },
}

/// What a server serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Props {
    /// Tokens of context each request has.
    pub context_per_slot: u32,
    /// Requests served at the same time.
    pub slots: u32,
    /// The GGUF file.
    pub model_path: String,
}

async fn get(base: &str, route: &'static str, key: Option<&str>) -> Result<reqwest::Response, ClientError> {
    let http = |source: reqwest::Error| ClientError::Http { base: base.to_owned(), source: source.without_url() };
    let client = Client::builder().timeout(TIMEOUT).no_proxy().build().map_err(http)?;
    let request = client.get(format!("{}{route}", base.trim_end_matches('/')));
    let request = match key {
        Some(key) => request.bearer_auth(key),
        None => request,
    };
    request.send().await.map_err(http)
}

/// Whether the server at `base` (such as `http://127.0.0.1:8080`) has loaded its model. While it loads it answers 503.
pub async fn is_ready(base: &str) -> Result<bool, ClientError> {
    let status = get(base, "/health", None).await?.status();
    match status.as_u16() {
        200 => Ok(true),
        503 => Ok(false),
        status => Err(ClientError::Status { base: base.to_owned(), route: "/health", status }),
    }
}

/// What the server at `base` serves; `key` where it asks for one.
pub async fn props(base: &str, key: Option<&str>) -> Result<Props, ClientError> {
    #[derive(Deserialize)]
    struct Settings {
        n_ctx: u32,
    }
    #[derive(Deserialize)]
    struct Answer {
        default_generation_settings: Settings,
        total_slots: u32,
        #[serde(default)]
        model_path: String,
    }
    let response = get(base, "/props", key).await?;
    let status = response.status();
    if !status.is_success() {
        return Err(ClientError::Status { base: base.to_owned(), route: "/props", status: status.as_u16() });
    }
    let answer: Answer = response.json().await.map_err(|source| ClientError::Http { base: base.to_owned(), source })?;
    Ok(Props {
        context_per_slot: answer.default_generation_settings.n_ctx,
        slots: answer.total_slots,
        model_path: answer.model_path,
    })
}
