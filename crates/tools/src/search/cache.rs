//! Answers that may be asked for again.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use super::text;

/// A bounded map that forgets what was not asked for the longest.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    kept: HashMap<K, (V, u64)>,
    most: usize,
    now: u64,
}

impl<K: Eq + Hash + Clone, V: Clone> Recent<K, V> {
    pub(super) fn new(most: usize) -> Self {
        Self { kept: HashMap::new(), most, now: 0 }
    }

    pub(super) fn get<Q: Eq + Hash + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.now += 1;
        let (value, used) = self.kept.get_mut(key)?;
        *used = self.now;
        Some(value.clone())
    }

    pub(super) fn put(&mut self, key: K, value: V) {
        self.now += 1;
        if self.kept.len() >= self.most && !self.kept.contains_key(&key) {
            // A quarter at once: looking for the oldest takes longer than anything else here.
            let mut ages: Vec<u64> = self.kept.values().map(|(_, used)| *used).collect();
            let place = ages.len() / 4;
            let (_, oldest, _) = ages.select_nth_unstable(place);
            let oldest = *oldest;
            self.kept.retain(|_, (_, used)| *used > oldest);
        }
        self.kept.insert(key, (value, self.now));
    }

    pub(super) fn clear(&mut self) {
        self.kept.clear();
    }
}

/// The vectors of queries that were embedded already. A query is the same if its words and their order are.
#[derive(Debug)]
pub struct QueryVectors(Mutex<Recent<String, Arc<[Vec<f32>]>>>);

impl QueryVectors {
    /// Keeps those of at most `most` queries; of 384 numbers each, 1,000 take up to 11 MB.
    pub fn new(most: usize) -> Self {
        Self(Mutex::new(Recent::new(most.max(1))))
    }

    fn key(query: &str) -> String {
        text::cut(query.trim(), text::QUERY).split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The vectors of [`text::query_texts`] of a query.
    pub fn get(&self, query: &str) -> Option<Arc<[Vec<f32>]>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(Self::key(query).as_str())
    }

    /// Keeps them.
    pub fn put(&self, query: &str, vectors: Arc<[Vec<f32>]>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).put(Self::key(query), vectors);
    }

    /// Forgets all of them: the model is another one.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_last_is_kept() {
        let mut recent = Recent::new(8);
        for i in 0..100 {
            recent.put(i, i);
            assert_eq!(recent.get(&0), Some(0));
            assert!(recent.kept.len() <= 8);
        }
        assert_eq!((recent.get(&99), recent.get(&1)), (Some(99), None));
    }

    #[test]
    fn spaces_make_no_other_query() {
        let vectors = QueryVectors::new(2);
        vectors.put("read a  file", Arc::new([vec![1.0]]));
        assert!(vectors.get(" read a file ").is_some());
        assert!(vectors.get("read file").is_none());
    }
}
