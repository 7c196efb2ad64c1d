//! Words of tools, weighed by the field they stand in and by how few tools have them (BM25F).

use std::collections::HashMap;

use super::Field;
use super::document::Document;
use super::text;

/// How many fields there are.
pub(super) const FIELDS: usize = 5;
/// How much a word in each field counts, and how much the field's length takes from it. Tuned on the development sets;
/// recall changes by less than half a point anywhere near.
const WEIGHTS: [f32; FIELDS] = [2.0, 1.0, 0.5, 0.5, 0.3];
const LENGTHS: [f32; FIELDS] = [0.3, 0.75, 0.0, 0.5, 0.75];
/// How soon a word that is there again counts no more.
const K1: f32 = 1.0;
/// Most words of a query.
const QUERY_WORDS: usize = 128;
/// Words of a query that no tool has and that are looked for as mistyped.
const TYPOS: usize = 4;
/// Shortest word, in characters, that may be mistyped.
const TYPO: usize = 5;
/// How much a word counts that was mistyped.
const TYPO_WEIGHT: f32 = 0.5;
/// Most words counted of a field.
const FIELD_WORDS: usize = 2000;

/// The words of a tool, by field.
#[derive(Debug)]
pub(super) struct Analysed {
    counts: Vec<(String, [u8; FIELDS])>,
    lengths: [u16; FIELDS],
}

impl Analysed {
    /// Reads a document. Takes long enough to be done before the index is locked.
    pub(super) fn new<K>(document: &Document<K>) -> Self {
        let join = |parts: &mut dyn Iterator<Item = &str>| parts.collect::<Vec<_>>().join("\n");
        let title = if text::spoken(&document.title) == text::spoken(&document.name) { "" } else { &document.title };
        let texts: [String; FIELDS] = [
            join(&mut [document.name.as_str(), title].into_iter()),
            document.description.clone(),
            join(&mut std::iter::once(document.server.as_str()).chain(document.tags.iter().map(String::as_str))),
            join(&mut document.parameters.iter().map(|parameter| parameter.name.as_str())),
            join(&mut document.parameters.iter().map(|parameter| parameter.description.as_str())),
        ];
        let mut counts: HashMap<String, [u8; FIELDS]> = HashMap::new();
        let mut lengths = [0u16; FIELDS];
        for (field, (text, length)) in texts.iter().zip(&mut lengths).enumerate() {
            for word in text::words(text).into_iter().take(FIELD_WORDS) {
                *length += 1;
                if let Some(count) = counts.entry(word.stem).or_default().get_mut(field) {
                    *count = count.saturating_add(1);
                }
            }
        }
        Self { counts: counts.into_iter().collect(), lengths }
    }
}

#[derive(Debug, Clone, Copy)]
struct Posting {
    slot: u32,
    counts: [u8; FIELDS],
}

#[derive(Debug, Default)]
struct Entry {
    terms: Box<[u32]>,
    lengths: [u16; FIELDS],
}

/// A word of a query that some tool has.
#[derive(Debug, Clone)]
pub(super) struct Term {
    /// As it was written in the query.
    pub(super) written: String,
    id: u32,
    weight: f32,
}

/// Which tools have which words. Tools go by slots, small numbers that are used again.
#[derive(Debug, Default)]
pub(super) struct Words {
    ids: HashMap<Box<str>, u32>,
    terms: Vec<Box<str>>,
    postings: Vec<Vec<Posting>>,
    free: Vec<u32>,
    entries: Vec<Option<Entry>>,
    count: usize,
    totals: [u64; FIELDS],
}

fn index(id: u32) -> usize {
    id as usize
}

impl Words {
    /// Adds the tool of a slot that is free.
    pub(super) fn add(&mut self, slot: u32, analysed: Analysed) {
        let mut terms = Vec::with_capacity(analysed.counts.len());
        for (word, counts) in analysed.counts {
            let id = self.intern(word);
            terms.push(id);
            if let Some(postings) = self.postings.get_mut(index(id)) {
                let at = postings.partition_point(|posting| posting.slot < slot);
                postings.insert(at, Posting { slot, counts });
            }
        }
        self.count += 1;
        self.totals.iter_mut().zip(analysed.lengths).for_each(|(total, length)| *total += u64::from(length));
        if self.entries.len() <= index(slot) {
            self.entries.resize_with(index(slot) + 1, || None);
        }
        if let Some(entry) = self.entries.get_mut(index(slot)) {
            *entry = Some(Entry { terms: terms.into_boxed_slice(), lengths: analysed.lengths });
        }
    }

    /// Takes the tool of a slot away.
    pub(super) fn remove(&mut self, slot: u32) {
        let Some(entry) = self.entries.get_mut(index(slot)).and_then(Option::take) else { return };
        self.count -= 1;
        self.totals.iter_mut().zip(entry.lengths).for_each(|(total, length)| *total -= u64::from(length));
        for id in entry.terms {
            let Some(postings) = self.postings.get_mut(index(id)) else { continue };
            if let Ok(at) = postings.binary_search_by_key(&slot, |posting| posting.slot) {
                postings.remove(at);
            }
            // A word that no tool has any more goes, or changing definitions would fill the memory with words.
            if postings.is_empty() {
                *postings = Vec::new();
                if let Some(term) = self.terms.get_mut(index(id)) {
                    self.ids.remove(&std::mem::take(term));
                }
                self.free.push(id);
            }
        }
    }

    fn intern(&mut self, word: String) -> u32 {
        if let Some(id) = self.ids.get(word.as_str()) {
            return *id;
        }
        let word = word.into_boxed_str();
        let id = self.free.pop().unwrap_or_else(|| {
            self.terms.push(Box::default());
            self.postings.push(Vec::new());
            u32::try_from(self.terms.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(term) = self.terms.get_mut(index(id)) {
            term.clone_from(&word);
        }
        self.ids.insert(word, id);
        id
    }

    /// The words of a query that are known, each once; words that nobody knows may be known ones mistyped.
    pub(super) fn terms_of(&self, query: &str) -> Vec<Term> {
        let mut terms: Vec<Term> = Vec::new();
        let mut typos = 0;
        for word in text::words(query) {
            if terms.len() == QUERY_WORDS {
                break;
            }
            let found = match self.ids.get(word.stem.as_str()) {
                Some(id) => Some((*id, 1.0)),
                None if typos < TYPOS => {
                    typos += 1;
                    self.mistyped(&word.stem).map(|id| (id, TYPO_WEIGHT))
                }
                None => None,
            };
            if let Some((id, weight)) = found
                && terms.iter().all(|term| term.id != id)
            {
                terms.push(Term { written: word.written, id, weight });
            }
        }
        // Sums of floating-point numbers hang on their order.
        terms.sort_by(|a, b| self.terms.get(index(a.id)).cmp(&self.terms.get(index(b.id))));
        terms
    }

    /// The word one slip away from this one that most tools have.
    fn mistyped(&self, word: &str) -> Option<u32> {
        let length = word.chars().count();
        if length < TYPO || word.chars().any(|c| !c.is_alphabetic()) {
            return None;
        }
        let first = word.chars().next();
        self.terms
            .iter()
            .enumerate()
            .filter(|(_, term)| {
                term.len().abs_diff(word.len()) <= 1
                    && term.chars().next() == first
                    && strsim::osa_distance(term, word) == 1
            })
            .max_by_key(|(id, term)| (self.postings.get(*id).map_or(0, Vec::len), std::cmp::Reverse(*term)))
            .and_then(|(id, _)| u32::try_from(id).ok())
    }

    /// The score of each slot that has any of the words, by slot; 0 for the others.
    pub(super) fn scores(&self, terms: &[Term]) -> Vec<f32> {
        let mut scores = vec![0.0; self.entries.len()];
        let averages = self.averages();
        for term in terms {
            let Some(postings) = self.postings.get(index(term.id)) else { continue };
            let idf = self.idf(postings.len()) * term.weight;
            for posting in postings {
                let slot = index(posting.slot);
                let (Some(Some(entry)), Some(score)) = (self.entries.get(slot), scores.get_mut(slot)) else { continue };
                let mut frequency = 0.0;
                for field in 0..FIELDS {
                    if posting.counts[field] > 0 {
                        let length = f32::from(entry.lengths[field]) / averages[field];
                        let count = f32::from(posting.counts[field]);
                        frequency += WEIGHTS[field] * count / (1.0 - LENGTHS[field] + LENGTHS[field] * length);
                    }
                }
                *score += idf * frequency * (K1 + 1.0) / (K1 + frequency);
            }
        }
        scores
    }

    /// Which of the words the tool of a slot has, and in which fields.
    pub(super) fn matched(&self, slot: u32, terms: &[Term]) -> (Vec<String>, Vec<Field>) {
        let mut words = Vec::new();
        let mut found = [false; FIELDS];
        for term in terms {
            let Some(postings) = self.postings.get(index(term.id)) else { continue };
            let Ok(at) = postings.binary_search_by_key(&slot, |posting| posting.slot) else { continue };
            words.push(term.written.clone());
            let counts = postings.get(at).map(|posting| posting.counts).unwrap_or_default();
            found.iter_mut().zip(counts).for_each(|(found, count)| *found |= count > 0);
        }
        let fields = Field::ALL.into_iter().zip(found).filter_map(|(field, found)| found.then_some(field)).collect();
        (words, fields)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of words are far below 2^24")]
    fn averages(&self) -> [f32; FIELDS] {
        self.totals.map(|total| (total as f32 / self.count.max(1) as f32).max(f32::MIN_POSITIVE))
    }

    #[expect(clippy::cast_precision_loss, reason = "so many tools are not kept")]
    fn idf(&self, tools: usize) -> f32 {
        let tools = tools as f32;
        (1.0 + (self.count as f32 - tools + 0.5) / (tools + 0.5)).ln()
    }

    /// Bytes that all of it takes, about.
    pub(super) fn bytes(&self) -> usize {
        let postings: usize = self.postings.iter().map(|list| list.capacity() * size_of::<Posting>()).sum();
        let words: usize = self.terms.iter().map(|term| 2 * (term.len() + size_of::<Box<str>>()) + 16).sum();
        let entries: usize = self
            .entries
            .iter()
            .map(|entry| {
                size_of::<Option<Entry>>() + entry.as_ref().map_or(0, |entry| entry.terms.len() * size_of::<u32>())
            })
            .sum();
        postings + self.postings.capacity() * size_of::<Vec<Posting>>() + words + entries
    }
}
