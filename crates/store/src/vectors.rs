//! Vectors: where embeddings are kept and searched by cosine.
//!
//! Everything here can be made again from PostgreSQL. What cannot be compared (a zero vector, NaN, a wrong width) is
//! refused when it comes in, so a failed embedding never turns into a wrong answer.

mod memory;
mod qdrant;
mod received;
mod table;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

pub use memory::Memory;
pub use qdrant::Qdrant;
pub use received::Embeddings;
pub use table::Table;

use crate::Store;

/// The collections there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Collection {
    /// Pieces of the code that agents work on.
    CodebaseContext,
    /// Ways of working that proved good.
    SkillsPatterns,
    /// Errors and what solved them.
    ErrorSolutions,
    /// Advice that holds anywhere.
    BestPractices,
    /// Earlier requests and their answers.
    InteractionHistory,
    /// Descriptions of tools.
    McpSemanticSearch,
}

impl Collection {
    /// Every collection.
    pub const ALL: [Self; 6] = [
        Self::CodebaseContext,
        Self::SkillsPatterns,
        Self::ErrorSolutions,
        Self::BestPractices,
        Self::InteractionHistory,
        Self::McpSemanticSearch,
    ];

    /// Its name in the stores.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::CodebaseContext => "codebase-context",
            Self::SkillsPatterns => "skills-patterns",
            Self::ErrorSolutions => "error-solutions",
            Self::BestPractices => "best-practices",
            Self::InteractionHistory => "interaction-history",
            Self::McpSemanticSearch => "mcp-semantic-search",
        }
    }
}

impl fmt::Display for Collection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Collection {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == s).ok_or_else(|| Error::UnknownCollection(s.to_owned()))
    }
}

/// Why vectors were not kept or not found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The vector has another width than the collection.
    #[error(
        "a vector of width {found} where {expected} is expected; is store.vectors.dimensions that of the embedding model?"
    )]
    Width {
        /// As configured.
        expected: usize,
        /// As given.
        found: usize,
    },
    /// The vector has no direction.
    #[error("a zero vector, which has no direction; the embedding failed")]
    Zero,
    /// The vector holds NaN or an infinity.
    #[error("a vector with NaN or infinity; the embedding failed")]
    NotFinite,
    /// No collection has this name.
    #[error("there is no collection named {0}")]
    UnknownCollection(String),
    /// The collection was not made yet.
    #[error("collection {0} does not exist yet; ensure_collection makes it")]
    NoCollection(Collection),
    /// The collection that is there was made for something else.
    #[error("collection {collection} {found}; drop it and it is made and filled again")]
    OtherCollection {
        /// The collection.
        collection: Collection,
        /// What is wrong with it.
        found: String,
    },
    /// The key for Qdrant cannot be read.
    #[error("cannot read {path} (store.vectors.api_key_file): {source}")]
    ApiKeyFile {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Qdrant said no or cannot be reached.
    #[error("Qdrant: {0}")]
    Qdrant(String),
    /// PostgreSQL, which the in-memory search persists to, failed.
    #[error(transparent)]
    Store(#[from] crate::Error),
}

/// What functions on vectors return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A vector with what it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Its identity. A point with the same one is replaced.
    pub id: Uuid,
    /// The embedding, of any length but zero.
    pub vector: Vec<f32>,
    /// What is found by it.
    pub payload: Map<String, Value>,
}

/// A point found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit {
    /// The point.
    pub id: Uuid,
    /// Cosine of the angle to the query, -1 to 1.
    pub score: f32,
    /// What it stands for.
    pub payload: Map<String, Value>,
}

/// What a payload's field must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// This text.
    Text(String),
    /// This number.
    Integer(i64),
    /// This truth value.
    Bool(bool),
}

/// Conditions on the payload that all must hold. A dot in a field's name goes down into objects; a list matches when
/// one of its elements does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Field = value.
    pub must: BTreeMap<String, Match>,
}

impl Filter {
    /// No condition.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more condition.
    #[must_use]
    pub fn and(mut self, field: impl Into<String>, value: Match) -> Self {
        self.must.insert(field.into(), value);
        self
    }

    /// Whether a payload meets all conditions.
    pub fn matches(&self, payload: &Map<String, Value>) -> bool {
        self.must.iter().all(|(field, wanted)| {
            let mut steps = field.split('.');
            let first = steps.next().and_then(|step| payload.get(step));
            let value = steps.fold(first, |value, step| value.and_then(|v| v.get(step)));
            match value {
                Some(Value::Array(items)) => items.iter().any(|item| equals(item, wanted)),
                Some(value) => equals(value, wanted),
                None => false,
            }
        })
    }
}

fn equals(value: &Value, wanted: &Match) -> bool {
    match wanted {
        Match::Text(text) => value.as_str() == Some(text),
        Match::Integer(number) => value.as_i64() == Some(*number),
        Match::Bool(truth) => value.as_bool() == Some(*truth),
    }
}

/// A place for vectors. All vectors have the width of the configuration.
#[async_trait]
pub trait Vectors: Send + Sync {
    /// Makes a collection unless it is there.
    ///
    /// # Errors
    /// When it is there with another width or measure, or the store behind fails.
    async fn ensure_collection(&self, collection: Collection) -> Result<()>;

    /// Adds points, replacing those with the same identity. They are found once this returns.
    ///
    /// # Errors
    /// When a vector cannot be compared (then none is added), the collection does not exist, or the store fails.
    async fn upsert(&self, collection: Collection, points: Vec<Point>) -> Result<()>;

    /// The `limit` points closest to a vector among those that meet the filter, the closest first.
    ///
    /// # Errors
    /// When the vector cannot be compared, the collection does not exist, or the store fails.
    async fn search(
        &self,
        collection: Collection,
        vector: &[f32],
        limit: usize,
        filter: Option<&Filter>,
    ) -> Result<Vec<Hit>>;

    /// Removes points; those that are not there are passed over.
    ///
    /// # Errors
    /// When the collection does not exist or the store fails.
    async fn delete(&self, collection: Collection, ids: &[Uuid]) -> Result<()>;

    /// How many points there are.
    ///
    /// # Errors
    /// When the collection does not exist or the store fails.
    async fn count(&self, collection: Collection) -> Result<u64>;
}

/// The implementation the configuration asks for, with every collection made.
///
/// # Errors
/// When the store behind cannot be reached or holds collections of another width.
pub async fn open(config: &lares_config::Vectors, store: &Store) -> Result<Arc<dyn Vectors>> {
    let vectors: Arc<dyn Vectors> = match config.backend {
        lares_config::VectorsBackend::Memory => Arc::new(Memory::open(store.clone(), config.dimensions).await?),
        lares_config::VectorsBackend::Qdrant => Arc::new(Qdrant::connect(config).await?),
    };
    for collection in Collection::ALL {
        vectors.ensure_collection(collection).await?;
    }
    Ok(vectors)
}

/// Refuses what cannot be compared by cosine; gives the length.
fn check(vector: &[f32], width: usize) -> Result<f64> {
    if vector.len() != width {
        return Err(Error::Width { expected: width, found: vector.len() });
    }
    if vector.iter().any(|x| !x.is_finite()) {
        return Err(Error::NotFinite);
    }
    // In f64 neither the smallest nor the largest f32 is lost when squared.
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length == 0.0 { Err(Error::Zero) } else { Ok(length) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    #[test]
    fn what_cannot_be_compared_is_refused() {
        assert!(matches!(check(&[1.0], 2), Err(Error::Width { expected: 2, found: 1 })));
        assert!(matches!(check(&[0.0, -0.0], 2), Err(Error::Zero)));
        assert!(matches!(check(&[1.0, f32::NAN], 2), Err(Error::NotFinite)));
        assert!(matches!(check(&[f32::NEG_INFINITY, 1.0], 2), Err(Error::NotFinite)));
        assert!(check(&[f32::MAX, f32::MAX], 2).unwrap().is_finite());
        assert!(check(&[1e-45, 0.0], 2).unwrap() > 0.0);
    }

    #[test]
    fn a_filter_goes_down_dots_and_into_lists() {
        let payload = json!({"file": {"language": "rust"}, "tags": ["a", 3, true], "n": 3});
        let payload = payload.as_object().unwrap();
        let text = |s: &str| Match::Text(s.to_owned());
        assert!(Filter::new().matches(payload));
        assert!(Filter::new().and("file.language", text("rust")).and("n", Match::Integer(3)).matches(payload));
        assert!(Filter::new().and("tags", text("a")).and("tags", Match::Bool(true)).matches(payload));
        assert!(!Filter::new().and("tags", text("b")).matches(payload));
        assert!(!Filter::new().and("file.missing", text("rust")).matches(payload));
        assert!(!Filter::new().and("n", text("3")).matches(payload));
    }

    #[test]
    fn a_collection_reads_back_its_name() {
        for collection in Collection::ALL {
            assert_eq!(collection.to_string().parse::<Collection>().unwrap(), collection);
            assert_eq!(serde_json::to_value(collection).unwrap(), collection.as_str());
        }
    }
}
