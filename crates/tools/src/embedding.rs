//! Texts → vectors: by llama.cpp inside this process, or by a server with `/v1/embeddings`.
//!
//! A vector that has no direction is an error, never stored: a failed embedding must not look like a tool.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use lares_config::{Config, Embedding};
use lares_gate::{Client, ClientError};
use lares_llama::catalog;
use lares_llama::embed::{Embedder, EmbedderOptions};

/// Longest wait for the embedding of a query.
const QUERY: Duration = Duration::from_secs(10);
/// Longest wait for the embeddings of documents.
const DOCUMENTS: Duration = Duration::from_secs(120);
/// Most characters of a text sent to a server; about what a model with a context of 512 tokens takes in English.
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
    /// The server with `/v1/embeddings`.
    #[error(transparent)]
    Server(#[from] ClientError),
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
    server: Client,
    name: String,
    id: String,
    width: usize,
}

impl Endpoint {
    fn new(config: &Config) -> Result<Self, EmbedError> {
        let search = &config.tools.search;
        let own = search.url.is_none();
        let base = search.url.clone().unwrap_or_else(|| config.coordinator_url());
        let key_file = search.api_key_file.clone().or_else(|| own.then(|| config.agent_key_file()));
        let server = Client::new(&base, key_file, "lares-tools")?;
        let width = usize::try_from(config.store.vectors.dimensions).unwrap_or(usize::MAX);
        let id = format!("{}@{}", search.model, server.url("/embeddings"));
        Ok(Self { server, name: search.model.clone(), id, width })
    }

    async fn ask(&self, texts: &[String], longest: Duration) -> Result<Vec<Vec<f32>>, EmbedError> {
        let texts = texts.iter().map(|text| text.chars().take(TEXT).collect()).collect();
        Ok(self.server.embed(&self.name, texts, self.width, longest).await?)
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
