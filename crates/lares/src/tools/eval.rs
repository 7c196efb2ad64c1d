//! `lares tools eval`: how well the tools are found, measured on questions with known answers.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use lares_llama::catalog;
use lares_llama::embed::{Embedder, EmbedderOptions};
use lares_tools::definition::Definition;
use lares_tools::search::quality::{Quality, Sum};
use lares_tools::search::{Document, Filter, Index, Query, dense, text};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cli::Global;
use crate::configuration;
use crate::output::{self, Output};

/// Longest line of a file, in bytes.
const LINE: usize = 4 << 20;
/// Most lines of a file.
const LINES: usize = 1_000_000;
/// Hits of a search that are looked at.
const LIMIT: usize = 10;
/// Texts embedded at a time.
const BATCH: usize = 32;
/// What the baseline adds up, each stretched to 0 to 1: cosine and BM25.
const BASELINE: (f32, f32) = (0.7, 0.3);

#[derive(Debug, Args)]
pub struct EvalArgs {
    /// Tools, one JSON object a line: id, name, and if there are any server, description, input_schema
    #[arg(long, value_name = "FILE")]
    pub tools: PathBuf,
    /// Questions, one JSON object a line: query, and relevant, the ids of the tools that answer it
    #[arg(long, value_name = "FILE")]
    pub queries: PathBuf,
    /// Embedding model: a name that `lares model list` shows, or a GGUF file [default: tools.search.model]
    #[arg(long, value_name = "NAME|FILE")]
    pub model: Option<String>,
    /// What to measure
    #[arg(long, value_enum, default_value_t = Mode::All)]
    pub mode: Mode,
    /// Also measure what everybody would write: 0.7 of the cosine and 0.3 of BM25, over `name: description`
    #[arg(long)]
    pub baseline: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Words alone
    Bm25,
    /// Meaning alone
    Dense,
    /// Both, which is what searches do
    Hybrid,
    /// Each of them
    All,
}

impl Mode {
    fn has(self, other: Self) -> bool {
        self == Self::All || self == other
    }
}

/// What one way of searching gives.
#[derive(Debug, Serialize)]
struct Measured {
    #[serde(flatten)]
    quality: Quality,
    queries: usize,
    tools: usize,
    /// Of one query, embedding included.
    p50_ms: f64,
    p99_ms: f64,
}

#[derive(Debug, Serialize)]
struct Report {
    tools: usize,
    queries: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    #[serde(flatten)]
    modes: BTreeMap<&'static str, Measured>,
}

struct Question {
    text: String,
    relevant: BTreeSet<String>,
}

/// Carries out `lares tools eval`.
pub async fn run(global: &Global, args: &EvalArgs) -> Result<u8> {
    let documents = read_tools(&args.tools)?;
    let questions = read_questions(&args.queries)?;
    let known: BTreeSet<&str> = documents.iter().map(|document| document.id.as_str()).collect();
    let strange = questions.iter().flat_map(|question| &question.relevant).filter(|id| !known.contains(id.as_str()));
    if let (count @ 1.., Some(one)) = (strange.clone().count(), strange.clone().next()) {
        output::note(&format!("{count} relevant ids, such as `{one}`, are of no tool in {}", args.tools.display()));
    }
    let mut report = Report { tools: documents.len(), queries: questions.len(), model: None, modes: BTreeMap::new() };
    let index = Index::<String>::new();
    let embedder = if args.mode == Mode::Bm25 && !args.baseline { None } else { Some(open(global, args).await?) };
    let mut vectors = Vec::new();
    if let Some(embedder) = &embedder {
        report.model = Some(embedder.model_id().to_owned());
        if args.mode != Mode::Bm25 {
            vectors = tool_vectors(embedder, &documents).await?;
        }
    }
    for (at, document) in documents.iter().enumerate() {
        index.put(document.clone(), vectors.get(at).map(Vec::as_slice));
    }
    let ask = |vectors: &[Vec<f32>], question: &Question| {
        let query =
            Query { text: question.text.as_str(), vectors, limit: LIMIT, filter: &Filter::default(), fits: None };
        index.search(&query).hits.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>()
    };
    if args.mode.has(Mode::Bm25) {
        let mut run = Run::new("bm25", &documents, &questions);
        for question in &questions {
            let begun = Instant::now();
            run.add(question, &ask(&[], question), begun.elapsed());
        }
        report.modes.insert("bm25", run.end());
    }
    if let Some(embedder) = &embedder {
        if args.mode.has(Mode::Dense) {
            let mut run = Run::new("dense", &documents, &questions);
            for question in &questions {
                let begun = Instant::now();
                let vector = embed_one(embedder, &question.text).await?;
                let cosines = vectors.iter().map(|of| cosine(&vector, of)).collect::<Vec<_>>();
                run.add(question, &best(&documents, &cosines), begun.elapsed());
            }
            report.modes.insert("dense", run.end());
        }
        if args.mode.has(Mode::Hybrid) {
            let mut run = Run::new("hybrid", &documents, &questions);
            for question in &questions {
                let begun = Instant::now();
                let vectors = embedder.embed(text::query_texts(&question.text)).await?;
                run.add(question, &ask(&vectors, question), begun.elapsed());
            }
            report.modes.insert("hybrid", run.end());
        }
        if args.baseline {
            report.modes.insert("baseline", baseline(embedder, &documents, &questions).await?);
        }
    }
    // Programs read this; a person wants the same numbers.
    Output { json: true }.value(&report, |_| String::new())?;
    Ok(0)
}

/// The embedding model that is asked for, loaded.
async fn open(global: &Global, args: &EvalArgs) -> Result<Embedder> {
    let config = configuration::load(global)?.config;
    let model = args.model.clone().unwrap_or_else(|| config.tools.search.model.clone());
    let path = if Path::new(&model).is_file() {
        PathBuf::from(&model)
    } else {
        let entry = catalog::find(&model).with_context(|| format!("`{model}` is neither a file nor a known model"))?;
        let path = catalog::Artifact::from(entry).path(&config.models_dir());
        if !path.is_file() {
            bail!("{} is not there; fetch it with `lares model pull {model}`", path.display());
        }
        path
    };
    tokio::task::spawn_blocking(move || Embedder::open(&path, EmbedderOptions::default()))
        .await?
        .context("the embedding model cannot be opened")
}

async fn embed_one(embedder: &Embedder, text: &str) -> Result<Vec<f32>> {
    let text = text::cut(text.trim(), text::QUERY).to_owned();
    embedder.embed(vec![text]).await?.pop().context("the embedding model gives no vector")
}

/// Texts → vectors, each different text once.
async fn embed_all(embedder: &Embedder, texts: Vec<String>) -> Result<HashMap<String, Vec<f32>>> {
    let mut texts: Vec<String> = texts.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
    // Texts of one length are embedded together.
    texts.sort_by_key(String::len);
    let bar = bar("embedding tools", texts.len());
    let mut vectors = HashMap::new();
    for batch in texts.chunks(BATCH) {
        let embedded = embedder.embed_in_background(batch.to_vec()).await?;
        vectors.extend(batch.iter().cloned().zip(embedded));
        bar.inc(batch.len() as u64);
    }
    bar.finish_and_clear();
    Ok(vectors)
}

/// The vector of each tool, as the daemon makes it.
async fn tool_vectors(embedder: &Embedder, documents: &[Document<String>]) -> Result<Vec<Vec<f32>>> {
    let texts: Vec<Vec<String>> = documents.iter().map(Document::texts_to_embed).collect();
    let vectors = embed_all(embedder, texts.concat()).await?;
    texts
        .iter()
        .map(|texts| {
            let of: Vec<Vec<f32>> = texts.iter().filter_map(|text| vectors.get(text).cloned()).collect();
            dense::mean(&of).context("the embedding model gives vectors that cannot be added")
        })
        .collect()
}

/// 0.7 of the cosine and 0.3 of BM25, each stretched to 0 to 1 over all tools; one text a tool, `name: description`.
async fn baseline(embedder: &Embedder, documents: &[Document<String>], questions: &[Question]) -> Result<Measured> {
    let texts: Vec<String> =
        documents.iter().map(|document| format!("{}: {}", document.name, document.description)).collect();
    let vectors = embed_all(embedder, texts.clone()).await?;
    let vectors: Vec<&Vec<f32>> = texts.iter().filter_map(|text| vectors.get(text)).collect();
    let words = Plain::new(&texts);
    let mut run = Run::new("baseline", documents, questions);
    for question in questions {
        let begun = Instant::now();
        let vector = embed_one(embedder, &question.text).await?;
        let cosines = stretched(vectors.iter().map(|of| cosine(&vector, of)).collect());
        let bm25 = stretched(words.scores(&question.text));
        let scores: Vec<f32> =
            cosines.iter().zip(&bm25).map(|(cosine, bm25)| BASELINE.0 * cosine + BASELINE.1 * bm25).collect();
        run.add(question, &best(documents, &scores), begun.elapsed());
    }
    Ok(run.end())
}

/// BM25 as the textbook has it: k1 = 1.2, b = 0.75, no fields.
struct Plain {
    postings: HashMap<String, Vec<(usize, f32)>>,
    shares: Vec<f32>,
}

#[expect(clippy::cast_precision_loss, reason = "counts of words and tools are far below 2^24")]
impl Plain {
    fn new(texts: &[String]) -> Self {
        let mut postings: HashMap<String, Vec<(usize, f32)>> = HashMap::new();
        let mut lengths = Vec::with_capacity(texts.len());
        for (at, text) in texts.iter().enumerate() {
            let words = text::words(text);
            lengths.push(words.len() as f32);
            let mut counts: HashMap<String, f32> = HashMap::new();
            words.into_iter().for_each(|word| *counts.entry(word.stem).or_default() += 1.0);
            counts.into_iter().for_each(|(word, count)| postings.entry(word).or_default().push((at, count)));
        }
        let average = (lengths.iter().sum::<f32>() / lengths.len().max(1) as f32).max(1.0);
        Self { postings, shares: lengths.into_iter().map(|length| length / average).collect() }
    }

    fn scores(&self, query: &str) -> Vec<f32> {
        let mut scores = vec![0.0; self.shares.len()];
        let words: BTreeSet<String> = text::words(query).into_iter().map(|word| word.stem).collect();
        for postings in words.iter().filter_map(|word| self.postings.get(word)) {
            let tools = postings.len() as f32;
            let idf = (1.0 + (self.shares.len() as f32 - tools + 0.5) / (tools + 0.5)).ln();
            for (at, count) in postings {
                if let (Some(score), Some(share)) = (scores.get_mut(*at), self.shares.get(*at)) {
                    *score += idf * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * share));
                }
            }
        }
        scores
    }
}

fn stretched(mut scores: Vec<f32>) -> Vec<f32> {
    let low = scores.iter().copied().fold(f32::INFINITY, f32::min);
    let high = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = (high - low).max(1e-9);
    scores.iter_mut().for_each(|score| *score = (*score - low) / range);
    scores
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The ids with the best scores.
fn best(documents: &[Document<String>], scores: &[f32]) -> Vec<String> {
    let mut ranked: Vec<(f32, &str)> =
        scores.iter().zip(documents).map(|(score, document)| (*score, document.id.as_str())).collect();
    let order = |a: &(f32, &str), b: &(f32, &str)| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(b.1));
    if ranked.len() > LIMIT {
        ranked.select_nth_unstable_by(LIMIT - 1, order);
        ranked.truncate(LIMIT);
    }
    ranked.sort_unstable_by(order);
    ranked.into_iter().map(|(_, id)| id.to_owned()).collect()
}

/// One way of searching, while it is measured.
struct Run {
    sum: Sum,
    times: Vec<Duration>,
    tools: usize,
    bar: ProgressBar,
}

impl Run {
    fn new(what: &'static str, documents: &[Document<String>], questions: &[Question]) -> Self {
        Self { sum: Sum::default(), times: Vec::new(), tools: documents.len(), bar: bar(what, questions.len()) }
    }

    fn add(&mut self, question: &Question, found: &[String], took: Duration) {
        self.sum.add(found, &question.relevant);
        self.times.push(took);
        self.bar.inc(1);
    }

    fn end(mut self) -> Measured {
        self.bar.finish_and_clear();
        self.times.sort_unstable();
        let at = |percent: usize| {
            let place = (self.times.len() * percent).div_ceil(100).saturating_sub(1);
            let time = self.times.get(place).copied().unwrap_or_default();
            (time.as_secs_f64() * 1e6).round() / 1e3
        };
        let (p50_ms, p99_ms) = (at(50), at(99));
        Measured { quality: self.sum.average(), queries: self.times.len(), tools: self.tools, p50_ms, p99_ms }
    }
}

fn bar(what: &'static str, count: usize) -> ProgressBar {
    let bar = ProgressBar::new(count as u64).with_message(what);
    let style = ProgressStyle::with_template("{msg:16} {bar:40} {pos}/{len} {eta}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    bar
}

/// Where something is wrong.
struct Place<'a> {
    path: &'a Path,
    line: usize,
}

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, line {}", self.path.display(), self.line)
    }
}

/// A file of JSON objects, one a line. Empty lines are passed over.
fn objects(path: &Path, mut each: impl FnMut(Map<String, Value>, &Place<'_>) -> Result<()>) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    for number in 1.. {
        let place = Place { path, line: number };
        if number > LINES {
            bail!("{place}: there are more than {LINES} lines");
        }
        line.clear();
        let mut bounded = std::io::Read::take(&mut reader, LINE as u64 + 1);
        if bounded.read_until(b'\n', &mut line).with_context(|| format!("{place}: cannot be read"))? == 0 {
            return Ok(());
        }
        if line.len() > LINE {
            bail!("{place}: it is longer than {LINE} bytes");
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let value: Value = serde_json::from_slice(&line).with_context(|| format!("{place}: this is not JSON"))?;
        let Value::Object(object) = value else { bail!("{place}: this is not a JSON object") };
        each(object, &place)?;
    }
    Ok(())
}

/// A text in an object; `None` where it is absent or null.
fn text_of(object: &Map<String, Value>, field: &str, place: &Place<'_>) -> Result<Option<String>> {
    match object.get(field) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(other) => bail!("{place}: field `{field}` must be a text, and is {}", kind(other)),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn read_tools(path: &Path) -> Result<Vec<Document<String>>> {
    let mut documents = Vec::new();
    let mut lines: HashMap<String, usize> = HashMap::new();
    objects(path, |object, place| {
        let Some(id) = text_of(&object, "id", place)? else { bail!("{place}: field `id` is missing") };
        if let Some(before) = lines.insert(id.clone(), place.line) {
            bail!("{place}: field `id`: `{id}` is in line {before} already");
        }
        let server = text_of(&object, "server", place)?.unwrap_or_default();
        let name = text_of(&object, "name", place)?.unwrap_or_else(|| id.clone());
        let input_schema = match object.get("input_schema").or_else(|| object.get("inputSchema")) {
            None | Some(Value::Null) => json!({}),
            Some(schema @ Value::Object(_)) => schema.clone(),
            Some(other) => bail!("{place}: field `input_schema` must be an object, and is {}", kind(other)),
        };
        let definition = Definition {
            name,
            title: text_of(&object, "title", place)?,
            description: text_of(&object, "description", place)?,
            input_schema,
            output_schema: None,
            annotations: None,
        };
        documents.push(Document::new(id, &server, &definition));
        Ok(())
    })?;
    if documents.is_empty() {
        bail!("{}: there are no tools in it", path.display());
    }
    Ok(documents)
}

fn read_questions(path: &Path) -> Result<Vec<Question>> {
    let mut questions = Vec::new();
    objects(path, |object, place| {
        let Some(text) = text_of(&object, "query", place)? else { bail!("{place}: field `query` is missing") };
        let relevant = match object.get("relevant") {
            Some(Value::Array(ids)) => ids,
            None => bail!("{place}: field `relevant` is missing"),
            Some(other) => bail!("{place}: field `relevant` must be a list of ids, and is {}", kind(other)),
        };
        let relevant: BTreeSet<String> = relevant
            .iter()
            .map(|id| match id {
                Value::String(id) => Ok(id.clone()),
                other => bail!("{place}: field `relevant` must hold texts, and holds {}", kind(other)),
            })
            .collect::<Result<_>>()?;
        if relevant.is_empty() {
            bail!("{place}: field `relevant` is empty; leave the line out");
        }
        questions.push(Question { text, relevant });
        Ok(())
    })?;
    if questions.is_empty() {
        bail!("{}: there are no queries in it", path.display());
    }
    Ok(questions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn what_may_be_missing_is_missed_by_nobody() {
        let tools = file(
            "{\"id\": \"a\", \"extra\": 1}\n\n{\"id\": \"b\", \"name\": \"n\", \"server\": null, \"input_schema\": {\"properties\": {\"p\": {}}}}\n",
        );
        let tools = read_tools(tools.path()).unwrap();
        assert_eq!((tools[0].name.as_str(), tools[1].name.as_str(), tools[1].parameters.len()), ("a", "n", 1));
        let queries = read_questions(file(r#"{"query": "q", "relevant": ["a", "a"], "level": 2}"#).path()).unwrap();
        assert_eq!(queries[0].relevant.len(), 1);
    }

    #[test]
    fn an_error_tells_the_file_the_line_and_the_field() {
        let cases = [
            ("{\"id\": \"a\"}\n{\"name\": \"b\"}", "line 2: field `id` is missing"),
            ("{\"id\": \"a\", \"description\": 3}", "line 1: field `description` must be a text, and is a number"),
            ("{\"id\": \"a\"}\n{\"id\": \"a\"}", "line 2: field `id`: `a` is in line 1 already"),
            ("{\"id\": \"a\", \"input_schema\": []}", "line 1: field `input_schema` must be an object, and is a list"),
            ("[]", "line 1: this is not a JSON object"),
            ("{", "line 1: this is not JSON"),
            ("\n", "there are no tools in it"),
        ];
        for (text, expected) in cases {
            let file = file(text);
            let error = read_tools(file.path()).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains(file.path().to_str().unwrap()), "{error}");
        }
        let error = read_questions(file(r#"{"query": "q", "relevant": [1]}"#).path()).err().unwrap().to_string();
        assert!(error.contains("line 1: field `relevant` must hold texts, and holds a number"), "{error}");
    }

    #[test]
    fn the_baseline_prefers_rare_words() {
        let texts = ["get file", "get file mode", "get weather"].map(str::to_owned);
        let scores = Plain::new(&texts).scores("get the weather");
        assert!(scores[2] > scores[0] && scores[0] > scores[1], "{scores:?}");
        assert_eq!(stretched(vec![1.0, 3.0, 2.0]), [0.0, 1.0, 0.5]);
        assert_eq!(stretched(vec![2.0, 2.0]), [0.0, 0.0]);
    }
}
