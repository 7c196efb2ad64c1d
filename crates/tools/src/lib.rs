//! Tools: every MCP tool on the machine found, vetted, searchable by meaning, and callable through one door.

pub mod api;
pub mod definition;
pub mod offers;
pub mod port;
