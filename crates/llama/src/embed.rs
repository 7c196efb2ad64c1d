//! Embedding vectors in this process: texts in, vectors of length one out.
//!
//! An [`Embedder`] has a thread of its own that owns llama.cpp's context. Texts of several callers go through it in
//! batches, in two lanes: searches first, and a re-embedding only while nobody searches. A batch of the second lane is
//! small, so a search waits for one such batch at most.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

mod engine;
mod wordpiece;

use crate::gguf::{GgufError, Metadata, Pooling};
use crate::hex;
use engine::Engine;
use wordpiece::Token;

/// Longest wait for a model to be loaded; small ones take a second or two on a busy machine.
const LOAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Texts of one lane that may wait.
const LANE: usize = 256;
/// Texts that are handed over at once, so that one caller leaves room for others.
const CHUNK: usize = 32;
/// Bytes of a text that are looked at. No model reads more than some thousand tokens, of a few bytes each.
const MAX_TEXT: usize = 256 << 10;
/// Vectors shorter than this have no direction.
const SHORTEST: f64 = 1e-9;

/// Why there is no embedder, or no vector.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// The CPU is too old for the llama.cpp in this binary.
    #[error("this CPU has no {0}, which the llama.cpp in this binary needs; use an embedding server instead")]
    Cpu(&'static str),
    /// The file is not a model.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: Arc<GgufError>,
    },
    /// A model for something else.
    #[error(
        "{} is a model of architecture `{architecture}` without pooling, which gives no vectors for texts; take an \
         embedding model such as all-minilm-l6-v2", .path.display()
    )]
    NotAnEncoder {
        /// The file.
        path: PathBuf,
        /// Its architecture.
        architecture: String,
    },
    /// llama.cpp did not take it.
    #[error("{} cannot be loaded: {reason}", .path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// llama.cpp's last words.
        reason: String,
    },
    /// llama.cpp failed on a batch.
    #[error("llama.cpp failed to embed: {0}")]
    Engine(String),
    /// A vector of length zero, or with values that are no numbers.
    #[error("the model gave a vector without a direction; the file may be damaged")]
    NoDirection,
    /// Too much work was waiting for too long.
    #[error("{0} s were not enough for the texts that wait to be embedded; try again")]
    Busy(u64),
    /// The embedder's thread has ended.
    #[error("the embedder has stopped")]
    Stopped,
}

/// How an [`Embedder`] works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmbedderOptions {
    /// Threads that compute. They wait for each other by spinning, so more than one pays only where that many cores are
    /// free: beside other work on two cores, two threads took several times as long as one.
    pub threads: usize,
    /// Tokens of a text that are read, the first and last token of the model among them; the rest is left out. `None`:
    /// what the model was trained on.
    pub max_tokens: Option<u32>,
    /// Tokens of a batch of searches.
    pub batch_tokens: u32,
    /// Tokens of a batch of the background; a search waits for one at most. A longer text is a batch by itself.
    pub background_tokens: u32,
    /// Longest wait for [`Embedder::embed`], and for each 32 texts of [`Embedder::embed_in_background`].
    pub timeout: Duration,
}

impl Default for EmbedderOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            max_tokens: None,
            batch_tokens: 512,
            background_tokens: 128,
            timeout: Duration::from_secs(30),
        }
    }
}

/// What computes vectors. Clones share one model and one thread, which ends with the last of them.
#[derive(Debug, Clone)]
pub struct Embedder(Arc<Handle>);

#[derive(Debug)]
struct Handle {
    shared: Arc<Shared>,
    dimensions: usize,
    max_tokens: u32,
    model_id: String,
    timeout: Duration,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Embedder {
    /// Loads the model at `path`. Blocks for as long as that takes, and hashes a file whose name
    /// does not say its hash.
    pub fn open(path: &Path, options: EmbedderOptions) -> Result<Self, EmbedError> {
        if let Some(missing) = engine::missing_cpu_feature() {
            return Err(EmbedError::Cpu(missing));
        }
        let file = |source| EmbedError::File { path: path.to_owned(), source: Arc::new(source) };
        let metadata = Metadata::read(path).map_err(file)?;
        if !matches!(metadata.pooling, Some(Pooling::Mean | Pooling::Cls | Pooling::Last)) {
            let architecture = metadata.architecture;
            return Err(EmbedError::NotAnEncoder { path: path.to_owned(), architecture });
        }
        let own = metadata.max_sequence_tokens.unwrap_or(metadata.context_length).min(metadata.context_length);
        // Two for the first and the last token, and something between them.
        let max_tokens = options.max_tokens.unwrap_or(own).clamp(4.min(own), metadata.context_length);
        let mut model_id = format!("sha256:{}", sha256_of(path).map_err(|error| file(error.into()))?);
        if max_tokens != own {
            model_id.push_str(&format!("/{max_tokens}"));
        }
        let options = EmbedderOptions { max_tokens: Some(max_tokens), ..options };
        let shared = Arc::new(Shared::default());
        let (ready, loaded) = mpsc::sync_channel(1);
        let load = |reason: String| EmbedError::Load { path: path.to_owned(), reason };
        let (thread_shared, thread_path) = (shared.clone(), path.to_owned());
        let thread = std::thread::Builder::new().name("embedder".to_owned());
        let started = thread.spawn(move || {
            let _stop = StopAtEnd(&thread_shared);
            engine::with(&thread_path, options, |engine| match engine {
                Ok(mut engine) => {
                    // A caller that has given up waiting leaves no work either.
                    if ready.send(Ok(engine.dimensions())).is_ok() {
                        work(&thread_shared, &mut engine, options);
                    }
                }
                Err(reason) => {
                    let _ = ready.send(Err(reason));
                }
            });
        });
        started.map_err(|error| load(error.to_string()))?;
        // From here on the thread ends when this is dropped, by whichever way this function is left.
        let mut handle = Handle { shared, dimensions: 0, max_tokens, model_id, timeout: options.timeout };
        handle.dimensions = match loaded.recv_timeout(LOAD_TIMEOUT) {
            Ok(Ok(dimensions)) => dimensions,
            Ok(Err(reason)) => return Err(load(reason)),
            Err(mpsc::RecvTimeoutError::Timeout) => return Err(load(format!("it took over {LOAD_TIMEOUT:?}"))),
            Err(mpsc::RecvTimeoutError::Disconnected) => return Err(EmbedError::Stopped),
        };
        Ok(Self(Arc::new(handle)))
    }

    /// Numbers in a vector.
    pub fn dimensions(&self) -> usize {
        self.0.dimensions
    }

    /// Tokens of a text that are read.
    pub fn max_tokens(&self) -> u32 {
        self.0.max_tokens
    }

    /// What vectors can be compared with each other: those under the same id. It is the hash of the file, with what
    /// else changes its vectors.
    pub fn model_id(&self) -> &str {
        &self.0.model_id
    }

    /// The vectors of `texts`, in their order, each of length one. For searches: goes before everything in the
    /// background. Dropping the future drops the work that has not begun.
    pub async fn embed(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.all(Lane::Search, texts).await
    }

    /// As [`Embedder::embed`], for what nobody waits for: it is worked on while no search is.
    pub async fn embed_in_background(&self, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.all(Lane::Background, texts).await
    }

    async fn all(&self, lane: Lane, texts: Vec<String>) -> Result<Vec<Vec<f32>>, EmbedError> {
        let mut deadline = Instant::now() + self.0.timeout;
        let mut vectors = Vec::with_capacity(texts.len());
        let mut texts = texts.into_iter();
        loop {
            let chunk: Vec<String> = texts.by_ref().take(CHUNK).collect();
            if chunk.is_empty() {
                return Ok(vectors);
            }
            vectors.extend(self.run(lane, chunk, deadline).await?);
            // In the background it is each chunk that has the time: nobody knows how many there are.
            if lane == Lane::Background {
                deadline = Instant::now() + self.0.timeout;
            }
        }
    }

    /// Hands a chunk over and waits for its vectors.
    async fn run(&self, lane: Lane, chunk: Vec<String>, deadline: Instant) -> Result<Vec<Vec<f32>>, EmbedError> {
        let work = async {
            let count = chunk.len();
            let room = self.0.shared.lane(lane).room.clone();
            // At most CHUNK. The room is closed when the thread has ended.
            let permit = room.acquire_many_owned(count as u32).await.map_err(|_| EmbedError::Stopped)?;
            let permit = Arc::new(permit);
            let (units, replies): (Vec<Unit>, Vec<_>) = chunk
                .into_iter()
                .map(|text| {
                    let (reply, answer) = oneshot::channel();
                    (Unit { text, tokens: None, reply, _room: permit.clone() }, answer)
                })
                .unzip();
            drop(permit);
            self.0.shared.put(lane, units);
            let mut vectors = Vec::with_capacity(count);
            for reply in replies {
                vectors.push(reply.await.map_err(|_| EmbedError::Stopped)??);
            }
            Ok(vectors)
        };
        let timeout = self.0.timeout.as_secs();
        tokio::time::timeout_at(deadline, work).await.map_err(|_| EmbedError::Busy(timeout))?
    }
}

/// The hash of the file: from its name where a pull has put and verified it, else counted.
fn sha256_of(path: &Path) -> std::io::Result<String> {
    let whole = path.canonicalize()?;
    let stem = whole.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.strip_prefix("sha256-"));
    if let Some(hash) = stem.filter(|hash| hex::is_sha256(hash)) {
        return Ok(hash.to_ascii_lowercase());
    }
    let mut hasher = Sha256::new();
    std::io::copy(&mut std::fs::File::open(whole)?, &mut hasher)?;
    Ok(hex::encode(&hasher.finalize()))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Search,
    Background,
}

/// A text on its way.
#[derive(Debug)]
struct Unit {
    text: String,
    /// Once it is cut.
    tokens: Option<Vec<Token>>,
    reply: oneshot::Sender<Result<Vec<f32>, EmbedError>>,
    /// The chunk's place in the lane, free again when its last text is done.
    _room: Arc<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Queue {
    units: Mutex<VecDeque<Unit>>,
    room: Arc<Semaphore>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { units: Mutex::default(), room: Arc::new(Semaphore::new(LANE)) }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Unit>> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What callers and the thread share.
#[derive(Debug, Default)]
struct Shared {
    search: Queue,
    background: Queue,
    stopped: AtomicBool,
    /// Held while something changes that the thread waits for.
    bell: Mutex<()>,
    rung: Condvar,
}

impl Shared {
    fn lane(&self, lane: Lane) -> &Queue {
        match lane {
            Lane::Search => &self.search,
            Lane::Background => &self.background,
        }
    }

    fn put(&self, lane: Lane, units: Vec<Unit>) {
        self.lane(lane).lock().extend(units);
        self.ring();
        if self.stopped.load(Ordering::SeqCst) {
            // The thread may have looked for the last time before these came.
            self.lane(lane).lock().clear();
        }
    }

    fn ring(&self) {
        let _held = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        self.rung.notify_one();
    }

    /// Ends the thread, and every wait for it.
    fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        for queue in [&self.search, &self.background] {
            queue.room.close();
            queue.lock().clear();
        }
        self.ring();
    }

    /// The lane to work on next; `None` when there will be none. Waits.
    fn next(&self) -> Option<Lane> {
        let mut held = self.bell.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if self.stopped.load(Ordering::SeqCst) {
                return None;
            }
            if !self.search.lock().is_empty() {
                return Some(Lane::Search);
            }
            if !self.background.lock().is_empty() {
                return Some(Lane::Background);
            }
            held = self.rung.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends every wait when the thread ends, also by a panic.
struct StopAtEnd<'a>(&'a Shared);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// What the thread does until it is stopped.
fn work(shared: &Shared, engine: &mut Engine<'_>, options: EmbedderOptions) {
    while let Some(lane) = shared.next() {
        let most = match lane {
            Lane::Search => options.batch_tokens,
            Lane::Background => options.background_tokens,
        };
        let batch = gather(shared.lane(lane), engine, most as usize);
        let tokens: Vec<&[Token]> = batch.iter().map(|unit| unit.tokens.as_deref().unwrap_or_default()).collect();
        if tokens.is_empty() {
            continue;
        }
        match engine.embed(&tokens) {
            Ok(vectors) => {
                for (unit, vector) in batch.into_iter().zip(vectors) {
                    let _ = unit.reply.send(unit_length(vector));
                }
            }
            Err(error) => {
                tracing::warn!(%error, texts = batch.len(), "llama.cpp failed to embed");
                for unit in batch {
                    let _ = unit.reply.send(Err(EmbedError::Engine(error.clone())));
                }
            }
        }
    }
}

/// Takes texts from the front of `queue`, as many as fit into `most` tokens, and one at least.
fn gather(queue: &Queue, engine: &Engine<'_>, most: usize) -> Vec<Unit> {
    let mut batch = Vec::new();
    let mut total = 0;
    while batch.len() < engine::MAX_TEXTS {
        let Some(mut unit) = queue.lock().pop_front() else { break };
        // Nobody waits for it any more.
        if unit.reply.is_closed() {
            continue;
        }
        let tokens = match unit.tokens.take() {
            Some(tokens) => tokens,
            None => engine.tokens(head(&unit.text)),
        };
        if tokens.is_empty() {
            let _ = unit.reply.send(Err(EmbedError::NoDirection));
            continue;
        }
        let fits = batch.is_empty() || total + tokens.len() <= most;
        total += tokens.len();
        unit.tokens = Some(tokens);
        if !fits {
            queue.lock().push_front(unit);
            break;
        }
        batch.push(unit);
    }
    batch
}

/// The part of a text that is looked at.
fn head(text: &str) -> &str {
    let end = (0..=MAX_TEXT.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    &text[..end]
}

fn unit_length(mut vector: Vec<f32>) -> Result<Vec<f32>, EmbedError> {
    // In f64: squares of large values overflow f32.
    let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if !length.is_finite() || length < SHORTEST {
        return Err(EmbedError::NoDirection);
    }
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    Ok(vector)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn vectors_get_length_one_or_are_refused() {
        assert_eq!(unit_length(vec![3.0, 4.0]).unwrap(), [0.6, 0.8]);
        let large = unit_length(vec![3e30, 4e30]).unwrap();
        assert!((large[0] - 0.6).abs() < 1e-6 && (large[1] - 0.8).abs() < 1e-6, "{large:?}");
        for bad in [vec![0.0; 3], vec![], vec![f32::NAN, 1.0], vec![f32::INFINITY, 1.0]] {
            assert!(matches!(unit_length(bad), Err(EmbedError::NoDirection)));
        }
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        assert_eq!(head("é"), "é");
        let long = format!("a{}", "é".repeat(MAX_TEXT));
        assert_eq!(head(&long).len(), MAX_TEXT - 1);
    }

    #[test]
    fn the_name_of_a_pulled_file_says_its_hash() {
        let dir = tempfile::tempdir().unwrap();
        let hash = "0a".repeat(32);
        let pulled = dir.path().join(format!("sha256-{hash}.gguf"));
        std::fs::write(&pulled, "abc").unwrap();
        std::os::unix::fs::symlink(&pulled, dir.path().join("link.gguf")).unwrap();
        assert_eq!(sha256_of(&dir.path().join("link.gguf")).unwrap(), hash);
        let other = dir.path().join("other.gguf");
        std::fs::copy(&pulled, &other).unwrap();
        assert_eq!(sha256_of(&other).unwrap(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[tokio::test]
    async fn when_the_thread_is_gone_nobody_waits() {
        let shared = Arc::new(Shared::default());
        let timeout = Duration::from_secs(5);
        let handle = Handle { shared: shared.clone(), dimensions: 1, max_tokens: 4, model_id: String::new(), timeout };
        let embedder = Embedder(Arc::new(handle));
        let (before, ()) = tokio::join!(embedder.embed(vec!["a".to_owned()]), async {
            while shared.search.lock().is_empty() {
                tokio::task::yield_now().await;
            }
            drop(StopAtEnd(&shared));
        });
        assert!(matches!(before, Err(EmbedError::Stopped)), "{before:?}");
        let after = embedder.embed_in_background(vec!["a".to_owned()]).await;
        assert!(matches!(after, Err(EmbedError::Stopped)), "{after:?}");
        assert!(shared.next().is_none());
    }

    #[tokio::test]
    async fn a_full_lane_makes_wait_and_then_says_so() {
        let shared = Arc::new(Shared::default());
        let timeout = Duration::from_millis(30);
        let handle = Handle { shared: shared.clone(), dimensions: 1, max_tokens: 4, model_id: String::new(), timeout };
        let embedder = Embedder(Arc::new(handle));
        let one = || embedder.embed_in_background(vec!["a".to_owned(); CHUNK]);
        let all = futures_util::future::join_all((0..LANE / CHUNK + 1).map(|_| one())).await;
        assert!(all.iter().all(|result| matches!(result, Err(EmbedError::Busy(0)))), "{all:?}");
        assert_eq!(shared.background.lock().len(), LANE);
        assert_eq!(shared.next(), Some(Lane::Background));
        let search = tokio::spawn({
            let embedder = embedder.clone();
            async move { embedder.embed(vec!["b".to_owned()]).await }
        });
        while shared.search.lock().is_empty() && !search.is_finished() {
            tokio::task::yield_now().await;
        }
        assert!(search.is_finished() || shared.next() == Some(Lane::Search));
    }
}
