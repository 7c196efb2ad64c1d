//! How good a ranking is, by what was relevant.

use std::collections::BTreeSet;

use serde::Serialize;

/// Depths at which rankings are measured.
const DEPTHS: [usize; 3] = [1, 5, 10];

/// Quality at one depth after another, averaged over queries; each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Quality {
    /// Share of the relevant tools among the first.
    #[serde(rename = "recall@1")]
    pub recall_1: f64,
    /// Among the first five.
    #[serde(rename = "recall@5")]
    pub recall_5: f64,
    /// Among the first ten.
    #[serde(rename = "recall@10")]
    pub recall_10: f64,
    /// Discounted gain of the first, against the best possible.
    #[serde(rename = "ndcg@1")]
    pub ndcg_1: f64,
    /// Of the first five.
    #[serde(rename = "ndcg@5")]
    pub ndcg_5: f64,
    /// Of the first ten.
    #[serde(rename = "ndcg@10")]
    pub ndcg_10: f64,
    /// One divided by the rank of the first relevant tool among the first ten; 0 if there is none.
    pub mrr: f64,
}

/// Adds up the quality of rankings.
#[derive(Debug, Default)]
pub struct Sum {
    total: Quality,
    queries: usize,
}

#[expect(clippy::cast_precision_loss, reason = "counts of tools and queries are far below 2^53")]
impl Sum {
    /// Adds a ranking, best first, of a query to which `relevant` were the right answers, all alike.
    pub fn add<K: Ord>(&mut self, ranking: &[K], relevant: &BTreeSet<K>) {
        if relevant.is_empty() {
            return;
        }
        let gains: Vec<bool> = ranking.iter().map(|id| relevant.contains(id)).collect();
        let discount = |place: usize| 1.0 / ((place + 2) as f64).log2();
        let at = DEPTHS.map(|depth| {
            let found = gains.iter().take(depth).enumerate().filter(|(_, gain)| **gain);
            let gain: f64 = found.clone().map(|(place, _)| discount(place)).sum();
            let best: f64 = (0..depth.min(relevant.len())).map(discount).sum();
            (found.count() as f64 / relevant.len() as f64, gain / best)
        });
        let [one, five, ten] = at;
        self.total.recall_1 += one.0;
        self.total.recall_5 += five.0;
        self.total.recall_10 += ten.0;
        self.total.ndcg_1 += one.1;
        self.total.ndcg_5 += five.1;
        self.total.ndcg_10 += ten.1;
        let first = gains.iter().take(10).position(|gain| *gain);
        self.total.mrr += first.map_or(0.0, |place| 1.0 / (place + 1) as f64);
        self.queries += 1;
    }

    /// The average; zeros without queries.
    pub fn average(&self) -> Quality {
        let of = |sum: f64| sum / self.queries.max(1) as f64;
        let total = self.total;
        Quality {
            recall_1: of(total.recall_1),
            recall_5: of(total.recall_5),
            recall_10: of(total.recall_10),
            ndcg_1: of(total.ndcg_1),
            ndcg_5: of(total.ndcg_5),
            ndcg_10: of(total.ndcg_10),
            mrr: of(total.mrr),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_is_what_the_textbook_says() {
        let mut sum = Sum::default();
        sum.add(&["x", "a", "y", "b"], &BTreeSet::from(["a", "b"]));
        let quality = sum.average();
        assert_eq!((quality.recall_1, quality.recall_5, quality.mrr), (0.0, 1.0, 0.5));
        let expected = (1.0 / 3f64.log2() + 1.0 / 5f64.log2()) / (1.0 + 1.0 / 3f64.log2());
        assert!((quality.ndcg_10 - expected).abs() < 1e-12, "{quality:?}");
        sum.add(&["c"], &BTreeSet::from(["c"]));
        assert!((sum.average().mrr - 0.75).abs() < 1e-12);
        sum.add(&["c"], &BTreeSet::new());
        assert!((sum.average().recall_1 - 0.5).abs() < 1e-12, "a query without answers counts for nothing");
    }
}
