//! How alike two failures are by their words, where no model tells.

use std::collections::BTreeMap;

/// From here on two failures count as one. At least this much of the pairs of neighbouring words is common: in a line
/// of nine words one may differ.
pub(super) const ALIKE: f64 = 0.8;

/// The Dice coefficient over pairs of neighbouring words, 0 (nothing in common) to 1: twice the pairs that both have, by
/// the pairs of one and of the other. The beginning and the end count as words. A pair of masks says nothing, as every
/// line has numbers, and is left out.
pub(super) fn dice(one: &str, other: &str) -> f64 {
    let (one, other) = (pairs(one), pairs(other));
    let count = |pairs: &BTreeMap<(String, String), usize>| pairs.values().sum::<usize>();
    let all = count(&one) + count(&other);
    if all == 0 {
        return 0.0;
    }
    let common: usize = one.iter().map(|(pair, times)| *times.min(other.get(pair).unwrap_or(&0))).sum();
    2.0 * common as f64 / all as f64
}

fn pairs(text: &str) -> BTreeMap<(String, String), usize> {
    let word = |word: &str| word.trim_matches(|c: char| c.is_ascii_punctuation() && !"<>".contains(c)).to_lowercase();
    let words = text.split_whitespace().map(word).filter(|word| !word.is_empty());
    let words: Vec<String> = std::iter::once(String::new()).chain(words).chain([String::new()]).collect();
    let mut pairs = BTreeMap::new();
    for pair in words.windows(2) {
        let is_mask = |word: &String| word.starts_with('<') && word.ends_with('>');
        let says = |word: &String| !word.is_empty() && !is_mask(word);
        if pair.iter().any(says) {
            *pairs.entry((pair[0].clone(), pair[1].clone())).or_insert(0) += 1;
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::fingerprint::Template;

    fn likeness(one: &str, other: &str) -> f64 {
        dice(Template::of(one).as_str(), Template::of(other).as_str())
    }

    #[test]
    fn one_failure_in_two_wordings_is_one() {
        // Lines as the programs write them; what no mask hides differs: a name, a version's wording.
        for (one, other) in [
            (
                "panicked at src/index/shard.rs:212:9: assertion `left == right` failed: segment header of shard alpha is damaged",
                "panicked at src/index/shard.rs:214:9: assertion `left == right` failed: segment header of shard beta is damaged",
            ),
            (
                "2026-11-23 04:33:13.863 UTC [155] PANIC:  could not locate a valid checkpoint record at 0/15D6B60",
                "2026-11-24 05:13:03.120 CET [9155] PANIC:  could not locate a valid checkpoint record at 2/9A0F8C8",
            ),
            (
                "[ERROR] InnoDB: Missing MLOG_CHECKPOINT at 1626007 between the checkpoint 1625998 and the end 1626015.",
                "[ERROR] InnoDB: Missing MLOG_CHECKPOINT at 27332 between the checkpoint 27100 and the log end 27500.",
            ),
            // The same program with and without its prefix.
            (
                "E gguf_init_from_file: failed to open GGUF file '/m/a.gguf' (errno Permission denied)",
                "gguf_init_from_file: failed to open GGUF file '/models/b.gguf' (errno Permission denied)",
            ),
            (
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.65 GiB",
                "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 1 has a total capacity of 7.79 GiB of which 4.00 MiB is free.",
            ),
            (
                "terminate called after throwing an instance of 'std::out_of_range' what(): vector::_M_range_check: __n (which is 7) >= this->size() (which is 7)",
                "terminate called after throwing an instance of 'std::out_of_range' what(): vector::_M_range_check: __n (which is 12) >= this->size() (which is 3)",
            ),
        ] {
            assert!(likeness(one, other) >= ALIKE, "{:.3}\n{one}\n{other}", likeness(one, other));
        }
    }

    #[test]
    fn two_failures_that_share_words_are_two() {
        for (one, other) in [
            (
                "panicked at src/index/shard.rs:212:9: segment header of shard alpha is damaged",
                "panicked at src/index/shard.rs:98:17: write-ahead log of shard alpha ends too early",
            ),
            ("FATAL: the database system is starting up", "FATAL: the database system is shutting down"),
            ("failed to load plugin geoip: undefined symbol", "failed to load certificate: unknown key type"),
            (
                "nginx: [emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)",
                "nginx: [emerg] bind() to 0.0.0.0:80 failed (13: Permission denied)",
            ),
            ("worker 3 exited on signal 11", "worker 3 exited with code 1"),
            ("KeyError: 'name'", "TypeError: 'NoneType' object is not iterable"),
            ("1 2 3 4 5", "9 8 7"),
            ("", ""),
        ] {
            assert!(likeness(one, other) < ALIKE, "{:.3}\n{one}\n{other}", likeness(one, other));
        }
    }

    proptest! {
        #[test]
        fn it_is_symmetric_and_between_0_and_1(a in "[a-d<>. ]{0,40}", b in "[a-d<>. ]{0,40}") {
            let likeness = dice(&a, &b);
            prop_assert!((0.0..=1.0).contains(&likeness));
            prop_assert_eq!(likeness.to_bits(), dice(&b, &a).to_bits());
        }
    }
}
