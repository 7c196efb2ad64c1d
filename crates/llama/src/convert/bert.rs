//! A sentence encoder of the BERT family as a GGUF file that llama.cpp runs.
//!
//! Names of tensors and keys are those of llama.cpp's architecture `bert`. Its word pieces are written the way its `bert`
//! tokenizer expects them: a piece that begins a word has `▁` before it, one that goes on has lost its `##`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::safetensors::{self, View};
use super::{ConvertError, Weights};
use crate::gguf::MAX_SEQUENCE_KEY;
use crate::gguf::writer::{Data, Entries, Value};

/// Most layers that are looked for; the largest BERT has 24.
const MAX_LAYERS: u32 = 1024;
/// Most word pieces; the largest multilingual vocabularies have half a million.
const MAX_PIECES: usize = 1 << 20;
/// The model's first tokens in llama.cpp's order, and the key each is written under.
const SPECIAL: [(&str, &str, i32); 5] = [
    ("[PAD]", "padding_token_id", CONTROL),
    ("[UNK]", "unknown_token_id", UNKNOWN),
    ("[CLS]", "cls_token_id", CONTROL),
    ("[SEP]", "seperator_token_id", CONTROL),
    ("[MASK]", "mask_token_id", CONTROL),
];
/// Token types of the format.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;

/// Tensors outside the layers.
const OUTSIDE: [(&str, &str); 5] = [
    ("embeddings.word_embeddings.weight", "token_embd.weight"),
    ("embeddings.position_embeddings.weight", "position_embd.weight"),
    ("embeddings.token_type_embeddings.weight", "token_types.weight"),
    ("embeddings.LayerNorm.weight", "token_embd_norm.weight"),
    ("embeddings.LayerNorm.bias", "token_embd_norm.bias"),
];
/// Parts of a layer, each with a weight and a bias.
const INSIDE: [(&str, &str); 8] = [
    ("attention.self.query", "attn_q"),
    ("attention.self.key", "attn_k"),
    ("attention.self.value", "attn_v"),
    ("attention.output.dense", "attn_output"),
    ("attention.output.LayerNorm", "attn_output_norm"),
    ("intermediate.dense", "ffn_up"),
    ("output.dense", "ffn_down"),
    ("output.LayerNorm", "layer_output_norm"),
];
/// Tensors that an encoder of sentences does not use: the head of its first training, and a constant.
const UNUSED: [&str; 3] = ["embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias"];

/// What `config.json` says that the tensors do not.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    num_attention_heads: u32,
    layer_norm_eps: f32,
    hidden_act: String,
    #[serde(default)]
    position_embedding_type: Option<String>,
}

/// The metadata and tensors of the GGUF file. `max_tokens` is how many word pieces of a text the model was trained on.
pub(super) fn convert<'a>(
    config: &[u8],
    tensors: &[u8],
    vocabulary: &[u8],
    name: &'a str,
    max_tokens: u32,
    weights: Weights,
) -> Result<(Entries<'a>, Vec<Data>), ConvertError> {
    let config: Config =
        serde_json::from_slice(config).map_err(|error| ConvertError::Damaged(format!("config.json: {error}")))?;
    if config.model_type != "bert"
        || config.hidden_act != "gelu"
        || config.position_embedding_type.as_deref().is_some_and(|kind| kind != "absolute")
    {
        return Err(ConvertError::Unsupported(format!(
            "config.json: a model of type `{}` with `{}` and positions {:?}",
            config.model_type, config.hidden_act, config.position_embedding_type
        )));
    }
    let tokens = tokens(vocabulary)?;
    let mut source = Source { tensors: safetensors::read(tensors)?, out: Vec::new(), weights };
    for (from, to) in OUTSIDE {
        source.take(from, to.to_owned())?;
    }
    let mut layers = 0;
    while layers < MAX_LAYERS && source.has(&format!("encoder.layer.{layers}.{}.weight", INSIDE[0].0)) {
        for (from, to) in INSIDE {
            for part in ["weight", "bias"] {
                source.take(&format!("encoder.layer.{layers}.{from}.{part}"), format!("blk.{layers}.{to}.{part}"))?;
            }
        }
        layers += 1;
    }
    for unused in UNUSED {
        source.tensors.remove(unused);
    }
    if let Some(name) = source.tensors.keys().next() {
        return Err(ConvertError::Unsupported(format!("tensor `{name}`, which is none of a BERT encoder")));
    }
    let [width, rows] = source.dimensions("token_embd.weight")?;
    let [_, positions] = source.dimensions("position_embd.weight")?;
    let [_, kinds] = source.dimensions("token_types.weight")?;
    let feed_forward = if layers > 0 { source.dimensions("blk.0.ffn_up.weight")?[1] } else { 0 };
    let heads = config.num_attention_heads;
    if layers == 0 || heads == 0 || !width.is_multiple_of(heads) {
        return Err(ConvertError::Damaged(format!("{layers} layers of width {width} with {heads} heads")));
    }
    if rows as usize != tokens.texts.len() {
        return Err(ConvertError::Damaged(format!("{rows} embeddings for {} word pieces", tokens.texts.len())));
    }
    if max_tokens > positions {
        return Err(ConvertError::Damaged(format!("{max_tokens} tokens with {positions} positions")));
    }
    let bert = |key: &str, value| (format!("bert.{key}"), value);
    let tokenizer = |key: &str, value| (format!("tokenizer.ggml.{key}"), value);
    let mut entries = vec![
        ("general.architecture".to_owned(), Value::Text("bert")),
        ("general.type".to_owned(), Value::Text("model")),
        ("general.name".to_owned(), Value::Text(name)),
        ("general.file_type".to_owned(), Value::U32(weights.file_type())),
        ("general.quantization_version".to_owned(), Value::U32(2)),
        bert("block_count", Value::U32(layers)),
        bert("context_length", Value::U32(positions)),
        bert("embedding_length", Value::U32(width)),
        bert("feed_forward_length", Value::U32(feed_forward)),
        bert("attention.head_count", Value::U32(heads)),
        bert("attention.layer_norm_epsilon", Value::F32(config.layer_norm_eps)),
        bert("attention.causal", Value::Bool(false)),
        // 1 is the mean of all tokens.
        bert("pooling_type", Value::U32(1)),
        (MAX_SEQUENCE_KEY.to_owned(), Value::U32(max_tokens)),
        tokenizer("model", Value::Text("bert")),
        tokenizer("pre", Value::Text("default")),
        tokenizer("token_type_count", Value::U32(kinds)),
        tokenizer("normalizer.lowercase", Value::Bool(true)),
    ];
    entries.extend(tokens.special.iter().map(|(key, id)| tokenizer(key, Value::U32(*id))));
    entries.push(tokenizer("tokens", Value::Texts(tokens.texts)));
    entries.push(tokenizer("token_type", Value::I32s(tokens.types)));
    Ok((entries, source.out))
}

/// Tensors that are still to be taken, and those that are.
struct Source<'a> {
    tensors: BTreeMap<String, View<'a>>,
    out: Vec<Data>,
    weights: Weights,
}

impl Source<'_> {
    fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    fn take(&mut self, from: &str, to: String) -> Result<(), ConvertError> {
        let view = self.tensors.remove(from);
        let view = view.ok_or_else(|| ConvertError::Damaged(format!("it has no tensor `{from}`")))?;
        let dimensions: Vec<u64> = view.shape.iter().rev().copied().collect();
        let numbers = view.floats(from)?;
        let kind = self.weights.kind();
        // As llama.cpp's own converter: vectors and the two small tables stay exact.
        let small = dimensions.len() < 2 || matches!(to.as_str(), "position_embd.weight" | "token_types.weight");
        let whole = dimensions.first().is_some_and(|n| kind.size_of(*n).is_some());
        let weights = if small || !whole { Weights::F32 } else { self.weights };
        self.out.push(Data { name: to, dimensions, kind: weights.kind(), bytes: weights.encode(&numbers) });
        Ok(())
    }

    /// Columns and rows of a matrix that was taken.
    fn dimensions(&self, name: &str) -> Result<[u32; 2], ConvertError> {
        let tensor = self.out.iter().find(|tensor| tensor.name == name);
        let both = tensor.and_then(|tensor| <[u64; 2]>::try_from(tensor.dimensions.as_slice()).ok());
        let both = both.and_then(|[a, b]| Some([u32::try_from(a).ok()?, u32::try_from(b).ok()?]));
        both.ok_or_else(|| ConvertError::Damaged(format!("tensor `{name}` is no matrix")))
    }
}

/// The vocabulary as llama.cpp wants it.
#[derive(Debug)]
struct Tokens {
    texts: Vec<String>,
    types: Vec<i32>,
    special: Vec<(&'static str, u32)>,
}

fn tokens(vocabulary: &[u8]) -> Result<Tokens, ConvertError> {
    let text = std::str::from_utf8(vocabulary).map_err(|_| ConvertError::Damaged("vocab.txt is no text".to_owned()))?;
    // Not `lines`: a piece may be a carriage return or one of Unicode's own line ends.
    let pieces: Vec<&str> = text.strip_suffix('\n').unwrap_or(text).split('\n').collect();
    if pieces.len() > MAX_PIECES {
        return Err(ConvertError::Damaged(format!("vocab.txt has {} word pieces", pieces.len())));
    }
    let mut types = vec![NORMAL; pieces.len()];
    let mut special = Vec::new();
    for (piece, key, kind) in SPECIAL {
        let place = pieces.iter().position(|other| *other == piece);
        let place = place.ok_or_else(|| ConvertError::Damaged(format!("vocab.txt has no {piece}")))?;
        if let Some(entry) = types.get_mut(place) {
            *entry = kind;
        }
        // Below the limit above.
        special.push((key, place as u32));
    }
    let texts = pieces.iter().zip(&types).map(|(piece, kind)| spelling(piece, *kind)).collect();
    Ok(Tokens { texts, types, special })
}

/// A word piece in llama.cpp's spelling.
fn spelling(piece: &str, kind: i32) -> String {
    if kind != NORMAL {
        return piece.to_owned();
    }
    piece.strip_prefix("##").map_or_else(|| format!("▁{piece}"), str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;

    use proptest::prelude::*;
    use sha2::Digest;

    use super::*;
    use crate::gguf::{Metadata, Pooling, writer};

    const CONFIG: &str = r#"{"model_type":"bert","num_attention_heads":2,"layer_norm_eps":1e-12,"hidden_act":"gelu"}"#;
    const PIECES: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nto\n##ol\n#\n";

    fn tiny(layers: u32) -> Vec<u8> {
        let mut all: Vec<(String, Vec<u64>)> = vec![
            ("embeddings.word_embeddings.weight".into(), vec![8, 32]),
            ("embeddings.position_embeddings.weight".into(), vec![16, 32]),
            ("embeddings.token_type_embeddings.weight".into(), vec![2, 32]),
            ("embeddings.LayerNorm.weight".into(), vec![32]),
            ("embeddings.LayerNorm.bias".into(), vec![32]),
            ("pooler.dense.bias".into(), vec![32]),
        ];
        for layer in 0..layers {
            for (from, to) in INSIDE {
                let shape = match to {
                    "ffn_up" => vec![64, 32],
                    "ffn_down" => vec![32, 64],
                    name if name.ends_with("norm") => vec![32],
                    _ => vec![32, 32],
                };
                all.push((format!("encoder.layer.{layer}.{from}.bias"), vec![shape[0]]));
                all.push((format!("encoder.layer.{layer}.{from}.weight"), shape));
            }
        }
        let all: Vec<_> = all
            .iter()
            .map(|(name, shape)| {
                let count = shape.iter().product::<u64>();
                (name.as_str(), shape.as_slice(), (0..count).map(|i| i as f32 / 100.0).collect())
            })
            .collect();
        safetensors::tests::file(&all)
    }

    fn run(config: &str, tensors: &[u8], pieces: &str, weights: Weights) -> Result<Vec<u8>, ConvertError> {
        let (entries, tensors) = convert(config.as_bytes(), tensors, pieces.as_bytes(), "tiny", 12, weights)?;
        let mut file = Vec::new();
        writer::write(&mut file, &entries, &tensors).unwrap();
        Ok(file)
    }

    #[test]
    fn a_model_becomes_a_file_that_says_what_it_is() {
        let file = run(CONFIG, &tiny(3), PIECES, Weights::Q8).unwrap();
        let read = Metadata::parse(Cursor::new(&file)).unwrap();
        assert_eq!((read.architecture.as_str(), read.name.as_deref()), ("bert", Some("tiny")));
        assert_eq!((read.block_count, read.embedding_length, read.feed_forward_length), (3, 32, 64));
        assert_eq!((read.context_length, read.max_sequence_tokens, read.vocabulary_size), (16, Some(12), 8));
        assert_eq!((read.pooling, read.quantisation.as_deref()), (Some(Pooling::Mean), Some("Q8_0")));
        assert_eq!(read.tensors.len(), 5 + 3 * 16);
        let kind = |name: &str| read.tensors.iter().find(|t| t.name == name).unwrap().kind.name;
        assert_eq!(kind("token_embd.weight"), "q8_0");
        assert_eq!(kind("blk.2.ffn_down.weight"), "q8_0");
        assert_eq!(kind("position_embd.weight"), "f32");
        assert_eq!(kind("blk.0.attn_output_norm.weight"), "f32");
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let refused = |config: &str, tensors: &[u8], pieces: &str, part: &str| {
            let error = run(config, tensors, pieces, Weights::F32).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        };
        refused(&CONFIG.replace("bert", "t5"), &tiny(1), PIECES, "`t5`");
        refused(&CONFIG.replace(":2", ":3"), &tiny(1), PIECES, "3 heads");
        refused(CONFIG, &tiny(0), PIECES, "0 layers");
        refused(CONFIG, &tiny(1), &format!("{PIECES}more\n"), "8 embeddings for 9");
        refused(CONFIG, &tiny(1), &PIECES.replace("[SEP]", "sep"), "[SEP]");
        let extra = safetensors::tests::file(&[("embeddings.word_embeddings.weight", &[1], vec![1.0])]);
        refused(CONFIG, &extra, PIECES, "position_embeddings");
    }

    proptest! {
        #[test]
        fn every_piece_is_spelled_so_that_it_can_be_read_back(words in proptest::collection::vec("[^\n]{1,12}", 0..40)) {
            let mut all: Vec<String> = SPECIAL.iter().map(|(piece, ..)| (*piece).to_owned()).collect();
            all.extend(words);
            let tokens = tokens(format!("{}\n", all.join("\n")).as_bytes()).unwrap();
            prop_assert_eq!(tokens.texts.len(), all.len());
            for ((text, kind), piece) in tokens.texts.iter().zip(&tokens.types).zip(&all) {
                let back = match (*kind, text.strip_prefix('▁')) {
                    (NORMAL, Some(start)) if !piece.starts_with("##") => start.to_owned(),
                    (NORMAL, _) => format!("##{text}"),
                    _ => text.clone(),
                };
                prop_assert_eq!(&back, piece);
            }
        }

        #[test]
        fn foreign_vocabularies_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = tokens(&bytes);
        }
    }

    #[test]
    fn the_same_files_give_the_same_bytes_for_good() {
        // The catalog names the hash of what a conversion gives: a converter that writes other bytes breaks every pull.
        let all =
            [Weights::F32, Weights::F16, Weights::Q8].map(|weights| run(CONFIG, &tiny(3), PIECES, weights).unwrap());
        let hash = crate::hex::encode(&sha2::Sha256::digest(all.concat()));
        assert_eq!(hash, "7aa5a991489f7cd04f9590d3be495312b51ea0e318dd9d7583f9f94410fe11e5");
    }

    #[test]
    fn types_and_ids_of_special_tokens_are_found_by_name() {
        let tokens = tokens(PIECES.as_bytes()).unwrap();
        assert_eq!(
            tokens.special,
            [
                ("padding_token_id", 0),
                ("unknown_token_id", 1),
                ("cls_token_id", 2),
                ("seperator_token_id", 3),
                ("mask_token_id", 4)
            ]
        );
        assert_eq!(tokens.types, [3, 2, 3, 3, 3, 1, 1, 1]);
        assert_eq!(tokens.texts[5..], ["▁to", "ol", "▁#"]);
    }
}
