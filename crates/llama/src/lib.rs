//! llama.cpp: GGUF metadata, server capabilities, options, memory, models.
//!
//! A model's way through this crate: [`catalog`] says where its file comes from, [`pull`] fetches it ([`convert`]
//! makes it, where it is published in another format), [`gguf`] reads what it is, [`engine`] finds the `llama-server` binary (built by [`install`] when there is none), [`server`] asks that
//! binary what it supports, [`memory`] predicts what serving will take, [`options`] turns the configuration into that
//! binary's flags.

pub mod catalog;
pub mod client;
mod command;
pub mod convert;
#[cfg(feature = "embed")]
pub mod embed;
pub mod engine;
pub mod gguf;
mod hex;
pub mod install;
mod lock;
pub mod machine;
pub mod memory;
pub mod options;
pub mod progress;
pub mod pull;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;

pub use command::CommandError;
