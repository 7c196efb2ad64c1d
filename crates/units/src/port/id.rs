//! What identifies a unit and one run of it.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::name::UnitName;

/// Longest name, as systemd has it.
const LENGTH_MAX: usize = 255;

/// A unit's full name at its manager: `postgresql.service` with systemd, `postgres` in `lares up`.
///
/// Up to 255 letters, digits and `:-_.\@`, which is what systemd allows; so it is no path, option or pattern anywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct UnitId(Arc<str>);

/// A text that names no unit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name a unit: use up to 255 letters, digits and :-_.\\@")]
pub struct UnitIdError {
    /// What was given.
    pub text: String,
}

impl UnitId {
    /// Takes a text as a unit's name.
    pub fn new(text: impl Into<String>) -> Result<Self, UnitIdError> {
        let text = text.into();
        let fits = (1..=LENGTH_MAX).contains(&text.len())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || ":-_.\\@".contains(c))
            && !text.chars().all(|c| c == '.');
        if fits { Ok(Self(text.into())) } else { Err(UnitIdError { text }) }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What kind of unit it is: `service`, `socket`, …; none for a name without a dot.
    pub fn kind(&self) -> Option<&str> {
        self.0.rsplit_once('.').map(|(_, kind)| kind)
    }
}

impl fmt::Display for UnitId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for UnitId {
    type Err = UnitIdError;

    fn from_str(text: &str) -> Result<Self, UnitIdError> {
        Self::new(text)
    }
}

impl TryFrom<String> for UnitId {
    type Error = UnitIdError;

    fn try_from(text: String) -> Result<Self, UnitIdError> {
        Self::new(text)
    }
}

impl From<UnitId> for String {
    fn from(id: UnitId) -> Self {
        id.0.as_ref().to_owned()
    }
}

impl From<&UnitName> for UnitId {
    /// Every name that the supervisor takes is one that systemd would take.
    fn from(name: &UnitName) -> Self {
        Self(name.as_str().into())
    }
}

impl AsRef<str> for UnitId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

/// One run of a unit; every start gets a new one. Reads and writes as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct InvocationId([u8; 16]);

impl InvocationId {
    /// The id out of its 16 bytes; none when there are not 16 or all are zero, which stands for "never started".
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let bytes: [u8; 16] = bytes.try_into().ok()?;
        (bytes != [0; 16]).then_some(Self(bytes))
    }
}

impl fmt::Display for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for InvocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for InvocationId {
    type Err = UnitIdError;

    fn from_str(text: &str) -> Result<Self, UnitIdError> {
        let refuse = || UnitIdError { text: text.to_owned() };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(refuse());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_| refuse())?;
        Self::from_bytes(&number.to_be_bytes()).ok_or_else(refuse)
    }
}

impl TryFrom<String> for InvocationId {
    type Error = UnitIdError;

    fn try_from(text: String) -> Result<Self, UnitIdError> {
        text.parse()
    }
}

impl From<InvocationId> for String {
    fn from(id: InvocationId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_that_systemd_takes_are_taken_and_no_others() {
        for good in ["postgresql@15-main.service", "-.mount", "dev-disk-by\\x2duuid.device", "llama", "a:b_c.socket"] {
            assert_eq!(UnitId::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "../x", "a/b.service", "*.service", "a b", "ä.service", "x\n", &"x".repeat(256)] {
            assert!(UnitId::new(bad).is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<UnitId>("\"../etc\"").is_err());
        assert_eq!(UnitId::new("a.b.timer").unwrap().kind(), Some("timer"));
    }

    #[test]
    fn an_invocation_goes_through_text() {
        let text = "00ff102030405060708090a0b0c0d0e0";
        let id: InvocationId = text.parse().unwrap();
        assert_eq!(id.to_string(), text);
        for bad in ["", "0", &"0".repeat(32), "+0ff102030405060708090a0b0c0d0e0", &"g".repeat(32)] {
            assert!(bad.parse::<InvocationId>().is_err(), "{bad}");
        }
    }
}
