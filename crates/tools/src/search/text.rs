//! Text → words that can be compared: names in any case, English by its stems, Chinese, Japanese and Korean by pairs.

use std::borrow::Cow;

use rust_stemmers::{Algorithm, Stemmer};

/// Longest word, in bytes; what is longer is an encoded value, not a word.
const WORD: usize = 40;
/// Most parts of a query that are looked for by themselves.
pub const PARTS: usize = 6;
/// Fewest words of such a part.
const PART_WORDS: usize = 3;
/// Most bytes of a query that are looked at.
pub const QUERY: usize = 4000;

/// Words that tell nothing about what a tool does. Verbs such as `get` stay: tools are named by them.
const STOP: &[&str] = &[
    "a", "about", "again", "all", "also", "am", "an", "and", "any", "are", "as", "at", "be", "been", "being", "both",
    "but", "by", "can", "could", "d", "did", "do", "does", "doing", "each", "else", "etc", "few", "for", "from",
    "further", "had", "has", "have", "having", "he", "help", "her", "here", "him", "his", "how", "i", "if", "in",
    "into", "is", "it", "its", "just", "let", "lets", "like", "ll", "m", "may", "me", "might", "mine", "more", "most",
    "must", "my", "need", "no", "nor", "not", "of", "on", "once", "only", "or", "other", "our", "over", "own", "per",
    "please", "re", "s", "same", "shall", "she", "should", "so", "some", "such", "t", "than", "that", "the", "their",
    "them", "then", "there", "these", "they", "this", "those", "to", "too", "under", "us", "use", "used", "using",
    "ve", "very", "via", "want", "was", "we", "were", "what", "when", "where", "which", "who", "whom", "whose", "why",
    "will", "with", "without", "would", "you", "your", "yours",
];

/// A word as it is compared, and as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Lower case, stemmed.
    pub stem: String,
    /// Lower case.
    pub written: String,
}

/// Whether a script is written without spaces.
fn is_dense_script(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}' | '\u{20000}'..='\u{3ffff}')
}

/// The words of a text, in order, split where names are (`readFile`, `read_file`, `HTTPServer`), as they were written.
fn split(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut dense = Vec::new();
    let mut before = ' ';
    let mut chars = text.chars().peekable();
    let close = |word: &mut String, words: &mut Vec<String>| {
        if !word.is_empty() {
            words.push(word.to_lowercase());
            word.clear();
        }
    };
    let close_dense = |dense: &mut Vec<char>, words: &mut Vec<String>| {
        if let [one] = dense[..] {
            words.push(one.to_string());
        }
        words.extend(dense.windows(2).map(|pair| pair.iter().collect::<String>()));
        dense.clear();
    };
    while let Some(c) = chars.next() {
        if is_dense_script(c) {
            close(&mut word, &mut words);
            dense.push(c);
        } else {
            close_dense(&mut dense, &mut words);
            if c.is_alphanumeric() {
                let after_lower = c.is_uppercase() && (before.is_lowercase() || before.is_numeric());
                let ends_capitals =
                    c.is_uppercase() && before.is_uppercase() && chars.peek().is_some_and(|next| next.is_lowercase());
                if after_lower || ends_capitals {
                    close(&mut word, &mut words);
                }
                word.push(c);
            } else {
                close(&mut word, &mut words);
            }
        }
        before = c;
    }
    close(&mut word, &mut words);
    close_dense(&mut dense, &mut words);
    words
}

/// The words of a text that tell something, in order, as often as they are there.
pub fn words(text: &str) -> Vec<Word> {
    let stemmer = Stemmer::create(Algorithm::English);
    split(text)
        .into_iter()
        .filter(|word| word.len() <= WORD && STOP.binary_search(&word.as_str()).is_err())
        .map(|written| {
            let stem = match stemmer.stem(&written) {
                Cow::Borrowed(stem) => stem.to_owned(),
                Cow::Owned(stem) => stem,
            };
            Word { stem, written }
        })
        .collect()
}

/// A name as a person would say it: `getFilmDetails` → `get film details`.
pub fn spoken(name: &str) -> String {
    split(name).join(" ")
}

/// The first sentence or paragraph of a text.
pub fn first_sentence(text: &str) -> &str {
    let text = text.trim();
    let mut end = text.len();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        let stops = matches!(c, '.' | '!' | '?') && next.is_some_and(char::is_whitespace)
            || c == '。'
            || c == '\n' && next == Some('\n');
        if stops {
            end = at + c.len_utf8();
            break;
        }
    }
    text.get(..end).unwrap_or(text).trim_end()
}

/// At most so many bytes of a text, cut between characters.
pub fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or_default()
}

/// Words after which another request begins.
const THEN: &[&str] = &[
    "then",
    "afterwards",
    "afterward",
    "finally",
    "also",
    "next",
    "additionally",
    "lastly",
    "secondly",
    "subsequently",
];

/// What to embed for a query: the whole, and, where it asks for several things, each of them.
pub fn query_texts(query: &str) -> Vec<String> {
    let query = cut(query.trim(), QUERY);
    let mut texts = vec![query.to_owned()];
    let parts: Vec<&str> = sentences(query)
        .into_iter()
        .flat_map(clauses)
        .filter(|part| part.split_whitespace().count() >= PART_WORDS)
        .collect();
    if parts.len() > 1 {
        texts.extend(parts.into_iter().take(PARTS).map(str::to_owned));
    }
    texts
}

fn sentences(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut begin = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        let space = chars.peek().is_none_or(|(_, next)| next.is_whitespace());
        if matches!(c, '.' | '!' | '?' | ';') && space || matches!(c, '\n' | '。' | '！' | '？' | '；') {
            found.extend(text.get(begin..at));
            begin = at + c.len_utf8();
        }
    }
    found.extend(text.get(begin..));
    found.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// A sentence, divided at `, and` and at words such as `then`.
fn clauses(sentence: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut begin = 0;
    let mut comma = false;
    let mut word_begin = None;
    let bytes = sentence.len();
    let ends = sentence.char_indices().chain(std::iter::once((bytes, ' ')));
    for (at, c) in ends {
        if c.is_alphanumeric() || c == '\'' {
            word_begin.get_or_insert(at);
            continue;
        }
        if let Some(from) = word_begin.take() {
            let word = sentence.get(from..at).unwrap_or_default().to_ascii_lowercase();
            let divides = THEN.contains(&word.as_str()) || comma && word == "and";
            if divides && c.is_whitespace() {
                found.extend(sentence.get(begin..from));
                begin = at;
            }
            comma = false;
        }
        comma = c == ',' || comma && c.is_whitespace();
    }
    found.extend(sentence.get(begin..));
    found
        .into_iter()
        .map(|part| {
            let part = part.trim_matches(|c: char| c.is_whitespace() || c == ',');
            part.strip_suffix(" and").unwrap_or(part).trim_end_matches(|c: char| c.is_whitespace() || c == ',')
        })
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn stems(text: &str) -> Vec<String> {
        words(text).into_iter().map(|word| word.stem).collect()
    }

    #[test]
    fn the_stop_words_are_in_order_so_that_they_are_found() {
        assert!(STOP.is_sorted());
        assert!(words("the of and please").is_empty());
    }

    #[test]
    fn names_are_split_where_their_words_meet() {
        assert_eq!(spoken("getFilmDetails"), "get film details");
        assert_eq!(spoken("HTTPServer_list-tools.v2"), "http server list tools v2");
        assert_eq!(spoken("parseJSON"), "parse json");
        assert_eq!(stems("list_directories"), stems("listing a directory"));
    }

    #[test]
    fn text_without_spaces_is_compared_by_pairs() {
        assert_eq!(stems("查询余票 api"), ["查询", "询余", "余票", "api"]);
        assert_eq!(stems("猫"), ["猫"]);
    }

    #[test]
    fn a_query_for_several_things_is_divided() {
        assert_eq!(query_texts("show the git log"), ["show the git log"]);
        let query = "Find a flight to Oslo, and book a hotel there. Then send me the bill";
        assert_eq!(query_texts(query), [query, "Find a flight to Oslo", "book a hotel there", "send me the bill"]);
        assert_eq!(query_texts("salt, pepper and then some. Yes."), ["salt, pepper and then some. Yes."]);
    }

    #[test]
    fn a_first_sentence_ends_at_a_stop_before_a_space() {
        assert_eq!(first_sentence(" Reads v1.2 files. Then more."), "Reads v1.2 files.");
        assert_eq!(first_sentence("查询。更多"), "查询。");
        assert_eq!(first_sentence("One\nline\n\nTwo"), "One\nline");
    }

    proptest! {
        #[test]
        fn any_text_is_bounded(text in "\\PC{0,300}") {
            prop_assert!(words(&text).iter().all(|word| word.written.len() <= WORD && !word.stem.is_empty()));
            let texts = query_texts(&text);
            prop_assert!(!texts.is_empty() && texts.len() <= 1 + PARTS);
            prop_assert!(texts.iter().all(|part| text.contains(part.as_str())));
            prop_assert!(text.contains(first_sentence(&text)));
        }
    }
}
