//! Tools: every MCP tool on the machine found, vetted, searchable by meaning, and callable through one door.

pub mod api;
mod daemon;
pub mod definition;
mod desk;
pub mod discover;
pub mod embedding;
mod finder;
pub mod gateway;
mod judge;
pub mod metrics;
pub mod offers;
pub mod policy;
pub mod port;
pub mod records;
mod registry;
pub mod routes;
pub mod search;
pub mod upstream;
pub mod vetting;

pub use daemon::{ServeError, serve};
