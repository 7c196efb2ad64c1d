//! llama.cpp in this process: a model, its context, and batches through it. Everything here blocks.

use std::ffi::{CStr, c_char, c_void};
use std::num::NonZeroU32;
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};

use llama_cpp_2::context::LlamaContext;
use llama_cpp_2::context::params::LlamaContextParams;
use llama_cpp_2::llama_backend::LlamaBackend;
use llama_cpp_2::llama_batch::LlamaBatch;
use llama_cpp_2::model::LlamaModel;
use llama_cpp_2::model::params::LlamaModelParams;
use llama_cpp_2::token::LlamaToken;
use llama_cpp_2::token_type::LlamaTokenAttr;

use super::EmbedderOptions;
use super::wordpiece::{Token, WordPieces};

/// Texts of a batch.
pub(super) const MAX_TEXTS: usize = 64;
/// Bytes of llama.cpp's last error that are kept.
const MAX_REASON: usize = 300;

/// What this build of llama.cpp was compiled for and the CPU has not.
pub(super) fn missing_cpu_feature() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        // ggml's defaults, by the names of its build options.
        let there = [
            ("SSE42", is_x86_feature_detected!("sse4.2")),
            ("AVX", is_x86_feature_detected!("avx")),
            ("AVX2", is_x86_feature_detected!("avx2")),
            ("BMI2", is_x86_feature_detected!("bmi2")),
            ("FMA", is_x86_feature_detected!("fma")),
            ("F16C", is_x86_feature_detected!("f16c")),
        ];
        there.into_iter().find(|(_, there)| !there).map(|(name, _)| name)
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}

/// The last error that llama.cpp logged: its functions return none.
static LAST_ERROR: Mutex<String> = Mutex::new(String::new());

/// Takes llama.cpp's log lines, which would go to stderr.
#[expect(unsafe_code, reason = "llama.cpp hands its log lines to a C function")]
mod log {
    use super::*;

    pub(super) fn install() {
        // SAFETY: the function is of the type that is asked for, lives as long as the process, and uses no data.
        unsafe { llama_cpp_sys_2::llama_log_set(Some(line), std::ptr::null_mut()) };
    }

    unsafe extern "C" fn line(level: llama_cpp_sys_2::ggml_log_level, text: *const c_char, _: *mut c_void) {
        if text.is_null() {
            return;
        }
        // SAFETY: llama.cpp passes a C string that lives as long as this call.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        let text = text.trim();
        // Lines that it loads with dots for progress.
        if text.is_empty() || text == "." {
            return;
        }
        if level == llama_cpp_sys_2::GGML_LOG_LEVEL_ERROR {
            let mut last = LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner);
            *last = text.chars().take(MAX_REASON).collect();
        }
        tracing::debug!(target: "llama.cpp", "{text}");
    }
}

/// llama.cpp's global state, made once and kept.
fn backend() -> Result<&'static LlamaBackend, String> {
    static BACKEND: OnceLock<Result<LlamaBackend, String>> = OnceLock::new();
    let backend = BACKEND.get_or_init(|| {
        log::install();
        LlamaBackend::init().map_err(|error| error.to_string())
    });
    backend.as_ref().map_err(Clone::clone)
}

fn reason(error: &dyn std::fmt::Display) -> String {
    let last = std::mem::take(&mut *LAST_ERROR.lock().unwrap_or_else(PoisonError::into_inner));
    if last.is_empty() { error.to_string() } else { last }
}

/// A loaded model that turns tokens into vectors.
pub(super) struct Engine<'a> {
    context: LlamaContext<'a>,
    batch: LlamaBatch<'static>,
    model: &'a LlamaModel,
    pieces: Option<WordPieces>,
    max_tokens: usize,
    dimensions: usize,
}

/// Calls `then` with the model at `path`, which lives as long as that call, or with why it could not be loaded.
pub(super) fn with(path: &Path, options: EmbedderOptions, then: impl FnOnce(Result<Engine<'_>, String>)) {
    let backend = match backend() {
        Ok(backend) => backend,
        Err(error) => return then(Err(error)),
    };
    let model = match LlamaModel::load_from_file(backend, path, &LlamaModelParams::default()) {
        Ok(model) => model,
        Err(error) => return then(Err(reason(&error))),
    };
    then(Engine::new(backend, &model, options));
}

impl<'a> Engine<'a> {
    fn new(backend: &LlamaBackend, model: &'a LlamaModel, options: EmbedderOptions) -> Result<Self, String> {
        let max_tokens = options.max_tokens.unwrap_or(512);
        // Every batch has to hold the longest text.
        let size = options.batch_tokens.max(options.background_tokens).max(max_tokens);
        let threads = i32::try_from(options.threads.clamp(1, 512)).unwrap_or(1);
        let params = LlamaContextParams::default()
            .with_n_ctx(NonZeroU32::new(size))
            .with_n_batch(size)
            .with_n_ubatch(size)
            .with_n_seq_max(MAX_TEXTS as u32)
            .with_kv_unified(true)
            .with_n_threads(threads)
            .with_n_threads_batch(threads)
            .with_embeddings(true)
            .with_no_perf(true);
        let context = model.new_context(backend, params).map_err(|error| reason(&error))?;
        let dimensions = usize::try_from(model.n_embd_out()).map_err(|error| error.to_string())?;
        let pieces = word_pieces(model);
        let batch = LlamaBatch::new(size as usize, 1);
        Ok(Self { context, batch, model, pieces, max_tokens: max_tokens as usize, dimensions })
    }

    pub(super) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The tokens of a text, at most as many as the model reads.
    pub(super) fn tokens(&self, text: &str) -> Vec<Token> {
        if let Some(pieces) = &self.pieces {
            return pieces.tokens(text, self.max_tokens);
        }
        let vocabulary = self.model.vocab();
        let mut tokens: Vec<Token> =
            vocabulary.tokenize(text.as_bytes(), true, false).into_iter().map(|token| token.0).collect();
        if tokens.len() > self.max_tokens {
            let last = tokens.last().copied();
            tokens.truncate(self.max_tokens);
            // The token that closes every text closes a cut one as well.
            if (vocabulary.should_add_sep() || vocabulary.should_add_eos())
                && let Some((end, last)) = tokens.last_mut().zip(last)
            {
                *end = last;
            }
        }
        tokens
    }

    /// The vectors of texts, whose tokens together are no more than a batch.
    pub(super) fn embed(&mut self, texts: &[&[Token]]) -> Result<Vec<Vec<f32>>, String> {
        self.batch.clear();
        for (sequence, tokens) in (0..).zip(texts) {
            for (position, token) in (0..).zip(*tokens) {
                let added = self.batch.add(LlamaToken(*token), position, &[sequence], true);
                added.map_err(|error| error.to_string())?;
            }
        }
        // Nothing for encoders; models that look back would see the texts of the last batch.
        self.context.clear_kv_cache();
        self.context.decode(&mut self.batch).map_err(|error| reason(&error))?;
        let vector = |sequence| self.context.embeddings_seq_ith(sequence).map(<[f32]>::to_vec);
        (0..).zip(texts).map(|(sequence, _)| vector(sequence).map_err(|error| error.to_string())).collect()
    }
}

/// The vocabulary of a model of word pieces.
fn word_pieces(model: &LlamaModel) -> Option<WordPieces> {
    // Not by `vocab_type`, which panics on the number of this very type.
    if !model.meta_val_str("tokenizer.ggml.model").is_ok_and(|kind| kind == "bert") {
        return None;
    }
    let vocabulary = model.vocab();
    let is = |token, attribute: LlamaTokenAttr| vocabulary.attr(token).contains(attribute);
    let unknown = vocabulary.tokens().find(|token| is(*token, LlamaTokenAttr::Unknown))?;
    let pieces = vocabulary.tokens().filter(|token| is(*token, LlamaTokenAttr::Normal));
    let pieces = pieces.filter_map(|token| Some((token.0, vocabulary.text(token)?.to_str().ok()?)));
    // llama.cpp's own default; a model that keeps capitals says so.
    let lowercase = !model.meta_val_str("tokenizer.ggml.normalizer.lowercase").is_ok_and(|value| value == "false");
    Some(WordPieces::new(pieces, [vocabulary.bos().0, vocabulary.sep().0, unknown.0], lowercase))
}
