//! Tools found by what they are needed for: by words (BM25F) and by meaning (cosine of embeddings), added up.
//!
//! ```text
//! query ─ query_texts ─ (embedding, by the caller) ─┐
//!      └ words ─ BM25F ─────────────────────────────┴─ score = cosine + W · BM25 + named ─ top k, with reasons
//! ```
//!
//! The two scores are added as they are, not by rank and not stretched to the same range: a BM25 score is large exactly
//! when a query has many words that few tools have, and then it should decide; in a small set of tools, or with a query
//! in other words than the tools' own, it is small, and the meaning decides. A query for several things is also embedded
//! by parts ([`text::query_texts`]), and a tool may be near to one of them.
//!
//! Everything here is synchronous and takes well under a millisecond for thousands of tools. The vectors may be in the
//! index or elsewhere: [`Index::hits_from_dense`] ranks candidates from outside to the same order.

mod bm25;
mod cache;
pub mod dense;
mod document;
pub mod quality;
pub mod text;

use std::collections::{BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use self::bm25::{Analysed, Words};
pub use self::cache::QueryVectors;
use self::cache::Recent;
use self::dense::Matrix;
pub use self::document::{Document, Parameter};
use crate::definition::ToolId;

/// Tools nearest by meaning that are looked at for each vector of a query; more change nothing in the first 50 hits of
/// the development sets. Candidates from outside should be as many.
pub const CANDIDATES: usize = 200;
/// Most hits of a search.
pub const MAX_LIMIT: usize = 200;
/// What a BM25 score counts beside a cosine. Tuned on the development sets; from 0.012 to 0.03 hardly a difference.
const WORDS: f32 = 0.017;
/// How much of the meaning is that of the part of the query that is nearest, if it has parts.
const PART: f32 = 0.5;
/// What it counts that the query is the name of the tool, or has it in it.
const NAMED: f32 = 1.0;
const MENTIONED: f32 = 0.3;
/// Where a score shown is one half.
const HALF: f32 = 0.6;
/// Answers that are kept.
const KEPT: usize = 1024;

/// Where words of a tool stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// Its name or title.
    Name,
    /// Its description.
    Description,
    /// The name of its server, or one of its tags.
    Server,
    /// The name of a parameter.
    Parameter,
    /// The description of a parameter.
    ParameterDescription,
}

impl Field {
    /// All of them.
    pub const ALL: [Self; bm25::FIELDS] =
        [Self::Name, Self::Description, Self::Server, Self::Parameter, Self::ParameterDescription];
}

/// Which tools are looked at. An empty list takes all.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Filter {
    /// Of one of these servers.
    pub servers: Vec<String>,
    /// With all of these tags.
    pub tags: Vec<String>,
    /// In one of these states.
    pub states: Vec<String>,
}

/// A question.
#[derive(Clone, Copy)]
pub struct Query<'a, K = ToolId> {
    /// What is needed, in words.
    pub text: &'a str,
    /// The vectors of [`text::query_texts`] of it, in order and of unit length. None: it is searched by words.
    pub vectors: &'a [Vec<f32>],
    /// Most hits, up to [`MAX_LIMIT`].
    pub limit: usize,
    /// Which tools are looked at.
    pub filter: &'a Filter,
    /// And only those that this takes. Answers to such questions are not kept.
    pub fits: Option<&'a (dyn Fn(&K) -> bool + Send + Sync)>,
}

/// How was searched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// By words and by meaning.
    Hybrid,
    /// By words alone: the query or all the tools are without vectors.
    Words,
}

/// Why a tool was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Reasons {
    /// BM25, in its own scale.
    pub bm25: f32,
    /// Cosine to the query; `None`: not among the nearest, or not embedded yet.
    pub cosine: Option<f32>,
    /// Words of the query that were found.
    pub words: Vec<String>,
    /// Where they were found.
    pub fields: Vec<Field>,
    /// The query names it.
    pub named: bool,
}

/// A tool that was found.
#[derive(Debug, Clone, PartialEq)]
pub struct Hit<K = ToolId> {
    /// Which.
    pub id: K,
    /// More is better, from 0 to 1; comparable within one answer.
    pub score: f32,
    /// Why.
    pub reasons: Reasons,
}

/// An answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Found<K = ToolId> {
    /// How was searched.
    pub mode: Mode,
    /// The best first; those that are equal by id.
    pub hits: Vec<Hit<K>>,
}

#[derive(Debug)]
struct Known<K> {
    id: K,
    server: Arc<str>,
    tags: Box<[String]>,
    state: Arc<str>,
    name: Box<str>,
}

#[derive(Debug)]
struct Inner<K> {
    slots: HashMap<K, u32>,
    known: Vec<Option<Known<K>>>,
    free: BTreeSet<u32>,
    names: HashMap<Box<str>, Vec<u32>>,
    words: Words,
    matrix: Matrix,
    texts: HashMap<Arc<str>, usize>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    text: String,
    vectors: u64,
    limit: usize,
    filter: Filter,
}

/// All tools, ready to be searched. Readers wait for a writer only while it links what it has prepared.
#[derive(Debug)]
pub struct Index<K = ToolId> {
    inner: RwLock<Inner<K>>,
    answers: Mutex<Answers<K>>,
}

#[derive(Debug)]
struct Answers<K> {
    version: u64,
    kept: Recent<Key, Arc<Found<K>>>,
}

impl<K: Clone + Ord + Hash> Default for Index<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Ord + Hash> Index<K> {
    /// An empty one.
    pub fn new() -> Self {
        let inner = Inner {
            slots: HashMap::new(),
            known: Vec::new(),
            free: BTreeSet::new(),
            names: HashMap::new(),
            words: Words::default(),
            matrix: Matrix::default(),
            texts: HashMap::new(),
        };
        let answers = Answers { version: 0, kept: Recent::new(KEPT) };
        Self { inner: RwLock::new(inner), answers: Mutex::new(answers) }
    }

    /// Puts a tool here in place of what went by its id, with its vector ([`dense::mean`] of those of
    /// [`Document::texts_to_embed`]). `false`: the vector is not as wide as those here or not of unit length; the tool
    /// is then found by its words alone.
    pub fn put(&self, document: Document<K>, vector: Option<&[f32]>) -> bool {
        let analysed = Analysed::new(&document);
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.remove(&document.id);
        let slot = inner.add(document, analysed);
        let taken = vector.is_none_or(|vector| inner.matrix.set(slot as usize, vector));
        self.changed();
        taken
    }

    /// Gives a tool its vector. `false`: there is no such tool, or the vector does not fit.
    pub fn set_vector(&self, id: &K, vector: &[f32]) -> bool {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let slot = inner.slots.get(id).copied();
        let taken = slot.is_some_and(|slot| inner.matrix.set(slot as usize, vector));
        self.changed();
        taken
    }

    /// Forgets all vectors: the model is another one.
    pub fn clear_vectors(&self) {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        inner.matrix = Matrix::default();
        self.changed();
    }

    /// Takes a tool away. `false`: it was not here.
    pub fn remove(&self, id: &K) -> bool {
        let mut inner = self.inner.write().unwrap_or_else(PoisonError::into_inner);
        let removed = inner.remove(id);
        self.changed();
        removed
    }

    /// The tags of a tool.
    pub fn tags(&self, id: &K) -> Vec<String> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let slot = inner.slots.get(id).map(|slot| *slot as usize);
        let known = slot.and_then(|slot| inner.known.get(slot)).and_then(Option::as_ref);
        known.map(|known| known.tags.to_vec()).unwrap_or_default()
    }

    /// How many tools there are, and how many of them have vectors.
    pub fn len(&self) -> (usize, usize) {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        (inner.slots.len(), inner.matrix.len())
    }

    /// Whether there are no tools.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// Bytes that words and vectors take, about.
    pub fn bytes(&self) -> usize {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner.words.bytes() + inner.matrix.bytes() + inner.known.capacity() * size_of::<Option<Known<K>>>()
    }

    /// The tools that fit the question best.
    pub fn search(&self, query: &Query<'_, K>) -> Arc<Found<K>> {
        let key = query.fits.is_none().then(|| {
            let mut hasher = DefaultHasher::new();
            query.vectors.iter().flatten().for_each(|x| x.to_bits().hash(&mut hasher));
            let text = text::cut(query.text.trim(), text::QUERY).to_owned();
            Key { text, vectors: hasher.finish(), limit: query.limit, filter: query.filter.clone() }
        });
        let mut version = 0;
        if let Some(key) = &key {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            version = answers.version;
            if let Some(found) = answers.kept.get(key) {
                return found;
            }
        }
        let found = {
            let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
            let fits = inner.fitting(query);
            let lists: Vec<_> = query
                .vectors
                .iter()
                .map(|vector| inner.matrix.nearest(vector, CANDIDATES, |slot| fits.get(slot) == Some(&true)))
                .collect();
            Arc::new(inner.rank(query, &fits, &lists))
        };
        if let Some(key) = key {
            let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
            // What was found while the tools changed may be neither of before nor of after.
            if answers.version == version {
                answers.kept.put(key, Arc::clone(&found));
            }
        }
        found
    }

    /// The same answer, where the vectors of tools are kept elsewhere: `candidates` are the [`CANDIDATES`] nearest tools
    /// that the question's filter takes, with their cosines, for each of the query's vectors in order. The vectors in
    /// `query` are not looked at.
    pub fn hits_from_dense(&self, query: &Query<'_, K>, candidates: &[Vec<(K, f32)>]) -> Found<K> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        let fits = inner.fitting(query);
        let lists: Vec<Vec<(usize, f32)>> = candidates
            .iter()
            .map(|list| {
                let mut list: Vec<(usize, f32)> = list
                    .iter()
                    .filter_map(|(id, cosine)| Some((*inner.slots.get(id)? as usize, dense::rounded(*cosine))))
                    .filter(|(slot, _)| fits.get(*slot) == Some(&true))
                    .collect();
                list.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
                list.dedup_by_key(|(slot, _)| *slot);
                list.truncate(CANDIDATES);
                list
            })
            .collect();
        inner.rank(query, &fits, &lists)
    }

    /// Called with the tools locked: whoever reads them afterwards must not find an answer of before.
    fn changed(&self) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.version += 1;
        answers.kept.clear();
    }
}

impl<K: Clone + Ord + Hash> Inner<K> {
    fn text(&mut self, text: String) -> Arc<str> {
        let text: Arc<str> = text.into();
        let (kept, users) = match self.texts.get_key_value(&text) {
            Some((kept, users)) => (Arc::clone(kept), users + 1),
            None => (text, 1),
        };
        self.texts.insert(Arc::clone(&kept), users);
        kept
    }

    fn forget(&mut self, text: &Arc<str>) {
        if let Some(users) = self.texts.get_mut(text) {
            *users -= 1;
            if *users == 0 {
                self.texts.remove(text);
            }
        }
    }

    fn add(&mut self, document: Document<K>, analysed: Analysed) -> u32 {
        let slot = self.free.pop_first().unwrap_or_else(|| {
            self.known.push(None);
            u32::try_from(self.known.len() - 1).unwrap_or(u32::MAX)
        });
        self.words.add(slot, analysed);
        let name: Box<str> = document.name.to_lowercase().into();
        self.names.entry(name.clone()).or_default().push(slot);
        self.slots.insert(document.id.clone(), slot);
        let known = Known {
            id: document.id,
            server: self.text(document.server),
            tags: document.tags.into_boxed_slice(),
            state: self.text(document.state),
            name,
        };
        if let Some(place) = self.known.get_mut(slot as usize) {
            *place = Some(known);
        }
        slot
    }

    fn remove(&mut self, id: &K) -> bool {
        let Some(slot) = self.slots.remove(id) else { return false };
        self.words.remove(slot);
        self.matrix.clear(slot as usize);
        self.free.insert(slot);
        if let Some(known) = self.known.get_mut(slot as usize).and_then(Option::take) {
            self.forget(&known.server);
            self.forget(&known.state);
            if let Some(slots) = self.names.get_mut(&known.name) {
                slots.retain(|other| *other != slot);
                if slots.is_empty() {
                    self.names.remove(&known.name);
                }
            }
        }
        true
    }

    /// Which slots the question is about.
    fn fitting(&self, query: &Query<'_, K>) -> Vec<bool> {
        let Filter { servers, tags, states } = query.filter;
        let one_of = |wanted: &[String], text: &str| wanted.is_empty() || wanted.iter().any(|one| one == text);
        self.known
            .iter()
            .map(|known| {
                known.as_ref().is_some_and(|known| {
                    one_of(servers, &known.server)
                        && one_of(states, &known.state)
                        && tags.iter().all(|tag| known.tags.contains(tag))
                        && query.fits.is_none_or(|fits| fits(&known.id))
                })
            })
            .collect()
    }

    /// The slots of tools that the query names, and whether it is nothing but the name.
    fn named(&self, query: &str) -> Vec<(u32, bool)> {
        let query = text::cut(query.trim(), text::QUERY);
        let whole = query.to_lowercase();
        let mut found: Vec<(u32, bool)> =
            self.names.get(whole.as_str()).into_iter().flatten().map(|slot| (*slot, true)).collect();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        for word in query.split(|c| !is_name(c)).map(|word| word.trim_matches(['.', '-'])) {
            let tail = word.rsplit_once("__").map_or(word, |(_, tail)| tail);
            // `read` is a word like any other; `read_file` is a name.
            let compound = text::spoken(tail).contains(' ');
            if compound && let Some(slots) = self.names.get(tail.to_lowercase().as_str()) {
                let alone = word.len() == query.len();
                found.extend(slots.iter().map(|slot| (*slot, alone)));
            }
        }
        found
    }

    fn rank(&self, query: &Query<'_, K>, fits: &[bool], lists: &[Vec<(usize, f32)>]) -> Found<K> {
        let words = text::cut(query.text, text::QUERY);
        let terms = self.words.terms_of(words);
        let bm25 = self.words.scores(&terms);
        let hybrid = lists.first().is_some_and(|list| !list.is_empty());
        let mut meaning = vec![0.0f32; self.known.len()];
        let mut cosines: Vec<Option<f32>> = vec![None; self.known.len()];
        if hybrid && let Some((whole, parts)) = lists.split_first() {
            // A tool that is not among the nearest is as far as the farthest of them: nobody knows better who asks
            // another store.
            let spread = |list: &[(usize, f32)]| {
                let mut of = vec![list.last().map_or(0.0, |(_, cosine)| *cosine); self.known.len()];
                for (slot, cosine) in list {
                    if let Some(of) = of.get_mut(*slot) {
                        *of = *cosine;
                    }
                }
                of
            };
            for (slot, cosine) in whole {
                if let Some(place) = cosines.get_mut(*slot) {
                    *place = Some(*cosine);
                }
            }
            meaning = spread(whole);
            if !parts.is_empty() {
                let parts: Vec<Vec<f32>> = parts.iter().map(|list| spread(list)).collect();
                for (slot, meaning) in meaning.iter_mut().enumerate() {
                    let best = parts.iter().filter_map(|of| of.get(slot)).copied().fold(f32::MIN, f32::max);
                    *meaning = (1.0 - PART) * *meaning + PART * best;
                }
            }
        }
        let mut bonus: HashMap<u32, f32> = HashMap::new();
        for (slot, alone) in self.named(words) {
            let of = bonus.entry(slot).or_default();
            *of = of.max(if alone { NAMED } else { MENTIONED });
        }
        let mut near = vec![false; self.known.len()];
        for (slot, _) in lists.iter().flatten() {
            if let Some(near) = near.get_mut(*slot) {
                *near = true;
            }
        }
        let mut ranked: Vec<(f32, &K, u32)> = self
            .known
            .iter()
            .zip(0u32..)
            .filter_map(|(known, slot)| {
                let at = slot as usize;
                let known = known.as_ref().filter(|_| fits.get(at) == Some(&true))?;
                let bonus = bonus.get(&slot).copied().unwrap_or(0.0);
                let words = bm25.get(at).copied().unwrap_or(0.0);
                if words <= 0.0 && bonus <= 0.0 && near.get(at) != Some(&true) {
                    return None;
                }
                let score = meaning.get(at).copied().unwrap_or(0.0) + WORDS * words + bonus;
                (score > 0.0).then_some((score, &known.id, slot))
            })
            .collect();
        let best_first = |a: &(f32, &K, u32), b: &(f32, &K, u32)| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1));
        let limit = query.limit.min(MAX_LIMIT);
        if ranked.len() > limit && limit > 0 {
            ranked.select_nth_unstable_by(limit - 1, best_first);
        }
        ranked.truncate(limit);
        ranked.sort_unstable_by(best_first);
        let hits = ranked
            .into_iter()
            .map(|(score, id, slot)| {
                let (words, fields) = self.words.matched(slot, &terms);
                let reasons = Reasons {
                    bm25: bm25.get(slot as usize).copied().unwrap_or(0.0),
                    cosine: cosines.get(slot as usize).copied().flatten(),
                    words,
                    fields,
                    named: bonus.contains_key(&slot),
                };
                Hit { id: id.clone(), score: score / (score + HALF), reasons }
            })
            .collect();
        Found { mode: if hybrid { Mode::Hybrid } else { Mode::Words }, hits }
    }
}
