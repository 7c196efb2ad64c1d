//! What is wrong with a configuration, all of it at once, each with where it stands and what to do.

use std::fmt;
use std::path::PathBuf;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML; the message shows the line.
    #[error("{path} is not valid TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected there.
        message: String,
    },
    /// Keys or values that cannot be used.
    #[error("{}", list(.0))]
    Invalid(Vec<Problem>),
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Path of the key, such as `ralph.max_iterations`.
    pub key: String,
    /// What is wrong with it and what to write instead.
    pub message: String,
    /// Where it was set: a file, a variable, a flag; empty when it is a default.
    pub origin: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.message)?;
        if !self.origin.is_empty() {
            write!(f, " (set in {})", self.origin)?;
        }
        Ok(())
    }
}

fn list(problems: &[Problem]) -> String {
    match problems {
        [one] => format!("configuration: {one}"),
        many => many
            .iter()
            .fold(format!("configuration: {} problems", many.len()), |text, problem| format!("{text}\n  - {problem}")),
    }
}
