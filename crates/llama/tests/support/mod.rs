//! What several test files share: a writer of GGUF files.

#![allow(dead_code, clippy::unwrap_used)]

use lares_llama::gguf::ggml;

/// A metadata value to write.
#[derive(Debug, Clone)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    Text(String),
    U64(u64),
    I64(i64),
    F64(f64),
    Array(u32, Vec<Value>),
}

impl Value {
    pub fn kind(&self) -> u32 {
        match self {
            Self::U8(_) => 0,
            Self::I8(_) => 1,
            Self::U16(_) => 2,
            Self::I16(_) => 3,
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::Array(..) => 9,
            Self::U64(_) => 10,
            Self::I64(_) => 11,
            Self::F64(_) => 12,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U8(n) => out.push(*n),
            Self::I8(n) => out.extend(n.to_le_bytes()),
            Self::U16(n) => out.extend(n.to_le_bytes()),
            Self::I16(n) => out.extend(n.to_le_bytes()),
            Self::U32(n) => out.extend(n.to_le_bytes()),
            Self::I32(n) => out.extend(n.to_le_bytes()),
            Self::F32(n) => out.extend(n.to_le_bytes()),
            Self::Bool(b) => out.push(u8::from(*b)),
            Self::Text(text) => string(out, text),
            Self::U64(n) => out.extend(n.to_le_bytes()),
            Self::I64(n) => out.extend(n.to_le_bytes()),
            Self::F64(n) => out.extend(n.to_le_bytes()),
            Self::Array(kind, items) => {
                out.extend(kind.to_le_bytes());
                out.extend((items.len() as u64).to_le_bytes());
                items.iter().for_each(|item| item.write(out));
            }
        }
    }
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// A tensor to write: name, dimensions, number of its type.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    pub dimensions: Vec<u64>,
    pub kind: u32,
}

impl Tensor {
    pub fn bytes(&self) -> u64 {
        ggml::by_id(self.kind).unwrap().size_of(self.dimensions.iter().product()).unwrap()
    }
}

/// A file to write.
#[derive(Debug, Clone)]
pub struct File {
    pub version: u32,
    pub alignment: u64,
    pub entries: Vec<(String, Value)>,
    pub tensors: Vec<Tensor>,
}

impl File {
    /// The smallest file that is a language model.
    pub fn minimal() -> Self {
        let number = |key: &str, n| (format!("tiny.{key}"), Value::U32(n));
        Self {
            version: 3,
            alignment: 32,
            entries: vec![
                ("general.architecture".to_owned(), Value::Text("tiny".to_owned())),
                number("context_length", 512),
                number("block_count", 3),
                number("embedding_length", 64),
                number("attention.head_count", 4),
            ],
            tensors: vec![Tensor { name: "blk.0.attn_q.weight".to_owned(), dimensions: vec![64, 64], kind: 8 }],
        }
    }

    /// The file's bytes, and where its last tensor ends.
    pub fn write(&self) -> (Vec<u8>, usize) {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.entries.len() as u64 + 1).to_le_bytes());
        let alignment = Value::U32(u32::try_from(self.alignment).unwrap());
        for (key, value) in self.entries.iter().chain([&("general.alignment".to_owned(), alignment)]) {
            string(&mut out, key);
            out.extend(value.kind().to_le_bytes());
            value.write(&mut out);
        }
        let mut offset = 0u64;
        let mut end = 0;
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend(u32::try_from(tensor.dimensions.len()).unwrap().to_le_bytes());
            tensor.dimensions.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(offset.to_le_bytes());
            end = offset + tensor.bytes();
            offset = end.next_multiple_of(self.alignment);
        }
        if self.tensors.is_empty() {
            let end = out.len();
            return (out, end);
        }
        let data = out.len().next_multiple_of(usize::try_from(self.alignment).unwrap());
        let end = data + usize::try_from(end).unwrap();
        out.resize(end, 0);
        (out, end)
    }
}
