//! The JSON Schema of the tree, and what it tells about a key: whether it exists, what it takes, its nearest name.

use std::sync::LazyLock;

use serde_json::Value;

use crate::tree::Config;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(Config).to_value());

/// The JSON Schema (2020-12) of a configuration file.
pub fn json_schema() -> &'static Value {
    &SCHEMA
}

/// What a key takes, as far as reading it from plain text needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Integer,
    Boolean,
    List,
    Table,
}

/// A place in the schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Node(&'static Value);

impl Node {
    pub(crate) fn root() -> Self {
        Self(&SCHEMA)
    }

    /// Follows `$ref`, and the one branch of an `anyOf` that is not `null` (an `Option`).
    fn resolved(self) -> &'static Value {
        let mut node = self.0;
        // The schema is finite and not recursive; the bound only keeps a mistake in it from hanging.
        for _ in 0..8 {
            if let Some(name) = node.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix("#/$defs/")) {
                node = &SCHEMA["$defs"][name];
            } else if let Some(branches) = node.get("anyOf").and_then(Value::as_array) {
                match branches.iter().find(|b| b.get("type").and_then(Value::as_str) != Some("null")) {
                    Some(branch) => node = branch,
                    None => break,
                }
            } else {
                break;
            }
        }
        node
    }

    /// The schema of a key of this table, `None` when there is no such key.
    pub(crate) fn child(self, key: &str) -> Option<Self> {
        let node = self.resolved();
        node.get("properties")
            .and_then(|properties| properties.get(key))
            .or_else(|| node.get("additionalProperties").filter(|schema| schema.is_object()))
            .map(Self)
    }

    /// Names of the keys this table has; empty for a table with names of the user's choice.
    pub(crate) fn keys(self) -> Vec<&'static str> {
        let properties = self.resolved().get("properties").and_then(Value::as_object);
        properties.map(|p| p.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    pub(crate) fn kind(self) -> Kind {
        let node = self.resolved();
        let name = match node.get("type") {
            Some(Value::String(name)) => name.as_str(),
            // A size is `["string", "integer"]`, an optional number `["integer", "null"]`: the first one leads.
            Some(Value::Array(names)) => names.first().and_then(Value::as_str).unwrap_or("string"),
            _ => "string",
        };
        match name {
            "integer" | "number" => Kind::Integer,
            "boolean" => Kind::Boolean,
            "array" => Kind::List,
            "object" => Kind::Table,
            _ => Kind::Text,
        }
    }
}

/// The known name nearest to a mistyped one, when it is near enough to be meant.
pub(crate) fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::jaro_winkler(wrong, name), name))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// What to say about a key that does not exist.
pub(crate) fn unknown_key(parent: Node, key: &str) -> String {
    let known = parent.keys();
    match nearest(key, known.iter().copied()) {
        Some(name) => format!("there is no such key; did you mean `{name}`?"),
        None => format!("there is no such key; here one can set {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_a_description() {
        fn walk(path: &str, node: Node, missing: &mut Vec<String>) {
            for key in node.keys() {
                let child = node.child(key).expect("a listed key exists");
                let described = child.0.get("description").is_some() || child.resolved().get("description").is_some();
                if !described {
                    missing.push(format!("{path}{key}"));
                }
                walk(&format!("{path}{key}."), child, missing);
            }
        }
        let mut missing = Vec::new();
        walk("", Node::root(), &mut missing);
        assert_eq!(missing, Vec::<String>::new());
    }

    #[test]
    fn kinds_follow_references_and_options() {
        let at = |path: &str| path.split('.').try_fold(Node::root(), Node::child).map(Node::kind);
        assert_eq!(at("models.coder.gpu_layers"), Some(Kind::Integer));
        assert_eq!(at("models.coder.numa"), Some(Kind::Text));
        assert_eq!(at("llama.memory_budget"), Some(Kind::Text));
        assert_eq!(at("agents.sandbox.read"), Some(Kind::List));
        assert_eq!(at("models.coder.embeddings"), Some(Kind::Boolean));
        assert_eq!(at("ralph"), Some(Kind::Table));
        assert_eq!(at("ralph.nothing"), None);
    }
}
