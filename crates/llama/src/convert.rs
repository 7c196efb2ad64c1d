//! Makes GGUF files of models that are published in other formats. The same files always give the same bytes, so the
//! result has a known hash, as a file that is fetched.

use std::io::Write;

use serde::{Deserialize, Serialize};

mod bert;
mod safetensors;
mod weights;

use crate::gguf::writer;
pub use weights::Weights;

/// Why no GGUF file was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A file that is not what it should be.
    #[error("the published files are damaged: {0}")]
    Damaged(String),
    /// A kind of model that cannot be converted here.
    #[error("it cannot be converted: {0}")]
    Unsupported(String),
    /// The result could not be written.
    #[error("cannot write the model: {0}")]
    Io(#[from] std::io::Error),
}

/// How published files become a GGUF file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Conversion {
    /// An encoder of sentences of the BERT family, uncased, that takes the mean of all tokens: `config.json`,
    /// `model.safetensors` and `vocab.txt`, in this order.
    BertSentences {
        /// Tokens of a text it was trained on, with the first and the last; the rest of a text is left out.
        max_tokens: u32,
        /// What its matrices are stored as.
        weights: Weights,
    },
}

impl Conversion {
    /// The files it is made from, in the order [`Conversion::run`] takes them.
    pub fn inputs(&self) -> &'static [&'static str] {
        match self {
            Self::BertSentences { .. } => &["config.json", "model.safetensors", "vocab.txt"],
        }
    }

    /// Writes the model called `name`, made from `files`, to `out`. Blocks.
    pub fn run(&self, name: &str, files: &[Vec<u8>], out: &mut impl Write) -> Result<(), ConvertError> {
        match (self, files) {
            (Self::BertSentences { max_tokens, weights }, [config, tensors, vocabulary]) => {
                let (entries, tensors) = bert::convert(config, tensors, vocabulary, name, *max_tokens, *weights)?;
                writer::write(out, &entries, &tensors)?;
            }
            _ => return Err(ConvertError::Damaged(format!("{} files instead of {:?}", files.len(), self.inputs()))),
        }
        Ok(())
    }
}
