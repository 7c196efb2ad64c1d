//! How many tokens an answer took, read from the answer as it passes.
//!
//! The last `usage` object counts; llama.cpp's `timings` stand in when the client did not ask for usage. Streams are
//! read line by line where they lie, only the rest of a line cut by a chunk border is kept (bounded). What is not said
//! stays unknown: no number is guessed.

use bytes::Bytes;
use serde::Deserialize;

/// Longest line that is put together over chunk borders. Longer ones are passed on unread.
const MAX_LINE: usize = 64 << 10;
/// Largest plain answer that is read for its usage: a batch of 250 embeddings 1024 wide.
const MAX_ANSWER: usize = 4 << 20;

/// Tokens of one request, where the upstream said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Tokens of the prompt, those taken from a cache included.
    pub prompt: Option<i64>,
    /// Tokens generated.
    pub completion: Option<i64>,
}

#[derive(Deserialize)]
struct Said<'a> {
    #[serde(default)]
    usage: Option<Usage>,
    #[serde(default)]
    timings: Option<Timings>,
    #[serde(borrow, default)]
    error: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct Usage {
    #[serde(default)]
    prompt_tokens: Option<i64>,
    #[serde(default)]
    completion_tokens: Option<i64>,
}

#[derive(Deserialize)]
struct Timings {
    #[serde(default)]
    cache_n: Option<i64>,
    #[serde(default)]
    prompt_n: Option<i64>,
    #[serde(default)]
    predicted_n: Option<i64>,
}

impl Said<'_> {
    fn tokens(&self) -> Option<Tokens> {
        match (&self.usage, &self.timings) {
            (Some(usage), _) => Some(Tokens { prompt: usage.prompt_tokens, completion: usage.completion_tokens }),
            (None, Some(timings)) => Some(Tokens {
                prompt: timings.prompt_n.map(|read| read.saturating_add(timings.cache_n.unwrap_or(0))),
                completion: timings.predicted_n,
            }),
            (None, None) => None,
        }
    }

    fn error(&self) -> Option<String> {
        #[derive(Deserialize)]
        struct Message {
            message: String,
        }
        let raw = self.error?.get();
        Some(serde_json::from_str::<Message>(raw).map_or_else(|_| raw.chars().take(500).collect(), |m| m.message))
    }
}

/// Reads along with an answer.
#[derive(Debug)]
pub enum Tee {
    /// A stream of server-sent events.
    Events(Events),
    /// One JSON document; its pieces are held, not copied, until it is complete. None once it grew too large.
    Document(Option<(Vec<Bytes>, usize)>),
}

/// What was seen of a stream.
#[derive(Debug, Default)]
pub struct Events {
    /// The beginning of a line whose end has not come yet.
    partial: Vec<u8>,
    /// The line grew over its bound and is skipped.
    skipping: bool,
    in_line: bool,
    tokens: Option<Tokens>,
    from_usage: bool,
    error: Option<String>,
    done: bool,
}

impl Tee {
    /// For a stream of server-sent events.
    pub fn events() -> Self {
        Self::Events(Events::default())
    }

    /// For one JSON document.
    pub fn document() -> Self {
        Self::Document(Some((Vec::new(), 0)))
    }

    /// The next piece of the answer.
    pub fn feed(&mut self, piece: &Bytes) {
        match self {
            Self::Events(events) => events.feed(piece),
            Self::Document(held) => {
                if let Some((pieces, length)) = held {
                    *length += piece.len();
                    pieces.push(piece.clone());
                    if *length > MAX_ANSWER {
                        *held = None;
                    }
                }
            }
        }
    }

    /// Whether a stream said that it is complete, so that a client may leave without waiting for its end.
    pub fn is_complete(&self) -> bool {
        matches!(self, Self::Events(events) if events.done)
    }

    /// Whether a stream was left in the middle of a line.
    pub fn is_in_line(&self) -> bool {
        matches!(self, Self::Events(events) if events.in_line)
    }

    /// The error the upstream reported inside a stream.
    pub fn error(&self) -> Option<&str> {
        match self {
            Self::Events(events) => events.error.as_deref(),
            Self::Document(_) => None,
        }
    }

    /// What the answer said of its tokens; for a document, once it is complete.
    pub fn tokens(&mut self) -> Tokens {
        match self {
            Self::Events(events) => events.tokens.unwrap_or_default(),
            Self::Document(held) => {
                let Some((pieces, length)) = held.take() else { return Tokens::default() };
                let read = |document: &[u8]| serde_json::from_slice::<Said<'_>>(document).ok()?.tokens();
                match pieces.as_slice() {
                    [whole] => read(whole),
                    pieces => {
                        let mut whole = Vec::with_capacity(length);
                        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
                        read(&whole)
                    }
                }
                .unwrap_or_default()
            }
        }
    }
}

impl Events {
    fn feed(&mut self, piece: &[u8]) {
        let Some(last) = piece.last() else { return };
        self.in_line = *last != b'\n';
        let mut rest = piece;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let (line, after) = (&rest[..end], &rest[end + 1..]);
            if self.skipping {
                self.skipping = false;
            } else if self.partial.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.line(&whole);
            }
            rest = after;
        }
        if rest.is_empty() || self.skipping {
            return;
        }
        if self.partial.len() + rest.len() > MAX_LINE {
            self.partial = Vec::new();
            self.skipping = true;
        } else {
            self.partial.extend_from_slice(rest);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // `error:` instead of `data:` is how older llama-servers report one.
        let (data, error) = match (line.strip_prefix(b"data:"), line.strip_prefix(b"error:")) {
            (Some(data), _) => (data.trim_ascii_start(), false),
            (None, Some(error)) => (error.trim_ascii_start(), true),
            (None, None) => return,
        };
        if data == b"[DONE]" {
            self.done = true;
        } else if error {
            self.error = Some(String::from_utf8_lossy(data).chars().take(500).collect());
        } else if contains(data, b"\"usage\"") || contains(data, b"\"timings\"") || data.starts_with(b"{\"error\"") {
            let Ok(said) = serde_json::from_slice::<Said<'_>>(data) else { return };
            if let Some(tokens) = said.tokens() {
                // A usage chunk may come before or after the one with timings, and is the better source.
                if said.usage.is_some() || !self.from_usage {
                    self.from_usage |= said.usage.is_some();
                    self.tokens = Some(tokens);
                }
            }
            if let Some(error) = said.error() {
                self.error = Some(error);
            }
        }
    }
}

/// Whether `what` is in `text`. A line of a stream is short, so the simplest search will do.
fn contains(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\": {\"}}]}\n\n",
        ": keep-alive\n\n",
        "data: {\"choices\":[{\"delta\":{}}],\"timings\":{\"cache_n\":10,\"prompt_n\":5,\"predicted_n\":7}}\r\n\r\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":8,\"total_tokens\":24}}\n\n",
        "data: [DONE]\n\n",
    );

    fn tokens_of(mut tee: Tee, pieces: &[&str]) -> Tokens {
        for piece in pieces {
            tee.feed(&Bytes::copy_from_slice(piece.as_bytes()));
        }
        tee.tokens()
    }

    #[test]
    fn timings_stand_in_for_usage_and_count_the_cache() {
        let until = STREAM.find("data: {\"choices\":[],").unwrap();
        let tokens = tokens_of(Tee::events(), &[&STREAM[..until]]);
        assert_eq!(tokens, Tokens { prompt: Some(15), completion: Some(7) });
    }

    #[test]
    fn what_is_not_said_stays_unknown() {
        assert_eq!(tokens_of(Tee::events(), &["data: {\"choices\":[]}\n\n", "data: [DONE]\n\n"]), Tokens::default());
        assert_eq!(tokens_of(Tee::events(), &["data: {\"usage\":null}\n\n"]), Tokens::default());
        assert_eq!(tokens_of(Tee::document(), &["{\"choices\":[]}"]), Tokens::default());
        assert_eq!(tokens_of(Tee::document(), &["not JSON"]), Tokens::default());
        let embeddings = tokens_of(Tee::document(), &["{\"usage\":{\"prompt_tokens\":3},\"data\":[{\"usage\":1}]}"]);
        assert_eq!(embeddings, Tokens { prompt: Some(3), completion: None });
    }

    #[test]
    fn an_error_inside_a_stream_is_noticed() {
        let mut tee = Tee::events();
        tee.feed(&Bytes::from_static(b"data: {\"error\":{\"code\":500,\"message\":\"out of memory\"}}\n\n"));
        assert_eq!(tee.error(), Some("out of memory"));
        assert!(!tee.is_complete());
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut tee = Tee::events();
        let piece = Bytes::from(vec![b'x'; 10_000]);
        for _ in 0..100 {
            tee.feed(&piece);
        }
        let Tee::Events(events) = &tee else { panic!("made as events") };
        assert!(events.partial.capacity() <= 2 * MAX_LINE);
        tee.feed(&Bytes::from_static(b"\ndata: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}}\n"));
        assert_eq!(tee.tokens(), Tokens { prompt: Some(1), completion: Some(2) });
    }

    #[test]
    fn an_answer_over_the_bound_is_let_go() {
        let mut tee = Tee::document();
        let piece = Bytes::from(vec![b' '; 1 << 20]);
        (0..5).for_each(|_| tee.feed(&piece));
        assert!(matches!(tee, Tee::Document(None)));
        assert_eq!(tee.tokens(), Tokens::default());
    }

    proptest! {
        #[test]
        fn chunk_borders_do_not_matter(cuts in prop::collection::vec(0..STREAM.len(), 0..8), document in any::<bool>()) {
            let (text, mut tee) = if document {
                ("{\"a\":1,\"usage\":{\"prompt_tokens\":16,\"completion_tokens\":8}}", Tee::document())
            } else {
                (STREAM, Tee::events())
            };
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % text.len()).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                tee.feed(&Bytes::copy_from_slice(&text.as_bytes()[pair[0]..pair[1]]));
            }
            prop_assert_eq!(tee.is_complete(), !document);
            prop_assert_eq!(tee.tokens(), Tokens { prompt: Some(16), completion: Some(8) });
        }
    }
}
