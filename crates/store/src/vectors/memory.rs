//! Exact search in memory, persisted in PostgreSQL.
//!
//! At a width of 384 a hundred thousand points are 150 MB and some tens of milliseconds a search. One process writes a
//! collection; another sees what it wrote when it opens the collection, not before: use Qdrant where several share.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Collection, Error, Filter, Hit, Point, Result, Vectors, check};
use crate::Store;
use crate::events::clean_json;

/// Vectors searched one by one.
#[derive(Debug)]
pub struct Memory {
    store: Store,
    width: usize,
    loaded: Arc<RwLock<HashMap<Collection, Loaded>>>,
    /// Keeps memory in the order of the table.
    writing: tokio::sync::Mutex<()>,
}

/// One collection: the vectors at length one, one after the other, so that a search walks through memory in order.
#[derive(Debug, Default)]
struct Loaded {
    width: usize,
    numbers: Vec<f32>,
    ids: Vec<Uuid>,
    payloads: Vec<Map<String, Value>>,
    places: HashMap<Uuid, usize>,
}

impl Memory {
    /// An empty search; [`Vectors::ensure_collection`] loads what PostgreSQL has.
    ///
    /// # Errors
    /// When PostgreSQL cannot be reached.
    pub async fn open(store: Store, dimensions: u32) -> Result<Self> {
        store.ping().await?;
        let width = usize::try_from(dimensions).unwrap_or(usize::MAX);
        Ok(Self { store, width, loaded: Arc::default(), writing: tokio::sync::Mutex::default() })
    }

    fn with<T>(&self, collection: Collection, work: impl FnOnce(&mut Loaded) -> T) -> Result<T> {
        let mut loaded = self.loaded.write().unwrap_or_else(PoisonError::into_inner);
        loaded.get_mut(&collection).map(work).ok_or(Error::NoCollection(collection))
    }
}

#[async_trait]
impl Vectors for Memory {
    async fn ensure_collection(&self, collection: Collection) -> Result<()> {
        let _writing = self.writing.lock().await;
        if self.with(collection, |_| ()).is_ok() {
            return Ok(());
        }
        let points = self.store.vectors_table().load(collection).await?;
        let mut fresh = Loaded { width: self.width, ..Loaded::default() };
        for point in points {
            let length = check(&point.vector, self.width).map_err(|e| Error::OtherCollection {
                collection,
                found: format!("holds {e} (table vectors, id {})", point.id),
            })?;
            fresh.put(point, length);
        }
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(collection, fresh);
        Ok(())
    }

    async fn upsert(&self, collection: Collection, mut points: Vec<Point>) -> Result<()> {
        let lengths = points.iter().map(|p| check(&p.vector, self.width)).collect::<Result<Vec<f64>>>()?;
        for point in &mut points {
            // What the table cannot hold must not be found here either.
            if let Value::Object(fields) = clean_json(&Value::Object(std::mem::take(&mut point.payload))) {
                point.payload = fields;
            }
        }
        let _writing = self.writing.lock().await;
        self.with(collection, |_| ())?;
        self.store.vectors_table().upsert(collection, &points).await?;
        self.with(collection, |loaded| {
            for (point, length) in points.into_iter().zip(lengths) {
                loaded.put(point, length);
            }
        })
    }

    async fn search(
        &self,
        collection: Collection,
        vector: &[f32],
        limit: usize,
        filter: Option<&Filter>,
    ) -> Result<Vec<Hit>> {
        let length = check(vector, self.width)?;
        let query = normalised(vector, length);
        let (loaded, filter) = (self.loaded.clone(), filter.cloned());
        // Long enough to keep a runtime's thread from its other work.
        let searched = tokio::task::spawn_blocking(move || {
            let loaded = loaded.read().unwrap_or_else(PoisonError::into_inner);
            loaded.get(&collection).map(|l| l.search(&query, limit, filter.as_ref()))
        })
        .await;
        match searched {
            Ok(hits) => hits.ok_or(Error::NoCollection(collection)),
            Err(e) => Err(crate::Error::Unavailable(e.to_string()).into()),
        }
    }

    async fn delete(&self, collection: Collection, ids: &[Uuid]) -> Result<()> {
        let _writing = self.writing.lock().await;
        self.with(collection, |_| ())?;
        self.store.vectors_table().delete(collection, ids).await?;
        self.with(collection, |loaded| ids.iter().for_each(|id| loaded.remove(id)))
    }

    async fn count(&self, collection: Collection) -> Result<u64> {
        self.with(collection, |loaded| loaded.ids.len() as u64)
    }
}

/// A candidate; the worst of a heap comes first.
struct Candidate {
    score: f32,
    place: usize,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> Ordering {
        other.score.total_cmp(&self.score).then(self.place.cmp(&other.place))
    }
}

impl Loaded {
    fn put(&mut self, point: Point, length: f64) {
        let vector = normalised(&point.vector, length);
        if let Some(&place) = self.places.get(&point.id) {
            self.numbers[place * self.width..][..self.width].copy_from_slice(&vector);
            self.payloads[place] = point.payload;
        } else {
            self.places.insert(point.id, self.ids.len());
            self.ids.push(point.id);
            self.numbers.extend(vector);
            self.payloads.push(point.payload);
        }
    }

    /// Puts the last point into the place of the removed one.
    fn remove(&mut self, id: &Uuid) {
        let Some(place) = self.places.remove(id) else { return };
        let last = self.ids.len() - 1;
        self.numbers.copy_within(last * self.width.., place * self.width);
        self.numbers.truncate(last * self.width);
        self.ids.swap_remove(place);
        self.payloads.swap_remove(place);
        if let Some(moved) = self.ids.get(place) {
            self.places.insert(*moved, place);
        }
    }

    fn search(&self, query: &[f32], limit: usize, filter: Option<&Filter>) -> Vec<Hit> {
        let mut best = BinaryHeap::new();
        if limit == 0 {
            return Vec::new();
        }
        for (place, vector) in self.numbers.chunks_exact(self.width).enumerate() {
            let score: f32 = vector.iter().zip(query).map(|(a, b)| a * b).sum();
            let candidate = Candidate { score: score.clamp(-1.0, 1.0), place };
            let full = best.len() == limit;
            if full && best.peek().is_some_and(|worst| candidate >= *worst) {
                continue;
            }
            if filter.is_some_and(|f| !f.matches(&self.payloads[place])) {
                continue;
            }
            if full {
                best.pop();
            }
            best.push(candidate);
        }
        best.into_sorted_vec()
            .into_iter()
            .map(|Candidate { score, place }| Hit { id: self.ids[place], score, payload: self.payloads[place].clone() })
            .collect()
    }
}

fn normalised(vector: &[f32], length: f64) -> Vec<f32> {
    #[expect(clippy::cast_possible_truncation, reason = "the result is at most 1")]
    vector.iter().map(|&x| (f64::from(x) / length) as f32).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn point(number: u128, vector: Vec<f32>) -> Point {
        Point { id: Uuid::from_u128(number), vector, payload: Map::new() }
    }

    proptest! {
        #[test]
        fn the_best_are_those_that_sorting_everything_finds(
            points in prop::collection::vec((0_u128..20, prop::array::uniform3(-5_i8..=5)), 1..40),
            removed in prop::collection::vec(0_u128..20, 0..5),
            limit in 0_usize..10,
        ) {
            let mut loaded = Loaded { width: 3, ..Loaded::default() };
            let mut expected: HashMap<Uuid, Vec<f32>> = HashMap::new();
            for (number, vector) in points {
                let vector: Vec<f32> = vector.into_iter().map(f32::from).collect();
                if let Ok(length) = check(&vector, 3) {
                    expected.insert(Uuid::from_u128(number), normalised(&vector, length));
                    loaded.put(point(number, vector), length);
                }
            }
            for number in removed {
                expected.remove(&Uuid::from_u128(number));
                loaded.remove(&Uuid::from_u128(number));
            }
            let query = normalised(&[1.0, 2.0, 3.0], 14.0_f64.sqrt());
            let mut scores: Vec<f32> =
                expected.values().map(|v| v.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>().clamp(-1.0, 1.0)).collect();
            scores.sort_by(|a, b| b.total_cmp(a));
            scores.truncate(limit);
            let found: Vec<f32> = loaded.search(&query, limit, None).iter().map(|hit| hit.score).collect();
            prop_assert_eq!(found, scores);
        }
    }
}
