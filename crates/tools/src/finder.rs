//! Tools that are found by words and by meaning: the index, the vectors behind it, and the work of embedding.
//!
//! A tool is found by its words as soon as it is put here, and by its meaning once it is embedded, which goes on beside.
//! Vectors are kept in PostgreSQL with the id of their model and the hash of the texts they stand for; those of another
//! model or of other texts are made again. Qdrant, where it is used, gets a copy and does the searching by meaning.
//! Without a model, and while it fails, tools are found by their words alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use lares_config::{Config, VectorsBackend};
use lares_store::Store;
use lares_store::vectors::{self, Collection, Filter, Match, Point, Qdrant, Vectors};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::api::{Reasons, SearchMode};
use crate::definition::{Definition, ToolId};
use crate::embedding::{self, EmbedError, Embeds};
use crate::search::dense::mean;
use crate::search::{Document, Index};

/// Where vectors of tools are kept.
const COLLECTION: Collection = Collection::McpSemanticSearch;
/// Tools embedded at a time.
const BATCH: usize = 16;
/// Wait after an attempt that failed, doubled with each up to `RETRY_MAX`.
const RETRY: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the vector of a query, and for Qdrant; then it is searched by words.
const QUERY: Duration = Duration::from_secs(2);

/// Why tools cannot be made searchable at all.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FinderError {
    /// PostgreSQL.
    #[error(transparent)]
    Store(#[from] lares_store::Error),
    /// The place for vectors.
    #[error(transparent)]
    Vectors(#[from] vectors::Error),
}

/// What is looked for.
pub(crate) struct Wanted<'a> {
    /// In words.
    pub(crate) text: &'a str,
    /// Most hits.
    pub(crate) limit: usize,
    /// Only tools with this tag.
    pub(crate) tag: Option<&'a str>,
    /// Only tools of which this is true.
    pub(crate) fits: &'a (dyn Fn(&ToolId) -> bool + Send + Sync),
}

/// What was found.
pub(crate) struct Found {
    pub(crate) mode: SearchMode,
    pub(crate) model: Option<String>,
    pub(crate) hits: Vec<Hit>,
}

/// A tool that was found.
pub(crate) struct Hit {
    pub(crate) id: ToolId,
    pub(crate) score: f32,
    pub(crate) reasons: Reasons,
}

/// The vector of a tool, and what it stands for.
struct Stored {
    model: String,
    /// Hash of the texts that were embedded.
    texts: String,
    vector: Vec<f32>,
}

/// A tool that is to be embedded.
struct Pending {
    document: Document,
    texts: Vec<String>,
    hash: String,
}

/// Everything searchable.
pub(crate) struct Finder {
    index: Index,
    config: Config,
    store: Store,
    /// Where meaning is searched, if not in this process.
    qdrant: Option<Arc<Qdrant>>,
    embeds: RwLock<Option<Arc<dyn Embeds>>>,
    problem: RwLock<Option<String>>,
    /// What PostgreSQL had at the start, until a tool claims it.
    stored: Mutex<HashMap<String, Stored>>,
    pending: Mutex<BTreeMap<ToolId, Pending>>,
    /// Tools whose vectors are to be removed.
    leaving: Mutex<BTreeSet<ToolId>>,
    /// Tools whose vectors are of the present model.
    embedded: Mutex<BTreeSet<ToolId>>,
    wake: Notify,
}
