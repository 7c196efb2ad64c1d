//! What is read from GGUF files: good ones, cut ones, hostile ones.

#![allow(clippy::unwrap_used)]

mod support;

use std::io::Cursor;

use lares_llama::gguf::{GgufError, Metadata, Pooling, ggml};
use proptest::prelude::*;
use support::{File, Tensor, Value};

fn parse(bytes: &[u8]) -> Result<Metadata, GgufError> {
    Metadata::parse(Cursor::new(bytes))
}

fn with(entries: &[(&str, Value)]) -> File {
    let mut file = File::minimal();
    file.entries.extend(entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    file
}

#[test]
fn everything_a_person_wants_to_know_is_read() {
    let numbers = |items: &[u32]| Value::Array(4, items.iter().map(|n| Value::U32(*n)).collect());
    let tokens = Value::Array(8, (0..700).map(|n| Value::Text(format!("token{n}"))).collect());
    let file = with(&[
        ("general.name", Value::Text("Tiny".into())),
        ("general.size_label", Value::Text("12K".into())),
        ("general.file_type", Value::U32(15)),
        ("tiny.attention.head_count_kv", numbers(&[2, 0, 1])),
        ("tiny.attention.key_length", Value::U32(24)),
        ("tiny.feed_forward_length", numbers(&[100, 300, 200])),
        ("tiny.attention.sliding_window", Value::U32(128)),
        ("tiny.expert_count", Value::U32(8)),
        ("tiny.expert_used_count", Value::U32(2)),
        ("tiny.pooling_type", Value::U32(2)),
        ("tokenizer.ggml.tokens", tokens),
        ("tokenizer.chat_template", Value::Text("{{ messages }}".into())),
    ]);
    let (bytes, end) = file.write();
    let read = parse(&bytes).unwrap();
    assert_eq!((read.architecture.as_str(), read.name.as_deref()), ("tiny", Some("Tiny")));
    assert_eq!((read.size_label.as_deref(), read.quantisation.as_deref()), (Some("12K"), Some("Q4_K_M")));
    assert_eq!((read.context_length, read.block_count, read.embedding_length), (512, 3, 64));
    assert_eq!(read.head_count, [4, 4, 4]);
    assert_eq!(read.head_count_kv, [2, 0, 1]);
    assert_eq!((read.key_length, read.value_length), (24, 16));
    assert_eq!((read.feed_forward_length, read.vocabulary_size), (300, 700));
    assert_eq!((read.sliding_window, read.pooling), (Some(128), Some(Pooling::Cls)));
    assert_eq!((read.expert_count, read.expert_used_count), (8, 2));
    assert_eq!(read.chat_template.as_deref(), Some("{{ messages }}"));
    assert_eq!((read.parameter_count, read.tensor_bytes, read.file_size), (4096, 4352, end as u64));
}

#[test]
fn a_truncated_file_says_how_much_is_missing() {
    let (bytes, end) = File::minimal().write();
    let error = parse(&bytes[..end - 1]).unwrap_err().to_string();
    assert!(error.contains(&format!("{} bytes instead of {end}", end - 1)), "{error}");
    assert!(error.contains("pull it again"), "{error}");
    let error = parse(&bytes[..50]).unwrap_err().to_string();
    assert!(error.contains("truncated") && error.contains("pull it again"), "{error}");
}

#[test]
fn other_files_are_told_apart() {
    let error = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
    assert!(error(b"<html><body>not found</body></html>").contains("not a GGUF file"));
    assert!(error(b"").contains("truncated"));
    assert!(error(b"GGUF\0\0\0\x03rest of it").contains("big-endian"));
    assert!(error(b"GGUF\x01\0\0\0rest of it").contains("version 1"));
    let mut projector = File::minimal();
    projector.entries[1].0 = "other".into();
    assert!(error(&projector.write().0).contains("tiny.context_length"));
    assert!(error(&with(&[("split.count", Value::U16(3))]).write().0).contains("3 parts"));
    let mut newer = File::minimal().write().0;
    let kind = newer.len() - 4352 - 16;
    let kind = newer[..kind].iter().rposition(|b| *b == 8).unwrap_or(kind);
    newer[kind] = 200;
    assert!(parse(&newer).is_err());
}

#[test]
fn counts_that_cannot_be_true_allocate_nothing() {
    let huge = u64::MAX.to_le_bytes();
    let small = 1u64.to_le_bytes();
    for (tensors, entries) in [(huge, small), (small, huge), (huge, huge)] {
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &tensors, &entries].concat();
        assert!(matches!(parse(&bytes), Err(GgufError::CutInHeader { .. })));
    }
    // A string that claims to be longer than the file.
    let bytes = [b"GGUF\x03\0\0\0".as_slice(), &0u64.to_le_bytes(), &small, &(1u64 << 60).to_le_bytes(), &[0; 64]];
    assert!(matches!(parse(&bytes.concat()), Err(GgufError::CutInHeader { .. })));
    let mut nested = Value::U8(1);
    for _ in 0..9 {
        nested = Value::Array(nested.kind(), vec![nested]);
    }
    let error = parse(&with(&[("deep", nested)]).write().0).unwrap_err().to_string();
    assert!(error.contains("nested"), "{error}");
}

#[test]
fn tensors_that_cannot_be_are_refused() {
    for dimensions in [vec![33], vec![u64::MAX, 2], vec![32, u64::MAX, u64::MAX]] {
        let mut file = File::minimal();
        let good = file.write().0;
        file.tensors[0].dimensions = vec![32; dimensions.len()];
        let mut bytes = file.write().0;
        let name = b"blk.0.attn_q.weight";
        let at = bytes.windows(name.len()).position(|w| w == name).unwrap() + name.len() + 4;
        for (i, n) in dimensions.iter().enumerate() {
            bytes[at + 8 * i..at + 8 * i + 8].copy_from_slice(&n.to_le_bytes());
        }
        assert!(matches!(parse(&bytes), Err(GgufError::Damaged(_))), "{dimensions:?}");
        assert!(parse(&good).is_ok());
    }
}

#[test]
fn the_real_model_is_read_in_no_time() {
    let Some(path) = std::env::var_os("LARES_TEST_MODEL") else {
        eprintln!("SKIP the_real_model_is_read_in_no_time: LARES_TEST_MODEL is not set");
        return;
    };
    let started = std::time::Instant::now();
    let read = Metadata::read(path.as_ref()).unwrap();
    assert!(started.elapsed() < std::time::Duration::from_secs(5));
    assert!(read.context_length > 0 && read.vocabulary_size > 1000 && read.parameter_count > 100_000_000);
    assert!(read.tensor_bytes <= read.file_size && read.tensor_bytes > read.file_size / 2);
    assert!(read.head_count_kv.len() == read.block_count as usize && read.key_length > 0);
}

fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<u8>().prop_map(Value::U8),
        any::<i8>().prop_map(Value::I8),
        any::<u16>().prop_map(Value::U16),
        any::<i16>().prop_map(Value::I16),
        any::<u32>().prop_map(Value::U32),
        any::<i32>().prop_map(Value::I32),
        any::<f32>().prop_map(Value::F32),
        any::<bool>().prop_map(Value::Bool),
        ".{0,20}".prop_map(Value::Text),
        any::<u64>().prop_map(Value::U64),
        any::<i64>().prop_map(Value::I64),
        any::<f64>().prop_map(Value::F64),
    ];
    leaf.prop_recursive(2, 16, 4, |inner| {
        (inner, 0usize..4).prop_map(|(item, n)| Value::Array(item.kind(), vec![item; n]))
    })
}

fn any_tensor() -> impl Strategy<Value = Tensor> {
    (prop::sample::select(ggml::TYPES), "[a-z.]{1,12}", 1u64..3, prop::collection::vec(1u64..4, 0..3)).prop_map(
        |(kind, name, blocks, rest)| Tensor {
            name,
            kind: kind.id,
            dimensions: std::iter::once(blocks * kind.block).chain(rest).collect(),
        },
    )
}

fn any_file() -> impl Strategy<Value = File> {
    let entries = prop::collection::vec(any_value(), 0..8);
    let tensors = prop::collection::vec(any_tensor(), 1..6);
    (2u32..=3, 3u32..8, entries, tensors).prop_map(|(version, shift, entries, tensors)| {
        let mut file = File::minimal();
        file.version = version;
        file.alignment = 1 << shift;
        file.entries.extend(entries.into_iter().enumerate().map(|(i, value)| (format!("extra.{i}"), value)));
        file.tensors = tensors;
        file
    })
}

proptest! {
    #[test]
    fn what_was_written_is_read(file in any_file()) {
        let (bytes, _) = file.write();
        let read = parse(&bytes).unwrap();
        prop_assert_eq!(read.version, file.version);
        prop_assert_eq!(read.tensor_bytes, file.tensors.iter().map(Tensor::bytes).sum::<u64>());
        for (read, written) in read.tensors.iter().zip(&file.tensors) {
            prop_assert_eq!(&read.name, &written.name);
            prop_assert_eq!(&read.dimensions, &written.dimensions);
            prop_assert_eq!(read.kind.id, written.kind);
        }
        prop_assert_eq!(read.tensors.len(), file.tensors.len());
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error(file in any_file(), at in any::<prop::sample::Index>()) {
        let (bytes, end) = file.write();
        prop_assert!(parse(&bytes[..at.index(end)]).is_err());
    }

    #[test]
    fn a_damaged_file_never_panics(file in any_file(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (mut bytes, end) = file.write();
        bytes[at.index(end)] = byte;
        let _ = parse(&bytes);
    }

    #[test]
    fn any_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300), version in 2u32..=3) {
        prop_assert!(parse(&tail).is_err() || tail.starts_with(b"GGUF"));
        let head = [b"GGUF".as_slice(), &version.to_le_bytes(), &3u64.to_le_bytes(), &3u64.to_le_bytes()].concat();
        let _ = parse(&[head, tail].concat());
    }
}
