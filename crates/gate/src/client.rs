//! How one room asks another, or a server like it: one JSON question over HTTP, one JSON answer.

use std::path::PathBuf;
use std::time::Duration;

use lares_store::vectors::Embeddings;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::problem::chain;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// How long an unused connection is kept: llama-server hangs up after 5 s.
const KEEP_IDLE: Duration = Duration::from_secs(4);
/// Most bytes of an answer: 32 embeddings 4096 wide take 3 MB.
const BYTES: usize = 16 << 20;
/// Most characters of an error that are passed on.
const WHY: usize = 300;
/// Characters that any model for embeddings takes: even if each were four tokens, one a byte, they fit into 512.
const SHORT: usize = 125;

const EMBEDDINGS: &str = "/embeddings";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The key cannot be read.
    #[error("the key for {url}, {}: {source}", path.display())]
    Key {
        /// What it is for.
        url: String,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No HTTP client can be made.
    #[error("an HTTP client cannot be made: {0}")]
    Setup(#[source] reqwest::Error),
    /// No answer.
    #[error("{url} does not answer: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// An answer that says no.
    #[error("{url} answers {status}: {why}")]
    Refused {
        /// Where.
        url: String,
        /// The status of HTTP.
        status: u16,
        /// The beginning of what it says.
        why: String,
    },
    /// An answer that makes no sense.
    #[error("{url} answers what cannot be used: {why}")]
    Useless {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
}

impl ClientError {
    /// Whether the same question about shorter texts may get an answer. llama-server says 400 or 500 to a text that is too
    /// long, other servers 413 or 422.
    fn is_of_the_texts(&self) -> bool {
        matches!(self, Self::Refused { status: 400 | 413 | 422 | 500, .. })
    }
}

/// Asks one server with an OpenAI-compatible API. Never through a proxy, and never where a redirect points: what is asked
/// may be private, and the key is for this server alone.
#[derive(Debug, Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    key_file: Option<PathBuf>,
}

impl Client {
    /// For the API at `base` (`http://127.0.0.1:8092/v1`), with the key in `key_file`, as the program `name`.
    ///
    /// # Errors
    /// [`ClientError::Setup`].
    pub fn new(base: &str, key_file: Option<PathBuf>, name: &str) -> Result<Self, ClientError> {
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .pool_idle_timeout(KEEP_IDLE)
            // Certificates take some megabytes.
            .tls_built_in_root_certs(base.starts_with("https:"))
            .connect_timeout(CONNECT)
            .user_agent(name)
            .build()
            .map_err(ClientError::Setup)?;
        Ok(Self { http, base: base.trim_end_matches('/').to_owned(), key_file })
    }

    /// Where a route (`/embeddings`) is.
    pub fn url(&self, route: &str) -> String {
        format!("{}{route}", self.base)
    }

    /// The answer of `route` to `body`, within `longest`.
    ///
    /// # Errors
    /// When there is none, or none of this type.
    pub async fn post<T: DeserializeOwned>(
        &self,
        route: &str,
        body: &Value,
        longest: Duration,
    ) -> Result<T, ClientError> {
        self.within(longest, route, self.ask(route, body)).await
    }

    /// An embedding of unit length for each text, in order, each `width` wide, all within `longest`. A text that is too long
    /// for the model is cut until it fits; others are not.
    ///
    /// # Errors
    /// When there are none, or one of them has no direction.
    pub async fn embed(
        &self,
        model: &str,
        texts: Vec<String>,
        width: usize,
        longest: Duration,
    ) -> Result<Vec<Vec<f32>>, ClientError> {
        self.within(longest, EMBEDDINGS, self.embed_each(model, texts, width)).await
    }

    async fn within<T>(
        &self,
        longest: Duration,
        route: &str,
        answer: impl Future<Output = Result<T, ClientError>>,
    ) -> Result<T, ClientError> {
        timeout(longest, answer).await.unwrap_or_else(|_| {
            Err(ClientError::Unreachable { url: self.url(route), why: format!("not within {} s", longest.as_secs()) })
        })
    }

    async fn embed_each(&self, model: &str, texts: Vec<String>, width: usize) -> Result<Vec<Vec<f32>>, ClientError> {
        let mut vectors = Vec::with_capacity(texts.len());
        if texts.is_empty() {
            return Ok(vectors);
        }
        // One text that is too long makes a server refuse all that came with it: halves are asked for, the first before the
        // second, until it is alone.
        let mut waiting = vec![texts];
        while let Some(mut batch) = waiting.pop() {
            let error = match self.embed_once(model, &batch, width).await {
                Ok(found) => {
                    vectors.extend(found);
                    continue;
                }
                Err(error) => error,
            };
            if !error.is_of_the_texts() {
                return Err(error);
            }
            if batch.len() > 1 {
                let second = batch.split_off(batch.len() / 2);
                waiting.extend([second, batch]);
                continue;
            }
            let Some(text) = batch.pop() else { return Err(error) };
            let length = text.chars().count();
            if length <= SHORT {
                return Err(error);
            }
            tracing::debug!(model, length, %error, "a text is cut for its embedding");
            waiting.push(vec![text.chars().take(SHORT.max(length / 2)).collect()]);
        }
        Ok(vectors)
    }

    async fn embed_once(&self, model: &str, texts: &[String], width: usize) -> Result<Vec<Vec<f32>>, ClientError> {
        let body = json!({"model": model, "input": texts, "encoding_format": "float"});
        let answer: Embeddings = self.ask(EMBEDDINGS, &body).await?;
        answer.in_order(texts.len(), width).map_err(|why| ClientError::Useless { url: self.url(EMBEDDINGS), why })
    }

    async fn ask<T: DeserializeOwned>(&self, route: &str, body: &Value) -> Result<T, ClientError> {
        let url = self.url(route);
        let mut request = self.http.post(&url).json(body);
        if let Some(path) = &self.key_file {
            // Read each time, as keys are replaced while daemons run.
            let key = tokio::fs::read_to_string(path).await.map_err(|source| ClientError::Key {
                url: url.clone(),
                path: path.clone(),
                source,
            })?;
            request = request.bearer_auth(key.trim());
        }
        let unreachable = |error| ClientError::Unreachable { url: url.clone(), why: chain(&error) };
        let useless = |why| ClientError::Useless { url: url.clone(), why };
        let mut answer = request.send().await.map_err(unreachable)?;
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(unreachable)? {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > BYTES {
                return Err(useless(format!("more than {BYTES} bytes")));
            }
        }
        let status = answer.status();
        if !status.is_success() {
            let why = String::from_utf8_lossy(&bytes).chars().take(WHY).collect();
            return Err(ClientError::Refused { url, status: status.as_u16(), why });
        }
        serde_json::from_slice(&bytes).map_err(|error| useless(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};

    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode, header};
    use axum::response::{IntoResponse, Response};
    use axum::routing::post;
    use axum::{Json, Router};

    use super::*;

    const LONGEST: Duration = Duration::from_secs(10);

    /// Serves a handler at `/v1/embeddings`.
    async fn serve<S: Clone + Send + Sync + 'static>(state: S, route: axum::routing::MethodRouter<S>) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}/v1", listener.local_addr().unwrap());
        let app = Router::new().route("/v1/embeddings", route).with_state(state);
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        base
    }

    fn client(base: &str) -> Client {
        Client::new(base, None, "test").unwrap()
    }

    fn texts(lengths: &[usize]) -> Vec<String> {
        lengths.iter().map(|length| "ä".repeat(*length)).collect()
    }

    /// Takes texts of 700 characters; a vector points where the length of its text says. Keeps the lengths asked for.
    async fn short_of_breath(State(asked): State<Arc<Mutex<Vec<Vec<usize>>>>>, Json(body): Json<Value>) -> Response {
        let input = body["input"].as_array().unwrap();
        let lengths: Vec<usize> = input.iter().map(|text| text.as_str().unwrap().chars().count()).collect();
        asked.lock().unwrap().push(lengths.clone());
        if lengths.iter().any(|length| *length > 700) {
            return (StatusCode::BAD_REQUEST, "too long").into_response();
        }
        let data: Vec<Value> = lengths.iter().map(|length| json!({"embedding": [length, 1000 - length]})).collect();
        Json(json!({ "data": data })).into_response()
    }

    #[tokio::test]
    async fn a_text_that_is_too_long_is_cut_and_its_neighbours_are_not() {
        let asked = Arc::<Mutex<Vec<Vec<usize>>>>::default();
        let client = client(&serve(Arc::clone(&asked), post(short_of_breath)).await);
        let vectors = client.embed("m", texts(&[10, 600, 3000, 20, 30]), 2, LONGEST).await.unwrap();
        let lengths: Vec<f32> = vectors.iter().map(|v| (v[0] / (v[0] + v[1]) * 1000.0).round()).collect();
        // 3000, 1500, 750, and the last cut leaves 375.
        assert_eq!(lengths, [10.0, 600.0, 375.0, 20.0, 30.0], "{:?}", asked.lock().unwrap());
        let before = asked.lock().unwrap().len();
        assert_eq!(client.embed("m", Vec::new(), 2, LONGEST).await.unwrap(), Vec::<Vec<f32>>::new());
        assert_eq!(asked.lock().unwrap().len(), before, "nothing to ask");
    }

    #[tokio::test]
    async fn a_server_that_refuses_everything_is_believed_soon() {
        let asked = Arc::<Mutex<usize>>::default();
        let refuse = |State(asked): State<Arc<Mutex<usize>>>| async move {
            *asked.lock().unwrap() += 1;
            (StatusCode::INTERNAL_SERVER_ERROR, "no such thing")
        };
        let base = serve(Arc::clone(&asked), post(refuse)).await;
        let error = client(&base).embed("m", texts(&[2000; 32]), 2, LONGEST).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{base}/embeddings answers 500: no such thing"));
        let asked = *asked.lock().unwrap();
        assert!(asked <= 10, "{asked} requests");
    }

    #[tokio::test]
    async fn what_is_no_matter_of_the_texts_is_not_tried_again() {
        let asked = Arc::<Mutex<usize>>::default();
        let refuse = |State(asked): State<Arc<Mutex<usize>>>| async move {
            *asked.lock().unwrap() += 1;
            StatusCode::UNAUTHORIZED
        };
        let base = serve(Arc::clone(&asked), post(refuse)).await;
        let error = client(&base).embed("m", texts(&[2000, 1]), 2, LONGEST).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { status: 401, .. }), "{error}");
        assert_eq!(*asked.lock().unwrap(), 1);
    }

    #[tokio::test]
    async fn a_server_that_hangs_or_talks_without_end_is_given_up() {
        let hang = || async { std::future::pending::<StatusCode>().await };
        let base = serve((), post(hang)).await;
        let error = client(&base).embed("m", texts(&[1]), 2, Duration::from_millis(100)).await.unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        let talk = || async { " ".repeat(BYTES + 1) };
        let base = serve((), post(talk)).await;
        let error = client(&base).embed("m", texts(&[1]), 2, LONGEST).await.unwrap_err();
        assert!(matches!(error, ClientError::Useless { .. }), "{error}");
    }

    #[tokio::test]
    async fn the_key_is_read_for_each_question_and_goes_to_nobody_else() {
        let shown = Arc::<Mutex<Vec<String>>>::default();
        let keep = |State(shown): State<Arc<Mutex<Vec<String>>>>, headers: HeaderMap| async move {
            let key = headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned());
            shown.lock().unwrap().push(key.unwrap_or_default());
            Json(json!({"data": [{"embedding": [1, 0]}]}))
        };
        let base = serve(Arc::clone(&shown), post(keep)).await;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        let client = Client::new(&base, Some(file.clone()), "test").unwrap();
        let error = client.embed("m", texts(&[1]), 2, LONGEST).await.unwrap_err();
        assert!(matches!(&error, ClientError::Key { path, .. } if *path == file), "{error}");
        for key in ["one\n", "two"] {
            std::fs::write(&file, key).unwrap();
            client.embed("m", texts(&[1]), 2, LONGEST).await.unwrap();
        }
        assert_eq!(*shown.lock().unwrap(), ["Bearer one", "Bearer two"]);

        let there = format!("{base}/embeddings");
        let redirect = move || async move {
            (StatusCode::TEMPORARY_REDIRECT, [(header::LOCATION, there.clone())]).into_response()
        };
        let client = Client::new(&serve((), post(redirect)).await, Some(file), "test").unwrap();
        let error = client.embed("m", texts(&[1]), 2, LONGEST).await.unwrap_err();
        assert!(matches!(error, ClientError::Refused { status: 307, .. }), "{error}");
        assert_eq!(shown.lock().unwrap().len(), 2);
    }
}
