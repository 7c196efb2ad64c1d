//! What every HTTP surface of Lares shares: keys, roles, errors, health, metrics; and how one asks another.
//!
//! A daemon opens the [`Gate`] once, hands its routes with the role they need to a [`Surface`], and serves that until
//! its shutdown token fires. Nothing is served without keys, except on a Unix socket that only its owner can reach.

mod auth;
mod client;
mod connections;
mod host;
mod json;
mod keyring;
mod metrics;
mod openapi;
mod problem;
mod ready;
mod request;
pub mod secret;
mod surface;
#[cfg(test)]
mod testing;

pub use auth::{Caller, Gate, GateError, Require, Required};
pub use client::{Client, ClientError};
pub use connections::{Bound, SurfaceError};
pub use json::Json;
pub use lares_store::keys::Role;
pub use metrics::Metrics;
pub use problem::{FieldError, Problem, chain};
pub use request::RequestId;
pub use secret::{Secret, SecretError};
pub use surface::{Owner, Surface};
