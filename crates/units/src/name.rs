//! What a unit may be called: the name is also a file name and a word on the command line.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest name; leaves room for `.log.1` within the 255 bytes a file name may have.
const LENGTH_MAX: usize = 100;

/// The name of a unit: letters, digits and `-_.:@`, beginning with a letter or digit, at most 100 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitName(Arc<str>);

/// A text that cannot name a unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name a unit: use up to 100 letters, digits and -_.:@, beginning with a letter or digit")]
pub struct NameError {
    /// What was given.
    pub text: String,
}

impl UnitName {
    /// Takes a text as a unit's name; the error says what a name may hold.
    pub fn new(text: impl Into<String>) -> Result<Self, NameError> {
        let text = text.into();
        let fits = text.len() <= LENGTH_MAX
            && text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:@".contains(c));
        if fits { Ok(Self(text.into())) } else { Err(NameError { text }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UnitName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for UnitName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl TryFrom<String> for UnitName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl From<UnitName> for String {
    fn from(name: UnitName) -> Self {
        name.0.as_ref().to_owned()
    }
}

impl AsRef<str> for UnitName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_file_name() {
        for good in ["postgres", "llama-qwen2.5-coder:0.5b", "ralph@2", "A_1"] {
            assert!(good.parse::<UnitName>().is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "../x", "a/b", "-x", "a b", "ä", "x\n", &"x".repeat(101)] {
            assert!(bad.parse::<UnitName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_bad_name_does_not_come_in_through_json() {
        assert!(serde_json::from_str::<UnitName>("\"../etc\"").is_err());
    }
}
