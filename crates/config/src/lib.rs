//! The one typed configuration tree of Lares: defaults < file < environment < flags.
//!
//! Every key is typed and described here, so the JSON Schema, the NixOS options and the error messages have one source.

pub mod duration;
pub mod size;
mod tree;

pub use size::ByteSize;
pub use tree::*;
