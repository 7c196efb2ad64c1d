//! The healer: detect, diagnose, remedy, verify, learn.

pub mod chain;
pub mod classify;
pub mod decide;
mod desk;
pub mod diagnose;
pub mod facts;
pub mod fingerprint;
pub mod incident;
pub mod learn;
pub mod measure;
pub mod moment;
pub mod observe;
pub mod outlook;
pub mod patterns;
pub mod remedy;
pub mod restraint;
pub mod symptom;
pub mod timeline;
pub mod ward;
