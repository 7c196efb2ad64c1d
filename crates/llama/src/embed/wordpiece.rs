//! Word pieces of BERT, as the tokenizer that the models are published with cuts them.
//!
//! llama.cpp has its own, which differs where it matters here: it cuts words of more than 100 characters (base64, paths)
//! into pieces that push the rest of a text out, knows only the first character of a decomposition, and reads a text to
//! its end before it is cut. Facts: `BertNormalizer`, `BertPreTokenizer` and `WordPiece` of Hugging Face's tokenizers,
//! to which a test compares. One difference is on purpose: `[SEP]` and its like in a text are plain text, never control.

use std::collections::HashMap;

use unicode_normalization::UnicodeNormalization;
use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// Characters of a word; a longer one is unknown.
const MAX_WORD: usize = 100;

/// Number of a token in the vocabulary.
pub(super) type Token = i32;

/// What cuts texts into word pieces.
#[derive(Debug)]
pub(super) struct WordPieces {
    /// Pieces that begin a word.
    starts: HashMap<Box<str>, Token>,
    /// Pieces that go on.
    parts: HashMap<Box<str>, Token>,
    /// Bytes of the longest piece.
    longest: usize,
    lowercase: bool,
    first: Token,
    last: Token,
    unknown: Token,
}

impl WordPieces {
    /// A vocabulary of pieces in llama.cpp's spelling, without its control tokens.
    pub(super) fn new<'a>(
        pieces: impl Iterator<Item = (Token, &'a str)>,
        [first, last, unknown]: [Token; 3],
        lowercase: bool,
    ) -> Self {
        let (mut starts, mut parts, mut longest) = (HashMap::new(), HashMap::new(), 0);
        for (token, piece) in pieces {
            let (text, all) = piece.strip_prefix('▁').map_or((piece, &mut parts), |start| (start, &mut starts));
            longest = longest.max(text.len());
            if !text.is_empty() {
                all.entry(text.into()).or_insert(token);
            }
        }
        Self { starts, parts, longest, lowercase, first, last, unknown }
    }

    /// The tokens of `text` between the first and the last token, `most` of them together at most.
    pub(super) fn tokens(&self, text: &str, most: usize) -> Vec<Token> {
        let room = most.saturating_sub(1);
        let mut tokens = vec![self.first];
        let mut word = String::new();
        self.each(text, |next| {
            match next {
                Next::Letter(c) => word.push(c),
                Next::Space => self.flush(&mut word, &mut tokens),
                Next::Alone(c) => {
                    self.flush(&mut word, &mut tokens);
                    word.push(c);
                    self.flush(&mut word, &mut tokens);
                }
            }
            tokens.len() < room
        });
        self.flush(&mut word, &mut tokens);
        tokens.truncate(room);
        tokens.push(self.last);
        tokens
    }

    /// Cleans `text` character by character, until `go_on` says no.
    fn each(&self, text: &str, mut go_on: impl FnMut(Next) -> bool) {
        let cleaned = text.chars().filter(|c| !is_dropped(*c));
        let mut tell = |c: char| {
            go_on(match c {
                c if is_space(c) => Next::Space,
                c if is_punctuation(c) || is_ideograph(c) => Next::Alone(c),
                c => Next::Letter(c),
            })
        };
        if self.lowercase {
            let unaccented = cleaned.nfd().filter(|c| c.general_category() != GeneralCategory::NonspacingMark);
            unaccented.flat_map(char::to_lowercase).all(&mut tell);
        } else {
            cleaned.into_iter().all(&mut tell);
        }
    }

    /// Appends the pieces of `word` and empties it.
    fn flush(&self, word: &mut String, tokens: &mut Vec<Token>) {
        if word.is_empty() {
            return;
        }
        let before = tokens.len();
        let mut rest = word.as_str();
        if rest.len() > MAX_WORD && rest.chars().count() > MAX_WORD {
            tokens.push(self.unknown);
            rest = "";
        }
        while !rest.is_empty() {
            let known = if tokens.len() == before { &self.starts } else { &self.parts };
            let ends = (1..=rest.len().min(self.longest)).rev().filter(|end| rest.is_char_boundary(*end));
            let found = ends.map(|end| rest.split_at(end)).find_map(|(piece, rest)| Some((known.get(piece)?, rest)));
            let Some((token, left)) = found else {
                tokens.truncate(before);
                tokens.push(self.unknown);
                break;
            };
            tokens.push(*token);
            rest = left;
        }
        word.clear();
    }
}

/// What a character means for words.
enum Next {
    Letter(char),
    Space,
    /// A word of its own.
    Alone(char),
}

fn is_space(c: char) -> bool {
    c.is_whitespace()
}

fn is_dropped(c: char) -> bool {
    match c {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        // Unassigned characters stay: they make a word unknown.
        c => matches!(
            c.general_category(),
            GeneralCategory::Control | GeneralCategory::Format | GeneralCategory::PrivateUse
        ),
    }
}

fn is_punctuation(c: char) -> bool {
    c.is_ascii_punctuation() || c.general_category_group() == GeneralCategoryGroup::Punctuation
}

/// The ideographs that stand alone; the gap at U+2B820 is the original's.
fn is_ideograph(c: char) -> bool {
    matches!(u32::from(c),
        0x4e00..=0x9fff | 0x3400..=0x4dbf | 0x2_0000..=0x2_a6df | 0x2_a700..=0x2_b73f | 0x2_b740..=0x2_b81f
        | 0x2_b920..=0x2_ceaf | 0xf900..=0xfaff | 0x2_f800..=0x2_fa1f)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn pieces() -> WordPieces {
        let all = ["▁to", "ol", "▁cafe", "▁-", "s", "▁日", "▁ß", "ss", "▁a"];
        WordPieces::new((10..).zip(all), [1, 2, 3], true)
    }

    #[test]
    fn words_are_cut_into_their_longest_pieces() {
        let cut = |text| pieces().tokens(text, 16);
        assert_eq!(cut(""), [1, 2]);
        assert_eq!(cut("Tools"), [1, 10, 11, 14, 2]);
        assert_eq!(cut(" to-ol\n"), [1, 10, 13, 3, 2]);
        assert_eq!(cut("CAFÉ cafe\u{301}s"), [1, 12, 12, 14, 2]);
        assert_eq!(cut("a日a"), [1, 18, 15, 18, 2]);
        assert_eq!(cut("t\u{200b}o\0\u{feff}"), [1, 10, 2]);
        assert_eq!(cut("[SEP]"), [1, 3, 3, 3, 2]);
    }

    #[test]
    fn long_words_are_unknown_and_long_texts_are_cut() {
        let cut = |text: &str, most| pieces().tokens(text, most);
        assert_eq!(cut(&format!("to{}", "s".repeat(98)), 200).len(), 52);
        assert_eq!(cut(&format!("to{}", "s".repeat(99)), 200), [1, 3, 2]);
        assert_eq!(cut("to to to to", 4), [1, 10, 10, 2]);
        assert_eq!(cut("tools", 4), [1, 10, 11, 2]);
    }

    proptest! {
        #[test]
        fn any_text_gives_tokens_of_the_vocabulary(text in any::<String>(), most in 2usize..40) {
            let tokens = pieces().tokens(&text, most);
            prop_assert!(tokens.len() <= most && tokens.len() >= 2);
            prop_assert!(tokens.iter().all(|t| (1..=3).contains(t) || (10..19).contains(t)));
        }
    }
}
