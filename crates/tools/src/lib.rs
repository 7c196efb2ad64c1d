//! Tools: every MCP tool on the machine found, vetted, searchable by meaning, and callable through one door.

pub mod api;
pub mod definition;
pub mod discover;
pub mod gateway;
pub mod metrics;
pub mod offers;
pub mod policy;
pub mod port;
pub mod records;
pub mod routes;
pub mod search;
pub mod upstream;
pub mod vetting;
