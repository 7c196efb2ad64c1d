//! Coding agents: the built-in one, and the confinement every run has.
//!
//! [`backend`] is the port every agent sits behind, [`builtin`] the agent made for small local models, [`exec`] runs a
//! command under limits (a check, an agent's program) and [`sandbox`] is what confines it.

pub mod backend;
pub mod builtin;
pub mod exec;

pub use lares_sandbox as sandbox;

pub use backend::{Backend, BackendError, CheckReport, Exchange, Outcome, Run, Usage};
