//! Tools that are found by words and by meaning: the index, the vectors behind it, and the work of embedding.
//!
//! A tool is found by its words as soon as it is put here, and by its meaning once it is embedded, which goes on beside.
//! Vectors are kept in PostgreSQL with the id of their model and the hash of the texts they stand for; those of another
//! model or of other texts are made again. Qdrant, where it is used, gets a copy and does the searching by meaning.
//! Without a model, and while it fails, tools are found by their words alone.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use lares_config::{Config, Embedding, VectorsBackend};
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
use crate::search::{self, CANDIDATES, Document, Index, Mode, QueryVectors, text};

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
    queries: QueryVectors,
    wake: Notify,
}

/// Queries whose vectors are kept.
const QUERIES: usize = 1000;

impl Finder {
    /// An empty one, with the vectors that PostgreSQL has for when their tools come.
    ///
    /// # Errors
    /// When PostgreSQL or, where it is used, Qdrant cannot be reached. A missing model is no error: tools are found by
    /// their words until it is there.
    pub(crate) async fn open(config: &Config, store: &Store) -> Result<Self, FinderError> {
        let qdrant = match config.store.vectors.backend {
            VectorsBackend::Memory => None,
            VectorsBackend::Qdrant => {
                let qdrant = Qdrant::connect(&config.store.vectors).await?;
                qdrant.ensure_collection(COLLECTION).await?;
                Some(Arc::new(qdrant))
            }
        };
        let mut stored = HashMap::new();
        for point in store.vectors_table().load(COLLECTION).await? {
            let field = |name: &str| point.payload.get(name).and_then(Value::as_str).map(str::to_owned);
            if let (Some(tool), Some(model), Some(texts)) = (field("tool"), field("model"), field("texts")) {
                stored.insert(tool, Stored { model, texts, vector: point.vector });
            }
        }
        Ok(Self {
            index: Index::new(),
            config: config.clone(),
            store: store.clone(),
            qdrant,
            embeds: RwLock::default(),
            problem: RwLock::default(),
            stored: Mutex::new(stored),
            pending: Mutex::default(),
            leaving: Mutex::default(),
            embedded: Mutex::default(),
            queries: QueryVectors::new(QUERIES),
            wake: Notify::new(),
        })
    }

    /// Has a tool found: by its words at once, by its meaning when it is embedded.
    pub(crate) fn put(&self, id: &ToolId, definition: &Definition, tags: &[String]) {
        let mut document = Document::new(id.clone(), id.server().as_str(), definition);
        document.tags = tags.to_vec();
        let texts = document.texts_to_embed();
        let hash = hash(&texts);
        self.index.put(document, None);
        locked(&self.embedded).remove(id);
        locked(&self.leaving).remove(id);
        if self.config.tools.search.embedding != Embedding::None {
            locked(&self.pending).insert(id.clone(), Pending { texts, hash });
            self.wake.notify_one();
        }
    }

    /// Has a tool found no more.
    pub(crate) fn remove(&self, id: &ToolId) {
        if self.index.remove(id) {
            locked(&self.pending).remove(id);
            if locked(&self.embedded).remove(id) {
                locked(&self.leaving).insert(id.clone());
                self.wake.notify_one();
            }
        }
    }

    /// Finds tools. Never fails: without vectors it is searched by words.
    pub(crate) async fn search(&self, wanted: &Wanted<'_>) -> Found {
        let filter =
            search::Filter { tags: wanted.tag.iter().map(|&tag| tag.to_owned()).collect(), ..Default::default() };
        let vectors = self.vectors_of(wanted.text).await;
        let query = search::Query {
            text: wanted.text,
            vectors: vectors.as_deref().unwrap_or_default(),
            limit: wanted.limit,
            filter: &filter,
            fits: Some(wanted.fits),
        };
        let found = match &self.qdrant {
            None => Arc::unwrap_or_clone(self.index.search(&query)),
            Some(qdrant) => {
                let lists = self.candidates(qdrant, &query).await;
                self.index.hits_from_dense(&query, &lists)
            }
        };
        let hybrid = found.mode == Mode::Hybrid;
        let hit = |hit: search::Hit| Hit {
            id: hit.id,
            score: hit.score,
            reasons: Reasons { bm25: hit.reasons.bm25, cosine: hit.reasons.cosine, words: hit.reasons.words },
        };
        Found {
            mode: if hybrid { SearchMode::Hybrid } else { SearchMode::Words },
            model: self.model().filter(|_| hybrid),
            hits: found.hits.into_iter().map(hit).collect(),
        }
    }

    /// The vectors of a query, if there is a model and it answers in time.
    async fn vectors_of(&self, query: &str) -> Option<Arc<[Vec<f32>]>> {
        if let Some(vectors) = self.queries.get(query) {
            return Some(vectors);
        }
        let embeds = self.embeds.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        match timeout(QUERY, embeds.query(text::query_texts(query))).await {
            Ok(Ok(vectors)) => {
                let vectors: Arc<[Vec<f32>]> = vectors.into();
                self.queries.put(query, Arc::clone(&vectors));
                Some(vectors)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "a query was not embedded; it is searched by words");
                None
            }
            Err(_) => {
                tracing::warn!("a query was not embedded within {} s; it is searched by words", QUERY.as_secs());
                None
            }
        }
    }

    /// The tools nearest to each vector of a query that fit it, from Qdrant. Nothing when it does not answer.
    async fn candidates(&self, qdrant: &Qdrant, query: &search::Query<'_>) -> Vec<Vec<(ToolId, f32)>> {
        let Some(model) = self.model() else { return Vec::new() };
        let mut filter = Filter::new().and("model", Match::Text(model));
        for tag in &query.filter.tags {
            filter = filter.and("tags", Match::Text(tag.clone()));
        }
        let mut lists = Vec::new();
        for vector in query.vectors {
            let mut asked = CANDIDATES;
            let list = loop {
                let searched = qdrant.search(COLLECTION, vector, asked, Some(&filter));
                let hits = match timeout(QUERY, searched).await {
                    Ok(Ok(hits)) => hits,
                    Ok(Err(error)) => {
                        tracing::warn!(%error, "Qdrant failed; it is searched by words");
                        return Vec::new();
                    }
                    Err(_) => {
                        tracing::warn!("Qdrant does not answer; it is searched by words");
                        return Vec::new();
                    }
                };
                let all = hits.len() < asked;
                let list: Vec<(ToolId, f32)> = hits
                    .into_iter()
                    .filter_map(|hit| Some((hit.payload.get("tool")?.as_str()?.parse().ok()?, hit.score)))
                    .filter(|(id, _)| query.fits.is_none_or(|fits| fits(id)))
                    .take(CANDIDATES)
                    .collect();
                if all || list.len() == CANDIDATES {
                    break list;
                }
                // What does not fit took the places of what does.
                asked = asked.saturating_mul(2);
            };
            lists.push(list);
        }
        lists
    }

    /// Id of the model in use.
    pub(crate) fn model(&self) -> Option<String> {
        self.embeds.read().unwrap_or_else(PoisonError::into_inner).as_ref().map(|embeds| embeds.model().to_owned())
    }

    /// Tools found by meaning.
    pub(crate) fn embedded(&self) -> usize {
        locked(&self.embedded).len()
    }

    /// Tools that wait to be.
    pub(crate) fn waiting(&self) -> usize {
        locked(&self.pending).len()
    }

    /// Why tools are found by words alone, if that is not what is wanted.
    pub(crate) fn problem(&self) -> Option<String> {
        self.problem.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_problem(&self, problem: Option<String>) {
        let mut told = self.problem.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(problem) = problem.as_ref().filter(|&problem| told.as_ref() != Some(problem)) {
            tracing::warn!(problem, "tools are found by their words alone until this is mended");
        }
        *told = problem;
    }

    /// Loads the model and embeds what waits, until `ended`.
    pub(crate) async fn work(&self, ended: &CancellationToken) {
        if self.config.tools.search.embedding == Embedding::None {
            return ended.cancelled().await;
        }
        let mut wait = RETRY;
        loop {
            let step = async {
                match self.step().await {
                    Ok(true) => wait = RETRY,
                    Ok(false) => {
                        wait = RETRY;
                        self.wake.notified().await;
                    }
                    Err(error) => {
                        self.set_problem(Some(error.to_string()));
                        sleep(wait.mul_f64(1.0 + rand::random::<f64>() * 0.2)).await;
                        wait = (wait * 2).min(RETRY_MAX);
                    }
                }
            };
            if ended.run_until_cancelled(step).await.is_none() {
                return;
            }
        }
    }

    /// One step of the work; `false`: there is nothing left to do.
    async fn step(&self) -> Result<bool, WorkError> {
        let embeds = self.embeds.read().unwrap_or_else(PoisonError::into_inner).clone();
        let embeds = match embeds {
            Some(embeds) => embeds,
            None => {
                let Some(embeds) = embedding::open(&self.config).await? else { return Ok(false) };
                *self.embeds.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&embeds));
                embeds
            }
        };
        let leaving: Vec<ToolId> = locked(&self.leaving).iter().take(BATCH).cloned().collect();
        if !leaving.is_empty() {
            let ids: Vec<Uuid> = leaving.iter().map(point_id).collect();
            self.store.vectors_table().delete(COLLECTION, &ids).await?;
            if let Some(qdrant) = &self.qdrant {
                qdrant.delete(COLLECTION, &ids).await?;
            }
            let mut waiting = locked(&self.leaving);
            waiting.retain(|id| !leaving.contains(id));
            return Ok(true);
        }
        let batch: Vec<(ToolId, Vec<String>, String)> = locked(&self.pending)
            .iter()
            .take(BATCH)
            .map(|(id, pending)| (id.clone(), pending.texts.clone(), pending.hash.clone()))
            .collect();
        if batch.is_empty() {
            self.set_problem(None);
            return Ok(false);
        }
        let mut known = Vec::new();
        let mut fresh = Vec::new();
        {
            let mut stored = locked(&self.stored);
            for (id, texts, hash) in batch {
                match stored.remove(id.as_str()) {
                    Some(found) if found.model == embeds.model() && found.texts == hash => {
                        known.push((id, hash, found.vector));
                    }
                    _ => fresh.push((id, texts, hash)),
                }
            }
        }
        let texts: Vec<String> = fresh.iter().flat_map(|(_, texts, _)| texts.iter().cloned()).collect();
        let mut vectors = if texts.is_empty() { Vec::new() } else { embeds.documents(texts).await? }.into_iter();
        let mut made = Vec::new();
        for (id, texts, hash) in fresh {
            let own: Vec<Vec<f32>> = vectors.by_ref().take(texts.len()).collect();
            match mean(&own) {
                Some(vector) => made.push((id, hash, vector)),
                None => {
                    // Texts that point in opposite directions: a tool to be found by its words.
                    tracing::debug!(tool = %id, "the texts of a tool have no common direction");
                    locked(&self.pending).remove(&id);
                }
            }
        }
        let points: Vec<Point> =
            made.iter().map(|(id, hash, vector)| self.point(id, hash, vector, embeds.model())).collect();
        self.store.vectors_table().upsert(COLLECTION, &points).await?;
        if let Some(qdrant) = &self.qdrant {
            // What PostgreSQL had may be missing there: losing Qdrant loses nothing.
            let all = known.iter().map(|(id, hash, vector)| self.point(id, hash, vector, embeds.model()));
            qdrant.upsert(COLLECTION, points.into_iter().chain(all).collect()).await?;
        }
        for (id, hash, vector) in known.into_iter().chain(made) {
            let mut pending = locked(&self.pending);
            // Changed meanwhile: it waits for the vector of what it is now.
            if pending.get(&id).is_some_and(|pending| pending.hash == hash) {
                pending.remove(&id);
                drop(pending);
                let here = self.qdrant.is_some() || self.index.set_vector(&id, &vector);
                if here {
                    locked(&self.embedded).insert(id);
                }
            }
        }
        Ok(true)
    }

    fn point(&self, id: &ToolId, texts: &str, vector: &[f32], model: &str) -> Point {
        let payload = json!({"tool": id, "model": model, "texts": texts, "tags": self.index.tags(id)});
        let payload = payload.as_object().cloned().unwrap_or_default();
        Point { id: point_id(id), vector: vector.to_vec(), payload }
    }
}

/// Why a step of the work failed.
#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Embed(#[from] EmbedError),
    #[error(transparent)]
    Store(#[from] lares_store::Error),
    #[error(transparent)]
    Vectors(#[from] vectors::Error),
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hash of the texts of a tool.
fn hash(texts: &[String]) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    }
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The identity of a tool's vector: the same in every store and after every start.
fn point_id(id: &ToolId) -> Uuid {
    let digest = Sha256::digest(id.as_str());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
