//! What a server with `/v1/embeddings` answers, made into vectors that can be kept.

use serde::Deserialize;

use super::{Error, check};

/// The answer.
#[derive(Debug, Deserialize)]
pub struct Embeddings {
    data: Vec<Embedding>,
}

#[derive(Debug, Deserialize)]
struct Embedding {
    index: Option<usize>,
    embedding: Vec<f32>,
}

impl Embeddings {
    /// One vector of unit length for each of `count` texts, in their order.
    ///
    /// # Errors
    /// A sentence, when there are more or fewer, one is not `width` wide, or one has no direction: a server that failed may
    /// say so with zeros.
    pub fn in_order(self, count: usize, width: usize) -> Result<Vec<Vec<f32>>, String> {
        let mut vectors = vec![None; count];
        for (place, found) in self.data.into_iter().enumerate() {
            let Some(slot) = vectors.get_mut(found.index.unwrap_or(place)) else {
                return Err(format!("more than {count} embeddings"));
            };
            *slot = Some(found.embedding);
        }
        let Some(mut vectors) = vectors.into_iter().collect::<Option<Vec<Vec<f32>>>>() else {
            return Err(format!("fewer than {count} embeddings"));
        };
        for vector in &mut vectors {
            let length = check(vector, width).map_err(|error| match error {
                Error::Width { found, .. } => {
                    format!("an embedding {found} wide where store.vectors.dimensions is {width}")
                }
                other => other.to_string(),
            })?;
            #[expect(clippy::cast_possible_truncation, reason = "back to the width it came in")]
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        Ok(vectors)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn answered(data: &Value, count: usize) -> Result<Vec<Vec<f32>>, String> {
        serde_json::from_value::<Embeddings>(json!({ "data": data })).unwrap().in_order(count, 2)
    }

    fn plain(embeddings: &Value, count: usize) -> Result<Vec<Vec<f32>>, String> {
        let data: Vec<Value> = embeddings.as_array().unwrap().iter().map(|e| json!({ "embedding": e })).collect();
        answered(&json!(data), count)
    }

    #[test]
    fn an_embedding_that_failed_is_none() {
        assert_eq!(plain(&json!([[0, 2], [3, 4]]), 2).unwrap(), [[0.0, 1.0], [0.6, 0.8]]);
        assert!(plain(&json!([[0, 0]]), 1).unwrap_err().contains("direction"));
        assert!(plain(&json!([[1e39, 1]]), 1).is_err());
        assert!(plain(&json!([[1, 2, 3]]), 1).unwrap_err().contains("3 wide"));
        assert!(plain(&json!([[1, 2]]), 2).unwrap_err().contains("fewer than 2"));
        assert!(plain(&json!([[1, 2], [1, 2]]), 1).unwrap_err().contains("more than 1"));
    }

    #[test]
    fn they_may_come_in_any_order_and_each_once() {
        let at = |index: usize, x: i32| json!({ "index": index, "embedding": [x, 0] });
        assert_eq!(answered(&json!([at(1, -3), at(0, 5)]), 2).unwrap(), [[1.0, 0.0], [-1.0, 0.0]]);
        assert!(answered(&json!([at(1, 1), at(1, 1)]), 2).unwrap_err().contains("fewer"));
        assert!(answered(&json!([at(2, 1)]), 2).unwrap_err().contains("more"));
    }
}
