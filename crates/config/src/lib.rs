//! The one typed configuration tree of Lares: defaults < file < environment < flags.
//!
//! Every key is typed and described here, so the JSON Schema, the NixOS options and the error messages have one source.

pub mod duration;
mod error;
mod load;
pub mod ports;
mod schema;
mod show;
pub mod size;
mod tree;
mod validate;

pub use error::{Error, Problem};
pub use load::{Loaded, Sources};
pub use schema::json_schema;
pub use show::{Entry, mask_password};
pub use size::ByteSize;
pub use tree::*;
