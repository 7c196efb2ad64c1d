pub(crate) use crate::observe::active;
pub use crate::observe::{Context, Observed, Observer, Settings};
