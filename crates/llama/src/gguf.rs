//! What a GGUF file says about its model, read with every length checked against the file.
//!
//! Only the header is read: metadata, and where the tensors lie. Large arrays (vocabularies) are skipped, so reading
//! takes milliseconds and kilobytes whatever the size of the model.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

pub mod ggml;
mod reader;
pub mod writer;

use ggml::GgmlType;
use reader::Reader;

/// Bytes of a metadata key or tensor name. The format allows keys of 65,535 bytes.
const MAX_NAME: u64 = 65_535;
/// Bytes of a metadata string that is kept (chat templates run to some 100 KiB); longer ones are skipped.
const MAX_TEXT: u64 = 1 << 20;
/// Elements of a numeric array that is kept. Per-layer values are below this, vocabularies above.
const MAX_ARRAY: u64 = 4096;
/// Arrays inside arrays inside arrays: nothing real goes deeper than two.
const MAX_DEPTH: u32 = 4;
/// Dimensions of a tensor, ggml's own limit.
const MAX_DIMENSIONS: u32 = 4;
/// Smallest possible metadata entry: empty key, type, one byte.
const MIN_ENTRY: u64 = 8 + 4 + 1;
/// Smallest possible tensor entry: empty name, number of dimensions, type, offset.
const MIN_TENSOR: u64 = 8 + 4 + 4 + 8;

/// The key of [`Metadata::max_sequence_tokens`], which only files made here have.
pub(crate) const MAX_SEQUENCE_KEY: &str = "lares.max_sequence_tokens";

/// Why a file is not a model that can be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GgufError {
    /// The file could not be read.
    #[error("cannot read it: {0}")]
    Io(#[from] std::io::Error),
    /// Another kind of file.
    #[error("it is not a GGUF file: it starts with {0:02x?} instead of \"GGUF\"")]
    NotGguf([u8; 4]),
    /// Written for big-endian machines.
    #[error("it is a big-endian GGUF file; convert it to little-endian (gguf-py: gguf_convert_endian.py)")]
    BigEndian,
    /// A version of the format that is not known.
    #[error("GGUF version {0} is not supported (2 and 3 are); convert the model again with a current llama.cpp")]
    Version(u32),
    /// The file ends before its header does.
    #[error("it is truncated: it ends at byte {actual}, inside its header; pull it again")]
    CutInHeader {
        /// Bytes the file has.
        actual: u64,
    },
    /// The file ends before its last tensor does.
    #[error("it is truncated: {actual} bytes instead of {expected}; pull it again")]
    Truncated {
        /// Bytes the file would have to have.
        expected: u64,
        /// Bytes the file has.
        actual: u64,
    },
    /// A length that no real file has.
    #[error("its {what} has {length} bytes, more than {most}; the file is damaged")]
    TooLong {
        /// What is too long.
        what: &'static str,
        /// Its length in bytes.
        length: u64,
        /// Most that is accepted.
        most: u64,
    },
    /// A structure that no real file has.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// A tensor type newer than this program.
    #[error("tensor `{tensor}` has type {id}, which is not known here; update lares or take another quantisation")]
    UnknownType {
        /// Name of the tensor.
        tensor: String,
        /// Number of its type.
        id: u32,
    },
    /// A key every language model has is missing.
    #[error("it has no `{0}`: it is not a language model that llama-server can serve")]
    MissingKey(String),
    /// One part of several.
    #[error("it is one of {0} parts; merge them first with `llama-gguf-split --merge`")]
    Split(u64),
}

/// A metadata value that was kept.
#[derive(Debug, Clone, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// A short array of integers.
    Integers(Vec<i64>),
    /// Any other array: only its length is kept.
    Array(u64),
    /// A string too long to keep.
    LongText,
}

impl Value {
    fn as_u64(&self) -> Option<u64> {
        match self {
            Self::Unsigned(n) => Some(*n),
            Self::Signed(n) => u64::try_from(*n).ok(),
            _ => None,
        }
    }
}

/// Where a tensor lies, and what it is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Elements in each dimension, the fastest first.
    pub dimensions: Vec<u64>,
    /// Element type.
    pub kind: GgmlType,
    /// Bytes from the start of the data section.
    pub offset: u64,
    /// Bytes it takes.
    pub bytes: u64,
}

/// How the token embeddings of an embedding model become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names are llama.cpp's own")]
pub enum Pooling {
    None,
    Mean,
    Cls,
    Last,
    Rank,
}

impl Pooling {
    /// The word llama-server's `--pooling` takes.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Mean => "mean",
            Self::Cls => "cls",
            Self::Last => "last",
            Self::Rank => "rank",
        }
    }
}

/// What a GGUF file says about its model.
#[derive(Debug, Clone, PartialEq)]
pub struct Metadata {
    /// Version of the GGUF format.
    pub version: u32,
    /// Architecture, such as `qwen2`.
    pub architecture: String,
    /// Name the author gave.
    pub name: Option<String>,
    /// Size in the author's words, such as `0.5B`.
    pub size_label: Option<String>,
    /// Quantisation, such as `Q4_K_M`.
    pub quantisation: Option<String>,
    /// Tokens of context the model was trained with.
    pub context_length: u32,
    /// Layers.
    pub block_count: u32,
    /// Width of the residual stream, in elements.
    pub embedding_length: u32,
    /// Widest feed-forward part of a layer, in elements; 0 when unknown.
    pub feed_forward_length: u32,
    /// Attention heads of each layer.
    pub head_count: Vec<u32>,
    /// Key/value heads of each layer; 0 in a layer without attention.
    pub head_count_kv: Vec<u32>,
    /// Elements of a key head.
    pub key_length: u32,
    /// Elements of a value head.
    pub value_length: u32,
    /// Entries of the vocabulary; 0 when the file has none.
    pub vocabulary_size: u64,
    /// Chat template (Jinja).
    pub chat_template: Option<String>,
    /// Elements of all tensors together.
    pub parameter_count: u64,
    /// Pooling of an embedding model.
    pub pooling: Option<Pooling>,
    /// Experts of a layer; 0 for a dense model.
    pub expert_count: u32,
    /// Experts used for a token.
    pub expert_used_count: u32,
    /// Tokens a layer with a sliding window looks back.
    pub sliding_window: Option<u32>,
    /// Tokens of a text that an encoder was trained on, where that is less than its context.
    pub max_sequence_tokens: Option<u32>,
    /// The tensors, in file order.
    pub tensors: Vec<Tensor>,
    /// Bytes of all tensors together.
    pub tensor_bytes: u64,
    /// Bytes of the file.
    pub file_size: u64,
}

impl Metadata {
    /// Reads the header of the file at `path`. Blocks; call it from a blocking thread.
    pub fn read(path: &Path) -> Result<Self, GgufError> {
        Self::parse(File::open(path)?)
    }

    /// Reads the header of `source`, and checks that every tensor lies inside it.
    pub fn parse(source: impl Read + Seek) -> Result<Self, GgufError> {
        let mut reader = Reader::new(source)?;
        let magic = reader.bytes::<4>()?;
        if &magic != b"GGUF" {
            return Err(GgufError::NotGguf(magic));
        }
        let version = reader.u32()?;
        match version {
            2 | 3 => {}
            // The low half of a small big-endian number is zero when read the other way round.
            other if other & 0xffff == 0 && other != 0 => return Err(GgufError::BigEndian),
            other => return Err(GgufError::Version(other)),
        }
        let tensor_count = reader.u64()?;
        let entry_count = reader.u64()?;
        reader.claim(tensor_count, MIN_TENSOR)?;
        reader.claim(entry_count, MIN_ENTRY)?;
        let mut values = HashMap::new();
        for _ in 0..entry_count {
            let key = reader.string("metadata key", MAX_NAME)?;
            let kind = reader.u32()?;
            let value = read_value(&mut reader, kind, 0)?;
            if values.insert(key.clone(), value).is_some() {
                return Err(GgufError::Damaged(format!("metadata key `{key}` appears twice")));
            }
        }
        let values = Values(values);
        if let Some(parts @ 2..) = values.unsigned("split.count") {
            return Err(GgufError::Split(parts));
        }
        let alignment = values.unsigned("general.alignment").unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 30 {
            return Err(GgufError::Damaged(format!("alignment {alignment} is not a power of two")));
        }
        let mut tensors = Vec::new();
        for _ in 0..tensor_count {
            tensors.push(read_tensor(&mut reader, alignment)?);
        }
        check_extent(&reader, &tensors, alignment)?;
        Self::assemble(version, &values, tensors, reader.length())
    }

    fn assemble(version: u32, values: &Values, tensors: Vec<Tensor>, file_size: u64) -> Result<Self, GgufError> {
        let architecture = values
            .text("general.architecture")
            .ok_or_else(|| GgufError::MissingKey("general.architecture".to_owned()))?;
        let key = |name: &str| format!("{architecture}.{name}");
        let required = |name: &str| {
            values.unsigned32(&key(name)).filter(|n| *n > 0).ok_or_else(|| GgufError::MissingKey(key(name)))
        };
        let context_length = required("context_length")?;
        let block_count = required("block_count")?;
        let embedding_length = required("embedding_length")?;
        if u64::from(block_count) > MAX_ARRAY {
            return Err(GgufError::Damaged(format!("{block_count} layers")));
        }
        let head_count = values.per_layer(&key("attention.head_count"), block_count).unwrap_or_default();
        let head_count_kv =
            values.per_layer(&key("attention.head_count_kv"), block_count).unwrap_or_else(|| head_count.clone());
        let most_heads = head_count.iter().copied().max().unwrap_or(0);
        let head_size = embedding_length.checked_div(most_heads).unwrap_or(0);
        let optional = |name: &str| values.unsigned32(&key(name));
        let expert_used_count = optional("expert_used_count").unwrap_or(0);
        let dense = values.per_layer(&key("feed_forward_length"), block_count).unwrap_or_default();
        let dense = dense.into_iter().max().unwrap_or(0);
        let sparse = optional("expert_feed_forward_length").unwrap_or(0).saturating_mul(expert_used_count);
        let elements = |tensor: &Tensor| tensor.dimensions.iter().product::<u64>();
        Ok(Self {
            version,
            name: values.text("general.name"),
            size_label: values.text("general.size_label"),
            quantisation: values.unsigned32("general.file_type").and_then(ggml::file_type_name).map(str::to_owned),
            context_length,
            block_count,
            embedding_length,
            feed_forward_length: dense.max(sparse),
            head_count,
            head_count_kv,
            key_length: optional("attention.key_length").unwrap_or(head_size),
            value_length: optional("attention.value_length").unwrap_or(head_size),
            vocabulary_size: values
                .length("tokenizer.ggml.tokens")
                .or_else(|| values.unsigned(&key("vocab_size")))
                .unwrap_or(0),
            chat_template: values.text("tokenizer.chat_template"),
            parameter_count: tensors.iter().map(elements).fold(0, u64::saturating_add),
            pooling: match values.unsigned(&key("pooling_type")) {
                Some(0) => Some(Pooling::None),
                Some(1) => Some(Pooling::Mean),
                Some(2) => Some(Pooling::Cls),
                Some(3) => Some(Pooling::Last),
                Some(4) => Some(Pooling::Rank),
                _ => None,
            },
            expert_count: optional("expert_count").unwrap_or(0),
            expert_used_count,
            sliding_window: optional("attention.sliding_window").filter(|n| *n > 0),
            max_sequence_tokens: values.unsigned32(MAX_SEQUENCE_KEY).filter(|n| *n > 0),
            tensor_bytes: tensors.iter().map(|t| t.bytes).fold(0, u64::saturating_add),
            tensors,
            file_size,
            architecture,
        })
    }
}

/// The metadata by key.
struct Values(HashMap<String, Value>);

impl Values {
    fn text(&self, key: &str) -> Option<String> {
        match self.0.get(key) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn unsigned(&self, key: &str) -> Option<u64> {
        self.0.get(key).and_then(Value::as_u64)
    }

    fn unsigned32(&self, key: &str) -> Option<u32> {
        self.unsigned(key).and_then(|n| u32::try_from(n).ok())
    }

    fn length(&self, key: &str) -> Option<u64> {
        match self.0.get(key) {
            Some(Value::Array(length)) => Some(*length),
            Some(Value::Integers(items)) => Some(items.len() as u64),
            _ => None,
        }
    }

    /// A value for each layer: an array as it is (filled up with its last element), a number for all of them.
    fn per_layer(&self, key: &str, layers: u32) -> Option<Vec<u32>> {
        let layers = layers as usize;
        match self.0.get(key)? {
            Value::Integers(items) => {
                let mut all: Vec<u32> = items.iter().map(|n| u32::try_from(*n).unwrap_or(0)).collect();
                let last = *all.last()?;
                all.resize(layers, last);
                Some(all)
            }
            value => Some(vec![u32::try_from(value.as_u64()?).ok()?; layers]),
        }
    }
}

fn read_value<R: Read + Seek>(reader: &mut Reader<R>, kind: u32, depth: u32) -> Result<Value, GgufError> {
    Ok(match kind {
        0 => Value::Unsigned(reader.bytes::<1>()?[0].into()),
        1 => Value::Signed(i8::from_le_bytes(reader.bytes()?).into()),
        2 => Value::Unsigned(u16::from_le_bytes(reader.bytes()?).into()),
        3 => Value::Signed(i16::from_le_bytes(reader.bytes()?).into()),
        4 => Value::Unsigned(reader.u32()?.into()),
        5 => Value::Signed(i32::from_le_bytes(reader.bytes()?).into()),
        6 => Value::Float(f32::from_le_bytes(reader.bytes()?).into()),
        7 => match reader.bytes::<1>()?[0] {
            0 => Value::Bool(false),
            1 => Value::Bool(true),
            other => return Err(GgufError::Damaged(format!("a truth value of {other}"))),
        },
        8 => match reader.string("metadata string", MAX_TEXT) {
            Ok(text) => Value::Text(text),
            Err(GgufError::TooLong { length, .. }) => {
                reader.skip(length)?;
                Value::LongText
            }
            Err(error) => return Err(error),
        },
        9 => read_array(reader, depth)?,
        10 => Value::Unsigned(reader.u64()?),
        11 => Value::Signed(i64::from_le_bytes(reader.bytes()?)),
        12 => Value::Float(f64::from_le_bytes(reader.bytes()?)),
        other => return Err(GgufError::Damaged(format!("metadata value of unknown type {other}"))),
    })
}

/// Bytes of a scalar of this metadata type.
fn scalar_size(kind: u32) -> Option<u64> {
    Some(match kind {
        0 | 1 | 7 => 1,
        2 | 3 => 2,
        4..=6 => 4,
        10..=12 => 8,
        _ => return None,
    })
}

fn read_array<R: Read + Seek>(reader: &mut Reader<R>, depth: u32) -> Result<Value, GgufError> {
    if depth >= MAX_DEPTH {
        return Err(GgufError::Damaged(format!("arrays nested more than {MAX_DEPTH} deep")));
    }
    let kind = reader.u32()?;
    let length = reader.u64()?;
    if let Some(size) = scalar_size(kind) {
        let bytes = reader.claim(length, size)?;
        let integers = !matches!(kind, 6 | 7 | 12);
        if !integers || length > MAX_ARRAY {
            reader.skip(bytes)?;
            return Ok(Value::Array(length));
        }
        let mut items = Vec::with_capacity(length as usize);
        for _ in 0..length {
            items.push(match read_value(reader, kind, depth)? {
                Value::Unsigned(n) => i64::try_from(n).unwrap_or(i64::MAX),
                Value::Signed(n) => n,
                other => return Err(GgufError::Damaged(format!("{other:?} in an array of integers"))),
            });
        }
        return Ok(Value::Integers(items));
    }
    match kind {
        8 => {
            reader.claim(length, 8)?;
            for _ in 0..length {
                reader.skip_string()?;
            }
        }
        9 => {
            reader.claim(length, 12)?;
            for _ in 0..length {
                read_array(reader, depth + 1)?;
            }
        }
        other => return Err(GgufError::Damaged(format!("array of unknown type {other}"))),
    }
    Ok(Value::Array(length))
}

fn read_tensor<R: Read + Seek>(reader: &mut Reader<R>, alignment: u64) -> Result<Tensor, GgufError> {
    let name = reader.string("tensor name", MAX_NAME)?;
    let count = reader.u32()?;
    if count > MAX_DIMENSIONS {
        return Err(GgufError::Damaged(format!("tensor `{name}` has {count} dimensions")));
    }
    let mut dimensions = Vec::with_capacity(count as usize);
    for _ in 0..count {
        dimensions.push(reader.u64()?);
    }
    let id = reader.u32()?;
    let offset = reader.u64()?;
    let Some(kind) = ggml::by_id(id) else {
        return Err(GgufError::UnknownType { tensor: name, id });
    };
    if !offset.is_multiple_of(alignment) {
        return Err(GgufError::Damaged(format!("tensor `{name}` lies at {offset}, not aligned to {alignment}")));
    }
    // Blocks run along the first dimension, so that one has to be made of whole blocks.
    let row = dimensions.first().copied().unwrap_or(1);
    let rows = dimensions.iter().skip(1).try_fold(1u64, |all, n| all.checked_mul(*n));
    let bytes = kind.size_of(row).zip(rows).and_then(|(row, rows)| row.checked_mul(rows));
    let elements = rows.and_then(|rows| rows.checked_mul(row));
    match (bytes, elements) {
        (Some(bytes), Some(_)) => Ok(Tensor { name, dimensions, kind, offset, bytes }),
        _ => Err(GgufError::Damaged(format!("tensor `{name}` of type {} has dimensions {dimensions:?}", kind.name))),
    }
}

fn check_extent<R: Read + Seek>(reader: &Reader<R>, tensors: &[Tensor], alignment: u64) -> Result<(), GgufError> {
    let data = reader.position().next_multiple_of(alignment);
    let mut expected = 0;
    for tensor in tensors {
        let end = data.checked_add(tensor.offset).and_then(|start| start.checked_add(tensor.bytes));
        let end = end.ok_or_else(|| GgufError::Damaged(format!("tensor `{}` ends nowhere", tensor.name)))?;
        expected = expected.max(end);
    }
    let actual = reader.length();
    if expected > actual { Err(GgufError::Truncated { expected, actual }) } else { Ok(()) }
}
