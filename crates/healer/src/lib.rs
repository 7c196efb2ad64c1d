//! The healer: detect, diagnose, remedy, verify, learn.

pub mod api;
mod book;
pub mod chain;
pub mod classify;
mod clock;
mod daemon;
pub mod decide;
mod desk;
pub mod diagnose;
mod driver;
pub mod facts;
pub mod fingerprint;
mod hands;
pub mod helper;
pub mod incident;
mod keeper;
pub mod learn;
pub mod measure;
mod metrics;
pub mod moment;
pub mod observe;
pub mod outlook;
mod page;
pub mod patterns;
mod probes;
pub mod remedy;
pub mod restraint;
mod routes;
mod scholar;
pub mod symptom;
pub mod timeline;
mod track;
pub mod ward;
mod wishes;

pub use daemon::{Alive, Healer, ServeError};
