//! The shape of a line that no pattern knows: what differs from one occurrence to the next is masked, so that the same
//! failure has the same fingerprint today and tomorrow, here and elsewhere.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde::{Deserialize, Serialize};

use crate::classify::clean;

/// Most words of a line that count; what follows are dumps and lists.
const WORDS_MAX: usize = 64;
/// Most bytes of a line that are looked at.
const BYTES_MAX: usize = 4096;
/// Masking may bring together what was apart: at most so many passes until nothing changes.
const PASSES_MAX: usize = 8;

/// What is masked, the first that fits at one place. A mask stays what it is.
const MASKS: [(&str, &str); 11] = [
    ("", r"<(?:str|url|uuid|time|ip|path|hex|duration|size|n)>"),
    ("<str>", r#""(?:[^"\\]|\\.)*"|`[^`]*`|\B'(?:[^'\\]|\\.)*'"#),
    ("<url>", r"\b[a-zA-Z][a-zA-Z+.-]{1,15}://[^\s,;)\]}<>]+"),
    ("<uuid>", r"\b[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}\b"),
    (
        "<time>",
        r"\b\d{4}[-/]\d{2}[-/]\d{2}(?:[T ]\d{2}:\d{2}:\d{2}(?:[.,]\d+)?)?(?:Z|[+-]\d{2}:?\d{2})?|\b\d{1,2}:\d{2}:\d{2}(?:[.,]\d+)?\b",
    ),
    (
        "<ip>",
        r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}(?::\d{1,5})?\b|\[[0-9a-fA-F]*:[0-9a-fA-F:.]*\](?::\d{1,5})?|\b(?:[0-9a-fA-F]{1,4}:){4,7}[0-9a-fA-F]{1,4}\b",
    ),
    ("<path>", r#"(?:\.{1,2}|~)?/[^\s"'`<>,;:()\[\]{}|=]+|\b[A-Za-z]:\\[^\s"'`<>,;()]+"#),
    ("<size>", r"\b\d+(?:\.\d+)? ?(?:[kKMGT]i?B|bytes?|B)\b"),
    ("<duration>", r"\b\d+(?:\.\d+)? ?(?:ns|us|µs|ms|s|secs?|seconds?|m|min|minutes?|h|hours?)\b"),
    ("<hex>", r"\b0x[0-9a-fA-F]+\b|\b[0-9a-fA-F]{8,}\b"),
    ("<n>", r"\d+(?:\.\d+)*"),
];

static MASK: LazyLock<Regex> = LazyLock::new(|| {
    let parts = MASKS.map(|(_, text)| format!("({text})"));
    Regex::new(&parts.join("|")).expect("a test compiles the same constant text")
});

/// The shape of a line.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Template(String);

impl Template {
    /// Masks quoted strings, URLs, UUIDs, times, addresses, paths, sizes, durations, hexadecimal numbers and numbers,
    /// and keeps the first 64 words. The template of a template is itself.
    pub fn of(line: &str) -> Self {
        let mut text = words(&clean(line));
        for _ in 0..PASSES_MAX {
            let masked = words(&MASK.replace_all(&text, mask));
            if masked == text {
                break;
            }
            text = masked;
        }
        Self(text)
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A hash that stays the same between versions, machines and runs: FNV-1a, 64 bits.
    pub fn fingerprint(&self) -> Fingerprint {
        let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        Fingerprint(self.0.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step))
    }

    /// How many of the words of two templates are common: 0 (none) to 1 (all), the Jaccard index.
    pub fn similarity(&self, other: &Self) -> f64 {
        let (a, b) = (self.tokens(), other.tokens());
        let all = a.union(&b).count();
        if all == 0 { 1.0 } else { a.intersection(&b).count() as f64 / all as f64 }
    }

    /// Words without punctuation. Masks alone say nothing: every line has numbers.
    fn tokens(&self) -> BTreeSet<&str> {
        let word = |word: &str| word.chars().any(char::is_alphanumeric);
        let trimmed = self.0.split_whitespace().map(|w| w.trim_matches(|c: char| c.is_ascii_punctuation()));
        trimmed.filter(|text| word(text)).collect()
    }
}

impl fmt::Display for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Stable hash of a [`Template`], shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint(pub u64);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

fn mask(found: &Captures<'_>) -> String {
    let whole = &found[0];
    let which = (1..=MASKS.len()).find(|&group| found.get(group).is_some()).map_or("", |group| MASKS[group - 1].0);
    match which {
        "" => whole.to_owned(),
        // `deadbeef`, `defaced` are words; a number has a digit.
        "<hex>" if !whole.bytes().any(|byte| byte.is_ascii_digit()) => whole.to_owned(),
        mask => mask.to_owned(),
    }
}

/// The first words, one space between them.
fn words(text: &str) -> String {
    let end = (0..=BYTES_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
    let text: Cow<'_, str> = Cow::Borrowed(&text[..end]);
    text.split_whitespace().take(WORDS_MAX).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[track_caller]
    fn is(line: &str, template: &str) {
        assert_eq!(Template::of(line).as_str(), template);
    }

    #[test]
    fn what_differs_is_masked() {
        is("worker 3 of 12 died after 250ms", "worker <n> of <n> died after <duration>");
        is("cannot parse /etc/app/a.toml: line 7", "cannot parse <path>: line <n>");
        is("peer 10.0.0.7:4000 sent 12.5 MiB in 3 s", "peer <ip> sent <size> in <duration>");
        is("key 'alpha' of \"user 5\" can't be read", "key <str> of <str> can't be read");
        is("at 0x7ffd12 in 9f86d081884c7d65: deadbeef", "at <hex> in <hex>: deadbeef");
        is("2026-11-23T04:33:13.8Z [::1]:80 GET https://a.b/c?d=1", "<time> <ip> GET <url>");
        is("request 0190b1c2-7d2e-7c3a-9b1f-00aa11bb22cc failed", "request <uuid> failed");
    }

    #[test]
    fn the_hash_is_the_published_one() {
        // FNV-1a, 64 bits, of "" and "a": http://www.isthe.com/chongo/tech/comp/fnv/
        assert_eq!(Template::of("").fingerprint().to_string(), "cbf29ce484222325");
        assert_eq!(Template::of("a").fingerprint().to_string(), "af63dc4c8601ec8c");
    }

    #[test]
    fn like_lines_are_similar_and_others_are_not() {
        let one = Template::of("shard 3 of index logs-2026 failed to recover: translog is truncated at 4711");
        let two = Template::of("shard 9 of index logs-2027 failed to recover: translog is empty at 1");
        let other = Template::of("TLS handshake error from 10.0.0.1:4000: unknown certificate");
        assert!(one.similarity(&two) > 0.7, "{}", one.similarity(&two));
        assert!(one.similarity(&other) < 0.2, "{}", one.similarity(&other));
        assert!((one.similarity(&one) - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_dump_is_cut() {
        let template = Template::of(&"word ".repeat(100_000));
        assert_eq!(template.as_str().split(' ').count(), WORDS_MAX);
    }

    fn line() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "[a-z]{1,8}",
            "[0-9]{1,6}",
            "/[a-z0-9/._-]{0,12}",
            "[\"'`<>:,;()\\[\\]{}=|\\\\.~/-]{1,3}",
            "[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}\\.[0-9]{1,3}",
            "[0-9a-f]{6,20}",
            "[0-9]{1,4}(ms|s| KiB)",
            " {1,2}",
            "\\PC{1,4}",
        ];
        proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn the_template_of_a_template_is_itself(line in line()) {
            let once = Template::of(&line);
            prop_assert_eq!(Template::of(once.as_str()), once);
        }

        #[test]
        fn other_digits_give_the_same_template(line in line(), digit in 0_u8..10) {
            let other: String =
                line.chars().map(|c| if c.is_ascii_digit() { char::from(b'0' + digit) } else { c }).collect();
            prop_assert_eq!(Template::of(&line), Template::of(&other));
        }

        #[test]
        fn any_text_has_a_bounded_template(line in "\\PC*") {
            let template = Template::of(&line);
            prop_assert!(template.as_str().len() <= BYTES_MAX);
            prop_assert!(!template.as_str().chars().any(|c| c.is_ascii_digit()));
        }

        #[test]
        fn similarity_is_symmetric_and_between_0_and_1(a in line(), b in line()) {
            let (a, b) = (Template::of(&a), Template::of(&b));
            let similarity = a.similarity(&b);
            prop_assert!((0.0..=1.0).contains(&similarity));
            prop_assert_eq!(similarity.to_bits(), b.similarity(&a).to_bits());
        }
    }
}
