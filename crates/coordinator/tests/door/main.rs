//! The door between stub upstreams that misbehave on demand and clients that do too.
#![allow(clippy::unwrap_used)]

mod limits;
mod llama;
mod openai;
mod retries;
mod rig;
mod routing;
mod served;
mod streams;
mod stub;
