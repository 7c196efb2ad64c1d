//! Time of a search among 500, 5,000 and 50,000 tools, embedding of the query included, against the plainest way to do
//! it in the same run: words and cosines of everything compared in loops, nothing indexed and nothing kept.
//!
//! Tools are made of words that real ones are made of; only their number and their size matter here. Queries are embedded
//! by the model that `LARES_TEST_EMBED_MODEL` names; vectors of tools are made up, as nobody asks what they mean.

#![expect(clippy::cast_precision_loss, reason = "what is counted here is small")]

use std::collections::HashMap;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lares_llama::embed::{Embedder, EmbedderOptions};
use lares_tools::search::{Document, Filter, Index, Parameter, Query, QueryVectors, dense, text};

const WIDTH: usize = 384;
const QUERIES: usize = 200;
const VERBS: &str = "get list create update delete search read write send fetch convert analyze compare export import \
                     validate schedule cancel merge render";
const THINGS: &str = "file directory repository branch commit issue message channel calendar event invoice customer order \
                      payment ticket page image video table query record index cluster container volume secret weather \
                      flight hotel route stock price article comment user role policy metric alert dashboard";
const REST: &str = "with the given identifier from workspace and returns a structured result optional limit of entries \
                    sorted by date for current project including metadata such as owner size status labels in pages";

/// The same numbers each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 40
    }

    fn pick<'a>(&mut self, words: &'a str) -> &'a str {
        let count = words.split_whitespace().count() as u64;
        let at = usize::try_from(self.roll() % count).unwrap_or(0);
        words.split_whitespace().nth(at).unwrap_or_default()
    }

    fn text(&mut self, words: usize) -> String {
        let mut text = format!("{} the {}", self.pick(VERBS), self.pick(THINGS));
        for _ in 0..words {
            let from = if self.roll().is_multiple_of(3) { THINGS } else { REST };
            text.push(' ');
            text.push_str(self.pick(from));
        }
        text
    }

    fn vector(&mut self) -> Vec<f32> {
        dense::mean(&[(0..WIDTH).map(|_| self.roll() as f32 / 8_388_608.0 - 1.0).collect()]).unwrap_or_default()
    }

    fn tool(&mut self, number: usize) -> Document<String> {
        let server = format!("server{}", number / 20);
        let name = format!("{}_{}_{number}", self.pick(VERBS), self.pick(THINGS));
        let parameters = (0..4)
            .map(|_| Parameter { name: format!("{}_id", self.pick(THINGS)), description: self.text(4) })
            .collect();
        Document {
            id: format!("{server}__{name}"),
            server,
            name,
            title: String::new(),
            description: self.text(25),
            parameters,
            tags: Vec::new(),
            state: "approved".to_owned(),
        }
    }
}

fn print(what: &str, tools: usize, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| {
        let place = (times.len() * percent).div_ceil(100).saturating_sub(1);
        times.get(place).copied().unwrap_or_default().as_secs_f64() * 1e3
    };
    println!("{tools:>6} tools  {what:36} p50 {:>8.3} ms   p99 {:>8.3} ms", at(50), at(99));
}

/// The tools' words and vectors, in lists.
#[derive(Default)]
struct Plain {
    words: Vec<HashMap<String, f32>>,
    vectors: Vec<Vec<f32>>,
}

impl Plain {
    fn put(&mut self, document: &Document<String>, vector: &[f32]) {
        let mut words: HashMap<String, f32> = HashMap::new();
        let text = format!("{}: {}", document.name, document.description);
        text::words(&text).into_iter().for_each(|word| *words.entry(word.stem).or_default() += 1.0);
        self.words.push(words);
        self.vectors.push(vector.to_vec());
    }

    fn best(&self, text: &str, vector: &[f32]) -> Vec<usize> {
        let words: Vec<String> = text::words(text).into_iter().map(|word| word.stem).collect();
        let count = self.words.len() as f32;
        let rare = |word: &String| {
            let of = self.words.iter().filter(|tool| tool.contains_key(word)).count() as f32;
            (1.0 + (count - of + 0.5) / (of + 0.5)).ln()
        };
        let idf: Vec<f32> = words.iter().map(rare).collect();
        let mut scores: Vec<(f32, usize)> = (self.words.iter().zip(&self.vectors).enumerate())
            .map(|(at, (tool, of))| {
                let bm25: f32 = words.iter().zip(&idf).filter_map(|(word, idf)| Some(idf * tool.get(word)?)).sum();
                let cosine: f32 = vector.iter().zip(of).map(|(a, b)| a * b).sum();
                (cosine + 0.02 * bm25, at)
            })
            .collect();
        scores.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores.into_iter().take(10).map(|(_, at)| at).collect()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(model) = std::env::var_os("LARES_TEST_EMBED_MODEL").filter(|model| Path::new(model).is_file()) else {
        println!("SKIP bench-tools-search: LARES_TEST_EMBED_MODEL names no file; `make bench` sets it");
        return Ok(());
    };
    let embedder = Embedder::open(Path::new(&model), EmbedderOptions::default())?;
    let mut dice = Dice(0x5eed_1a2e_5000_0001);
    let queries: Vec<String> = (0..QUERIES).map(|_| dice.text(6)).collect();
    // Warm.
    embedder.embed(queries.iter().take(20).cloned().collect()).await?;
    for count in [500, 5_000, 50_000] {
        let (index, mut plain) = (Index::<String>::new(), Plain::default());
        let mut put = Duration::ZERO;
        for number in 0..count {
            let (document, vector) = (dice.tool(number), dice.vector());
            plain.put(&document, &vector);
            let begun = Instant::now();
            index.put(document, Some(&vector));
            put += begun.elapsed();
        }
        let (all, kept) = (Filter::default(), QueryVectors::new(1000));
        let ask = |text: &str, vectors: &[Vec<f32>]| {
            black_box(index.search(&Query { text, vectors, limit: 10, filter: &all, fits: None }));
        };
        let (mut whole, mut embedding, mut again) = (Vec::new(), Vec::new(), Vec::new());
        let (mut words, mut loops) = (Vec::new(), Vec::new());
        for (at, query) in queries.iter().enumerate() {
            let begun = Instant::now();
            let vectors: Arc<[Vec<f32>]> = embedder.embed(text::query_texts(query)).await?.into();
            embedding.push(begun.elapsed());
            kept.put(query, Arc::clone(&vectors));
            ask(query, &vectors);
            whole.push(begun.elapsed());
            let begun = Instant::now();
            if let Some(vectors) = kept.get(query) {
                ask(query, &vectors);
            }
            again.push(begun.elapsed());
            let begun = Instant::now();
            ask(query, &[]);
            words.push(begun.elapsed());
            if at % 10 == 0 {
                let begun = Instant::now();
                for vector in &embedder.embed(vec![query.clone()]).await? {
                    black_box(plain.best(query, vector));
                }
                loops.push(begun.elapsed());
            }
        }
        print("search, embedding included", count, &mut whole);
        print("  of it the embedding", count, &mut embedding);
        print("the same query again", count, &mut again);
        print("by words alone", count, &mut words);
        print("baseline: loops, embedding included", count, &mut loops);
        let each = put.as_secs_f64() * 1e6 / count as f64;
        println!("{count:>6} tools  {} bytes a tool, {each:.0} µs to put one\n", index.bytes() / count);
    }
    Ok(())
}
