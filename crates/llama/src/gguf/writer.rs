//! Writes GGUF files, version 3: the same entries and tensors always give the same bytes.

use std::io::{self, Write};

use super::ggml::GgmlType;

/// Where tensors begin: multiples of this many bytes, the format's default.
const ALIGNMENT: u64 = 32;
/// Version of the format.
const VERSION: u32 = 3;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// 32 bits without sign.
    U32(u32),
    /// A float of 32 bits.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(&'a str),
    /// Texts.
    Texts(Vec<String>),
    /// Integers of 32 bits.
    I32s(Vec<i32>),
}

impl Value<'_> {
    /// Number of its type in the format.
    fn kind(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Texts(_) | Self::I32s(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::F32(n) => out.extend(n.to_le_bytes()),
            Self::Bool(b) => out.push(u8::from(*b)),
            Self::Text(text) => string(out, text),
            Self::Texts(texts) => {
                out.extend(8u32.to_le_bytes());
                out.extend((texts.len() as u64).to_le_bytes());
                texts.iter().for_each(|text| string(out, text));
            }
            Self::I32s(numbers) => {
                out.extend(5u32.to_le_bytes());
                out.extend((numbers.len() as u64).to_le_bytes());
                numbers.iter().for_each(|n| out.extend(n.to_le_bytes()));
            }
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Metadata in the order of the file.
pub type Entries<'a> = Vec<(String, Value<'a>)>;

/// A tensor with its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Data {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Elements in each dimension, the fastest first.
    pub dimensions: Vec<u64>,
    /// Element type.
    pub kind: GgmlType,
    /// Its elements as they lie in the file.
    pub bytes: Vec<u8>,
}

/// Writes the file to `out`: metadata and tensors in the order given. Blocks. Fails with
/// [`io::ErrorKind::InvalidInput`] where a tensor's bytes are not those of its dimensions.
pub fn write(out: &mut impl Write, entries: &[(String, Value<'_>)], tensors: &[Data]) -> io::Result<()> {
    let mut head = b"GGUF".to_vec();
    head.extend(VERSION.to_le_bytes());
    head.extend((tensors.len() as u64).to_le_bytes());
    head.extend((entries.len() as u64).to_le_bytes());
    for (key, value) in entries {
        string(&mut head, key);
        head.extend(value.kind().to_le_bytes());
        value.write(&mut head);
    }
    let mut offset = 0u64;
    for tensor in tensors {
        let elements = tensor.dimensions.iter().try_fold(1u64, |all, n| all.checked_mul(*n));
        let expected = elements.and_then(|elements| tensor.kind.size_of(elements));
        if expected != Some(tensor.bytes.len() as u64) {
            let problem = format!("{} bytes for tensor `{}`, not {expected:?}", tensor.bytes.len(), tensor.name);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, problem));
        }
        string(&mut head, &tensor.name);
        head.extend((tensor.dimensions.len() as u32).to_le_bytes());
        tensor.dimensions.iter().for_each(|n| head.extend(n.to_le_bytes()));
        head.extend(tensor.kind.id.to_le_bytes());
        head.extend(offset.to_le_bytes());
        offset = (offset + tensor.bytes.len() as u64).next_multiple_of(ALIGNMENT);
    }
    pad(&mut head);
    out.write_all(&head)?;
    for tensor in tensors {
        out.write_all(&tensor.bytes)?;
        let rest = (tensor.bytes.len() as u64).next_multiple_of(ALIGNMENT) - tensor.bytes.len() as u64;
        out.write_all(&[0; ALIGNMENT as usize][..rest as usize])?;
    }
    Ok(())
}

fn pad(head: &mut Vec<u8>) {
    head.resize(head.len().next_multiple_of(ALIGNMENT as usize), 0);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Cursor;

    use super::super::{Metadata, ggml};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let number = |key: &str, n| (format!("tiny.{key}"), Value::U32(n));
        let entries = [
            ("general.architecture".to_owned(), Value::Text("tiny")),
            ("general.file_type".to_owned(), Value::U32(7)),
            number("context_length", 512),
            number("block_count", 1),
            number("embedding_length", 64),
            number("attention.head_count", 4),
            number("pooling_type", 1),
            ("tiny.attention.causal".to_owned(), Value::Bool(false)),
            ("tiny.attention.layer_norm_epsilon".to_owned(), Value::F32(1e-12)),
            ("tokenizer.ggml.tokens".to_owned(), Value::Texts(vec!["a".to_owned(), "▁b".to_owned()])),
            ("tokenizer.ggml.token_type".to_owned(), Value::I32s(vec![1, 3])),
        ];
        let tensor = |name: &str, rows: u64, kind: &str| {
            let kind = ggml::by_name(kind).unwrap();
            let bytes = vec![7; kind.size_of(32 * rows).unwrap() as usize];
            Data { name: name.to_owned(), dimensions: vec![32, rows], kind, bytes }
        };
        let tensors = [tensor("one", 3, "q8_0"), tensor("two", 2, "f16")];
        let mut file = Vec::new();
        write(&mut file, &entries, &tensors).unwrap();
        let read = Metadata::parse(Cursor::new(&file)).unwrap();
        assert_eq!((read.architecture.as_str(), read.context_length, read.vocabulary_size), ("tiny", 512, 2));
        assert_eq!(read.pooling, Some(super::super::Pooling::Mean));
        assert_eq!(read.quantisation.as_deref(), Some("Q8_0"));
        assert_eq!(read.tensors[1].offset, 128);
        assert_eq!(read.tensor_bytes, 102 + 128);
        assert_eq!(read.file_size % ALIGNMENT, 0);
    }

    #[test]
    fn a_tensor_with_other_bytes_than_its_dimensions_is_refused() {
        let kind = ggml::by_name("f32").unwrap();
        let wrong = Data { name: "w".to_owned(), dimensions: vec![2, u64::MAX], kind, bytes: vec![0; 4] };
        assert_eq!(write(&mut Vec::new(), &[], &[wrong]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
