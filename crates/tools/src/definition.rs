//! What a tool server says of a tool, and the names things go by.
//!
//! A definition is foreign text: nothing in it is believed, it is only kept, compared by hash and vetted.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Longest name of a tool server, in bytes: with a tool's name behind it, it must fit [`MAX_TOOL_ID`].
pub const MAX_SERVER_NAME: usize = 32;
/// Longest name of a tool, in bytes (MCP 2025-11-25, server/tools: 1 to 128 characters).
pub const MAX_TOOL_NAME: usize = 128;
/// Longest id of a tool, in bytes.
pub const MAX_TOOL_ID: usize = MAX_SERVER_NAME + SEPARATOR.len() + MAX_TOOL_NAME;
/// Stands between the server's name and the tool's in an id; no server's name contains it.
pub const SEPARATOR: &str = "__";

/// Why a name is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Not a name of a server.
    #[error(
        "`{0}` cannot name a tool server; use 1 to 32 of a-z, 0-9, `-`, `_` and `.`, beginning with a letter or digit, without `__`"
    )]
    Server(String),
    /// Not a name of a tool.
    #[error("`{0}` cannot name a tool; MCP allows 1 to 128 of A-Z, a-z, 0-9, `_`, `-` and `.`")]
    Tool(String),
    /// Not an id of a tool.
    #[error("`{0}` is not the id of a tool; an id is SERVER__TOOL, for example `git__git_status`")]
    Id(String),
}

/// Name of a tool server, as the configuration gives it or discovery derived it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServerName(String);

impl ServerName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A name made from any text: what is not allowed becomes `-`. `None`: nothing of it can be kept.
    pub fn from_any(text: &str) -> Option<Self> {
        let mut name = String::new();
        for c in text.chars().flat_map(char::to_lowercase) {
            let c = if c.is_ascii_lowercase() || c.is_ascii_digit() || c == '.' { c } else { '-' };
            if c.is_ascii_alphanumeric() || !(name.is_empty() || name.ends_with(['-', '.'])) {
                name.push(c);
            }
            if name.len() == MAX_SERVER_NAME {
                break;
            }
        }
        Self::from_str(name.trim_end_matches(['-', '.'])).ok()
    }
}

impl FromStr for ServerName {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        let begins = s.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
        // A name that ends with `_` would make `a_` + `__b` and `a` + `___b` the same id.
        if begins && s.len() <= MAX_SERVER_NAME && s.chars().all(allowed) && !s.contains(SEPARATOR) && !s.ends_with('_')
        {
            Ok(Self(s.to_owned()))
        } else {
            Err(NameError::Server(s.to_owned()))
        }
    }
}

impl TryFrom<String> for ServerName {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<ServerName> for String {
    fn from(name: ServerName) -> Self {
        name.0
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// Id of a tool in this house: `SERVER__TOOL`, which is also its name at the gateway.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ToolId {
    text: String,
    server: usize,
}

impl ToolId {
    /// The id of tool `name` of `server`.
    ///
    /// # Errors
    /// When `name` is not one that MCP allows.
    pub fn new(server: &ServerName, name: &str) -> Result<Self, NameError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.len() > MAX_TOOL_NAME || !name.chars().all(allowed) {
            return Err(NameError::Tool(name.to_owned()));
        }
        Ok(Self { text: format!("{server}{SEPARATOR}{name}"), server: server.as_str().len() })
    }

    /// The bounds between which all ids of a server lie, and no other.
    pub fn bounds(server: &ServerName) -> std::ops::Range<Self> {
        let at = |end: &str| Self { text: format!("{server}{SEPARATOR}{end}"), server: server.as_str().len() };
        // Beyond every character of a tool's name.
        at("")..at("\u{7f}")
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The server's part.
    pub fn server(&self) -> ServerName {
        ServerName(self.text[..self.server].to_owned())
    }

    /// The tool's name at its server.
    pub fn name(&self) -> &str {
        &self.text[self.server + SEPARATOR.len()..]
    }
}

impl FromStr for ToolId {
    type Err = NameError;

    fn from_str(s: &str) -> Result<Self, NameError> {
        let wrong = || NameError::Id(s.to_owned());
        // No server's name contains the separator or ends with half of it, so the first one divides.
        let (server, name) = s.split_once(SEPARATOR).ok_or_else(wrong)?;
        let server = server.parse().map_err(|_| wrong())?;
        Self::new(&server, name).map_err(|_| wrong())
    }
}

impl TryFrom<String> for ToolId {
    type Error = NameError;

    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<ToolId> for String {
    fn from(id: ToolId) -> Self {
        id.text
    }
}

impl fmt::Display for ToolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

/// SHA-256 of a definition, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DefinitionHash(String);

impl DefinitionHash {
    /// The digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// A hash as it was stored.
    pub fn from_stored(digits: String) -> Self {
        Self(digits)
    }
}

impl fmt::Display for DefinitionHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// What a server says of one of its tools, as it came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// Name at the server.
    pub name: String,
    /// Name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// What it says it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// JSON Schema of the arguments.
    #[serde(default = "empty_object")]
    pub input_schema: Value,
    /// JSON Schema of the structured result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_schema: Option<Value>,
    /// Hints such as `readOnlyHint`; a server may lie in them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Value>,
}

fn empty_object() -> Value {
    Value::Object(serde_json::Map::new())
}

impl Definition {
    /// SHA-256 over all of it, the same whatever the order of keys in the schemas.
    pub fn hash(&self) -> DefinitionHash {
        let mut hasher = Sha256::new();
        let texts = [Some(self.name.as_str()), self.title.as_deref(), self.description.as_deref()];
        for text in texts {
            match text {
                Some(text) => {
                    hasher.update([1]);
                    hasher.update((text.len() as u64).to_be_bytes());
                    hasher.update(text);
                }
                None => hasher.update([0]),
            }
        }
        for schema in [Some(&self.input_schema), self.output_schema.as_ref(), self.annotations.as_ref()] {
            match schema {
                Some(schema) => digest(schema, &mut hasher),
                None => hasher.update([0]),
            }
        }
        DefinitionHash(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }
}

/// Feeds a JSON value to the hasher so that two values give the same bytes exactly if they are equal.
fn digest(value: &Value, hasher: &mut Sha256) {
    match value {
        Value::Object(map) => {
            let mut keys: Vec<_> = map.keys().collect();
            keys.sort_unstable();
            hasher.update(b"{");
            hasher.update((keys.len() as u64).to_be_bytes());
            for key in keys {
                hasher.update((key.len() as u64).to_be_bytes());
                hasher.update(key);
                digest(&map[key], hasher);
            }
        }
        Value::Array(items) => {
            hasher.update(b"[");
            hasher.update((items.len() as u64).to_be_bytes());
            items.iter().for_each(|item| digest(item, hasher));
        }
        Value::String(text) => {
            hasher.update(b"\"");
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
        other => {
            let text = other.to_string();
            hasher.update(b"=");
            hasher.update((text.len() as u64).to_be_bytes());
            hasher.update(text);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn definition() -> Definition {
        Definition {
            name: "read".to_owned(),
            title: None,
            description: Some("Reads a file".to_owned()),
            input_schema: json!({"type": "object", "properties": {"path": {"type": "string"}, "n": {"type": "number"}}}),
            output_schema: None,
            annotations: None,
        }
    }

    #[test]
    fn the_order_of_keys_does_not_change_the_hash_and_anything_else_does() {
        let one = definition();
        let mut two = definition();
        two.input_schema =
            json!({"properties": {"n": {"type": "number"}, "path": {"type": "string"}}, "type": "object"});
        assert_eq!(one.hash(), two.hash());
        let changes: [fn(&mut Definition); 6] = [
            |d| d.name.push('s'),
            |d| d.title = Some(String::new()),
            |d| d.description = None,
            |d| d.input_schema["properties"]["path"]["type"] = json!("number"),
            |d| d.output_schema = Some(json!({})),
            |d| d.annotations = Some(json!({"readOnlyHint": true})),
        ];
        for change in changes {
            let mut other = definition();
            change(&mut other);
            assert_ne!(one.hash(), other.hash(), "{other:?}");
        }
    }

    #[test]
    fn an_id_divides_at_the_first_separator() {
        let id: ToolId = "git__git__status".parse().unwrap();
        assert_eq!((id.server().as_str(), id.name()), ("git", "git__status"));
        for wrong in ["git", "__x", "git__", "Git__x", "git__a b", "a___b__c d"] {
            assert!(wrong.parse::<ToolId>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn any_text_gives_a_name_or_none() {
        let name = |text| ServerName::from_any(text).map(String::from);
        assert_eq!(name("Claude Code: My Server!").as_deref(), Some("claude-code-my-server"));
        assert_eq!(name("__a__b__").as_deref(), Some("a-b"));
        assert_eq!(name("—"), None);
    }

    proptest! {
        #[test]
        fn what_from_any_gives_is_a_name(text in ".{0,60}") {
            if let Some(name) = ServerName::from_any(&text) {
                prop_assert_eq!(name.as_str().parse::<ServerName>(), Ok(name));
            }
        }

        #[test]
        fn an_id_comes_back_from_its_text(server in "[a-z0-9][a-z0-9.-]{0,20}", tool in "[A-Za-z0-9_.-]{1,40}") {
            let server: ServerName = server.parse().unwrap();
            let id = ToolId::new(&server, &tool).unwrap();
            let back: ToolId = id.as_str().parse().unwrap();
            prop_assert_eq!(&back.server(), &server);
            prop_assert!(ToolId::bounds(&server).contains(&id));
            let longer = ServerName(format!("{server}x"));
            prop_assert!(!ToolId::bounds(&longer).contains(&id));
            prop_assert_eq!(back.name(), tool);
        }
    }
}
