//! Texts → vectors: by llama.cpp inside this process, or by a server with `/v1/embeddings`.
//!
//! A vector that has no direction is an error, never stored: a failed embedding must not look like a tool.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lares_config::{Config, Embedding};
use lares_llama::catalog;
use lares_llama::embed::{Embedder, EmbedderOptions};
use lares_store::vectors::Embeddings;
use serde_json::json;
use tokio::time::timeout;

/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest wait for the embedding of a query.
const QUERY: Duration = Duration::from_secs(10);
/// Longest wait for the embeddings of documents.
const DOCUMENTS: Duration = Duration::from_secs(120);
/// Most bytes of an answer: 32 embeddings 4096 wide take 3 MB.
const BYTES: usize = 16 << 20;
/// Most characters of an error that are passed on.
const WHY: usize = 300;
/// Most characters of a text sent to a server: even if each were a token, it fits into what most models take.
const TEXT: usize = 2000;

/// Why there is no vector.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The model for use in this process.
    #[error(transparent)]
    Local(#[from] lares_llama::embed::EmbedError),
    /// The configured model is not there.
    #[error("tools.search.model: {0}")]
    Model(String),
    /// The key for the server cannot be read.
    #[error("the key for embeddings, {}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// No HTTP client can be made.
    #[error("an HTTP client cannot be made: {0}")]
    Client(#[source] reqwest::Error),
    /// The server does not answer.
    #[error("{url} does not answer: {why}")]
    Unreachable {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
    /// The server answers with an error, or with what cannot be used.
    #[error("{url} answers what cannot be used: {why}")]
    Useless {
        /// Where.
        url: String,
        /// Why.
        why: String,
    },
}

/// What makes vectors of unit length, all of one width.
#[async_trait]
pub trait Embeds: Send + Sync {
    /// Names the model; vectors of another model cannot be compared.
    fn model(&self) -> &str;

    /// The vectors of a query's texts, in order. They go before documents that wait.
    ///
    /// # Errors
    /// When there are none within 10 s.
    async fn query(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError>;

    /// The vectors of documents, in order.
    ///
    /// # Errors
    /// When there are none within 2 minutes.
    async fn documents(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError>;
}

/// What the configuration asks for; `None`: embeddings are not wanted.
///
/// # Errors
/// When it is not there.
pub async fn open(config: &Config) -> Result<Option<Arc<dyn Embeds>>, EmbedError> {
    match config.tools.search.embedding {
        Embedding::None => Ok(None),
        Embedding::Endpoint => Ok(Some(Arc::new(Endpoint::new(config)?))),
        Embedding::InProcess => {
            let path = model_file(config)?;
            let threads = usize::try_from(config.tools.search.threads).unwrap_or(1);
            let options = EmbedderOptions { threads, ..EmbedderOptions::default() };
            let embedder = tokio::task::spawn_blocking(move || Embedder::open(&path, options))
                .await
                .map_err(|error| EmbedError::Model(error.to_string()))??;
            let wanted = usize::try_from(config.store.vectors.dimensions).unwrap_or(usize::MAX);
            if embedder.dimensions() != wanted {
                return Err(EmbedError::Model(format!(
                    "the model's vectors are {} wide; set store.vectors.dimensions = {0}",
                    embedder.dimensions()
                )));
            }
            Ok(Some(Arc::new(Local(embedder))))
        }
    }
}

/// The file of the configured model: a path, or a name in the catalog of one that was pulled.
fn model_file(config: &Config) -> Result<PathBuf, EmbedError> {
    let model = &config.tools.search.model;
    if Path::new(model).is_absolute() {
        return Ok(PathBuf::from(model));
    }
    let entry = catalog::find(model).map_err(|error| EmbedError::Model(error.to_string()))?;
    let file = catalog::Artifact::from(entry).path(&config.models_dir());
    if file.is_file() {
        Ok(file)
    } else {
        Err(EmbedError::Model(format!("{} is not there; fetch it with `lares model pull {model}`", file.display())))
    }
}

/// llama.cpp in this process.
struct Local(Embedder);

#[async_trait]
impl Embeds for Local {
    fn model(&self) -> &str {
        self.0.model_id()
    }

    async fn query(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(self.0.embed(texts).await?)
    }

    async fn documents(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        Ok(self.0.embed_in_background(texts).await?)
    }
}

/// A server with `/v1/embeddings`: the coordinator, or another.
#[derive(Debug)]
struct Endpoint {
    http: reqwest::Client,
    url: String,
    key_file: Option<PathBuf>,
    name: String,
    id: String,
    width: usize,
}

impl Endpoint {
    fn new(config: &Config) -> Result<Self, EmbedError> {
        let search = &config.tools.search;
        let own = search.url.is_none();
        let base = search.url.clone().unwrap_or_else(|| config.coordinator_url());
        let url = format!("{}/embeddings", base.trim_end_matches('/'));
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .tls_built_in_root_certs(url.starts_with("https:"))
            .connect_timeout(CONNECT)
            .user_agent("lares-tools")
            .build()
            .map_err(EmbedError::Client)?;
        let key_file = search.api_key_file.clone().or_else(|| own.then(|| config.agent_key_file()));
        let width = usize::try_from(config.store.vectors.dimensions).unwrap_or(usize::MAX);
        Ok(Self { http, id: format!("{}@{url}", search.model), url, key_file, name: search.model.clone(), width })
    }

    async fn ask(&self, texts: &[String], longest: Duration) -> Result<Vec<Vec<f32>>, EmbedError> {
        let unreachable = |why: String| EmbedError::Unreachable { url: self.url.clone(), why };
        let useless = |why: String| EmbedError::Useless { url: self.url.clone(), why };
        let texts: Vec<String> = texts.iter().map(|text| text.chars().take(TEXT).collect()).collect();
        let asked = async {
            let mut request = self.http.post(&self.url);
            if let Some(path) = &self.key_file {
                // Read each time, as keys are replaced while daemons run.
                let key = tokio::fs::read_to_string(path)
                    .await
                    .map_err(|source| EmbedError::Key { path: path.clone(), source })?;
                request = request.bearer_auth(key.trim());
            }
            let body = json!({"model": self.name, "input": texts, "encoding_format": "float"});
            let mut answer =
                request.json(&body).send().await.map_err(|error| unreachable(lares_gate::chain(&error)))?;
            let mut bytes = Vec::new();
            while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(lares_gate::chain(&error)))? {
                bytes.extend_from_slice(&chunk);
                if bytes.len() > BYTES {
                    return Err(useless(format!("more than {BYTES} bytes")));
                }
            }
            let status = answer.status();
            if !status.is_success() {
                let said: String = String::from_utf8_lossy(&bytes).chars().take(WHY).collect();
                return Err(useless(format!("status {}: {said}", status.as_u16())));
            }
            serde_json::from_slice::<Embeddings>(&bytes).map_err(|error| useless(error.to_string()))
        };
        let answer =
            timeout(longest, asked).await.unwrap_or_else(|_| Err(unreachable(format!("not within {longest:?}"))))?;
        answer.in_order(texts.len(), self.width).map_err(useless)
    }
}

#[async_trait]
impl Embeds for Endpoint {
    fn model(&self) -> &str {
        &self.id
    }

    async fn query(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.ask(&texts, QUERY).await
    }

    async fn documents(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.ask(&texts, DOCUMENTS).await
    }
}
