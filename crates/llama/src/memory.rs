//! How much memory a model will take, before it is started, and whether all of them fit.
//!
//! The formulas were fitted to the resident size of a real server (Qwen2.5-Coder 0.5B and Gemma 3 270M on CPU, contexts
//! of 2,048 to 32,768 tokens, 1 and 4 slots, micro batches of 32 to 512, f16 and quantised caches, with and without
//! flash attention); `tests/real_server.rs` measures again. They are upper bounds where llama.cpp can do with
//! less: sliding windows and encoder-only models (no or smaller cache), layers on a GPU.

use std::fmt;

use lares_config::{ByteSize, Model, Toggle};

use crate::gguf::{Metadata, ggml};
use crate::machine::Memory;
use crate::options::{CONTEXT_STEP, kv_name, micro_batch};

/// Resident size of a server before anything of the model: code, threads, HTTP, JSON.
const PROCESS_BYTES: u64 = 28 << 20;
/// Bytes of an entry of the vocabulary in the tokenizer's tables, with merges; tokenizers without take half.
const BYTES_PER_TOKEN: u64 = 280;
/// Activations of the feed-forward part that live at the same time, in its widths.
const FEED_FORWARD_WIDTHS: u64 = 3;
/// Activations of the residual stream that live at the same time, in its widths.
const EMBEDDING_WIDTHS: u64 = 5;
/// Types that llama.cpp repacks for the CPU when it loads them.
#[cfg(target_arch = "aarch64")]
const REPACKED: &[&str] = &["q4_0", "q4_K", "q5_K", "q6_K", "q8_0", "iq4_nl", "mxfp4"];
/// Types that llama.cpp repacks for the CPU when it loads them.
#[cfg(not(target_arch = "aarch64"))]
const REPACKED: &[&str] = &["q4_0", "q4_K", "q2_K", "iq4_nl", "mxfp4"];

/// Memory one model will take, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prediction {
    /// The weights.
    pub weights: u64,
    /// Weights that are kept twice: repacked for the CPU, and as they are in the file. The second copy is page cache,
    /// which the kernel drops under pressure.
    pub repacked: u64,
    /// Keys and values of all slots.
    pub kv: u64,
    /// Intermediate results, and the probabilities of each slot's next token.
    pub compute: u64,
    /// The program and the tokenizer.
    pub fixed: u64,
}

impl Prediction {
    /// Bytes without which the server cannot run well.
    pub fn needed(&self) -> u64 {
        self.weights + self.kv + self.compute + self.fixed
    }

    /// Bytes that show as resident while nothing else wants the memory.
    pub fn resident(&self) -> u64 {
        self.needed() + self.repacked
    }
}

/// What serving `model` will take.
pub fn predict(model: &Model, metadata: &Metadata) -> Prediction {
    let context = u64::from(model.context_size).next_multiple_of(CONTEXT_STEP);
    let slots = u64::from(model.slots);
    let vocabulary = metadata.vocabulary_size;
    Prediction {
        weights: metadata.tensor_bytes,
        repacked: repacked(metadata),
        kv: kv_bytes(model, metadata, context.saturating_mul(slots)),
        compute: compute_bytes(model, metadata, context).saturating_add(slots * vocabulary * 4 * 2),
        fixed: PROCESS_BYTES + vocabulary.saturating_mul(BYTES_PER_TOKEN),
    }
}

/// Only matrices inside layers are multiplied with, so only they are repacked; embeddings are looked up.
fn repacked(metadata: &Metadata) -> u64 {
    let tensors = metadata.tensors.iter();
    let chosen =
        tensors.filter(|t| t.name.starts_with("blk.") && t.dimensions.len() >= 2 && REPACKED.contains(&t.kind.name));
    chosen.map(|t| t.bytes).sum()
}

fn kv_bytes(model: &Model, metadata: &Metadata, tokens: u64) -> u64 {
    let Some(kind) = ggml::by_name(kv_name(model.kv_type)) else { return 0 };
    let row = |elements: u64| elements.div_ceil(kind.block) * kind.bytes;
    let heads = metadata.head_count_kv.iter().map(|heads| u64::from(*heads));
    let per_token: u64 =
        heads.map(|n| row(n * u64::from(metadata.key_length)) + row(n * u64::from(metadata.value_length))).sum();
    per_token.saturating_mul(tokens)
}

fn compute_bytes(model: &Model, metadata: &Metadata, context: u64) -> u64 {
    let batch = u64::from(micro_batch(model));
    let widths = FEED_FORWARD_WIDTHS * u64::from(metadata.feed_forward_length)
        + EMBEDDING_WIDTHS * u64::from(metadata.embedding_length);
    let activations = batch * widths * 4;
    let pairs = batch * context;
    let attention = match model.flash_attention {
        // The mask alone, in f16. `auto` means on wherever the CPU or the GPU can.
        Toggle::On | Toggle::Auto => pairs * 2,
        // A score for each pair of tokens and head, and the mask in f32.
        Toggle::Off => {
            let heads = metadata.head_count.iter().copied().max().unwrap_or(0);
            pairs * 4 * (u64::from(heads) + 1)
        }
    };
    activations.saturating_add(attention)
}

/// The models do not fit; the message has the numbers and what to lower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoesNotFit {
    /// Every model with what it would take.
    pub models: Vec<(String, Prediction)>,
    /// What they may take.
    pub limit: Memory,
}

impl std::error::Error for DoesNotFit {}

/// Refuses models that would take more than the budget or than there is. Where neither is known, nothing is refused.
pub fn check_fit(
    models: &[(String, Prediction)],
    budget: Option<ByteSize>,
    available: Option<Memory>,
) -> Result<(), DoesNotFit> {
    let budget = budget.map(|b| Memory { bytes: b.bytes(), source: "llama.memory_budget".to_owned() });
    let Some(limit) = budget.into_iter().chain(available).min_by_key(|memory| memory.bytes) else {
        return Ok(());
    };
    let needed = models.iter().map(|(_, p)| p.needed()).fold(0, u64::saturating_add);
    if needed <= limit.bytes { Ok(()) } else { Err(DoesNotFit { models: models.to_vec(), limit }) }
}

/// A size for people: two digits after the point are more than a prediction is worth.
fn human(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 { format!("{mib:.0} MiB") } else { format!("{:.1} GiB", mib / 1024.0) }
}

impl fmt::Display for DoesNotFit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needed = self.models.iter().map(|(_, p)| p.needed()).fold(0, u64::saturating_add);
        let Memory { bytes, source } = &self.limit;
        writeln!(f, "the models need {}, but there are {} ({source}):", human(needed), human(*bytes))?;
        let width = self.models.iter().map(|(name, _)| name.len()).max().unwrap_or(0).max("model".len());
        let mut line = |cells: [&str; 6]| {
            let [model, rest @ ..] = cells;
            write!(f, "  {model:width$}")?;
            rest.iter().try_for_each(|cell| write!(f, "  {cell:>9}"))?;
            writeln!(f)
        };
        line(["model", "weights", "KV cache", "compute", "program", "together"])?;
        for (name, p) in &self.models {
            let [weights, kv, compute, fixed, all] = [p.weights, p.kv, p.compute, p.fixed, p.needed()].map(human);
            line([name, &weights, &kv, &compute, &fixed, &all])?;
        }
        let Some((name, largest)) = self.models.iter().max_by_key(|(_, p)| p.needed()) else { return Ok(()) };
        if largest.kv > largest.weights / 4 {
            write!(
                f,
                "lower models.{name}.context_size or .slots, set .kv_type to \"q8_0\", or take a smaller model than \
                 {name}"
            )?;
        } else {
            write!(f, "take a smaller model (or a smaller quantisation) than {name}")?;
        }
        if source == "llama.memory_budget" {
            write!(f, ", or raise llama.memory_budget")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use lares_config::KvType;

    /// The numbers of Qwen2.5-Coder 0.5B Q4_K_M.
    pub(crate) fn qwen() -> Metadata {
        Metadata {
            version: 3,
            architecture: "qwen2".into(),
            name: None,
            size_label: None,
            quantisation: Some("Q4_K_M".into()),
            context_length: 32_768,
            block_count: 24,
            embedding_length: 896,
            feed_forward_length: 4864,
            head_count: vec![14; 24],
            head_count_kv: vec![2; 24],
            key_length: 64,
            value_length: 64,
            vocabulary_size: 151_936,
            chat_template: None,
            parameter_count: 494_032_768,
            pooling: None,
            expert_count: 0,
            expert_used_count: 0,
            sliding_window: None,
            max_sequence_tokens: None,
            tensors: Vec::new(),
            tensor_bytes: 485_450_000,
            file_size: 491_400_064,
        }
    }

    const MIB: u64 = 1 << 20;

    #[test]
    fn cache_sizes_are_those_llama_cpp_prints() {
        let kv = |context_size, slots, kv_type| {
            predict(&Model { context_size, slots, kv_type, ..Model::default() }, &qwen()).kv
        };
        assert_eq!(kv(2048, 1, KvType::F16), 24 * MIB);
        assert_eq!(kv(8192, 4, KvType::F16), 384 * MIB);
        assert_eq!(kv(8192, 1, KvType::Q8_0), 51 * MIB);
        assert_eq!(kv(8192, 1, KvType::Q4_0), 27 * MIB);
        assert_eq!(kv(8000, 1, KvType::F16), 96 * MIB);
    }

    #[test]
    fn layers_without_attention_have_no_cache() {
        let mut metadata = qwen();
        let model = Model::default();
        let all = predict(&model, &metadata).kv;
        metadata.head_count_kv[..12].fill(0);
        assert_eq!(predict(&model, &metadata).kv, all / 2);
    }

    #[test]
    fn compute_buffers_are_close_to_those_llama_cpp_prints() {
        let compute = |context_size, micro_batch_size, flash_attention| {
            let model = Model { context_size, micro_batch_size, flash_attention, ..Model::default() };
            compute_bytes(&model, &qwen(), context_size.into()) as f64 / MIB as f64
        };
        let printed = [
            (2048, 128, Toggle::On, 9.82),
            (8192, 128, Toggle::On, 11.32),
            (8192, 512, Toggle::On, 45.27),
            (8192, 32, Toggle::On, 2.83),
            (8192, 128, Toggle::Off, 62.75),
            (8192, 512, Toggle::Off, 251.01),
            (32_768, 512, Toggle::Off, 971.01),
        ];
        for (context, micro, flash, real) in printed {
            let predicted = compute(context, micro, flash);
            assert!((0.99..1.15).contains(&(predicted / real)), "{context} {micro} {flash:?}: {predicted} for {real}");
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_numbers() {
        let prediction = predict(&Model { slots: 4, ..Model::default() }, &qwen());
        let models = [("coder".to_owned(), prediction)];
        let available = |bytes| Some(Memory { bytes, source: "MemAvailable of /proc/meminfo".into() });
        assert_eq!(check_fit(&models, None, available(prediction.needed())), Ok(()));
        assert_eq!(check_fit(&models, None, None), Ok(()));
        let error = check_fit(&models, Some(ByteSize::mib(600)), available(1 << 34)).unwrap_err().to_string();
        insta::assert_snapshot!(error);
        let error = check_fit(&models, Some(ByteSize::gib(600)), available(1 << 24)).unwrap_err().to_string();
        assert!(error.contains("16 MiB (MemAvailable"), "{error}");
    }
}
