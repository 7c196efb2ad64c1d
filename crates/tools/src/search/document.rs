//! What of a definition is searched, and what of it is embedded.

use serde_json::Value;

use super::text;
use crate::definition::{Definition, ToolId};

/// Most parameters of a tool that are looked at, nested ones included.
const PARAMETERS: usize = 64;
/// Deepest nesting of parameters.
const DEPTH: usize = 4;
/// Most bytes of a parameter's description.
const PARAMETER_TEXT: usize = 300;
/// Most bytes of a tool's description.
const DESCRIPTION: usize = 8000;
/// Most bytes of a text to embed: more than the 256 word pieces that all-MiniLM-L6-v2 takes.
const EMBEDDED: usize = 2000;

/// An argument of a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// What the schema says of it; may be empty.
    pub description: String,
}

/// A tool as it is searched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document<K = ToolId> {
    /// What it goes by in the index.
    pub id: K,
    /// Name of its server; may be empty.
    pub server: String,
    /// Its name at the server.
    pub name: String,
    /// Its name for people; may be empty.
    pub title: String,
    /// What it says it does; may be empty.
    pub description: String,
    /// Its arguments, nested ones included.
    pub parameters: Vec<Parameter>,
    /// What it is marked with.
    pub tags: Vec<String>,
    /// The state it is in, in the words of whoever filters by it; may be empty.
    pub state: String,
}

impl<K> Document<K> {
    /// The tool of `definition`, without tags and without a state.
    pub fn new(id: K, server: &str, definition: &Definition) -> Self {
        let description = definition.description.as_deref().unwrap_or_default();
        let mut parameters = Vec::new();
        collect(&definition.input_schema, 0, &mut parameters);
        Self {
            id,
            server: server.to_owned(),
            name: definition.name.clone(),
            title: definition.title.clone().unwrap_or_default(),
            description: text::cut(description.trim(), DESCRIPTION).to_owned(),
            parameters,
            tags: Vec::new(),
            state: String::new(),
        }
    }

    /// The texts whose vectors, added and brought to unit length ([`super::dense::mean`]), stand for the tool.
    ///
    /// A name says in few words what a long description says in many, and parameters tell apart what is described
    /// alike: on every development set the three together found more than any one text with all of it.
    pub fn texts_to_embed(&self) -> Vec<String> {
        let name = text::spoken(&self.name);
        let mut whole = format!("{name}: {}", self.description);
        for parameter in &self.parameters {
            if whole.len() >= EMBEDDED {
                break;
            }
            whole.push(' ');
            whole.push_str(&text::spoken(&parameter.name));
            whole.push_str(": ");
            whole.push_str(&parameter.description);
        }
        let whole = text::cut(&whole, EMBEDDED).to_owned();
        let first = text::cut(text::first_sentence(&self.description), EMBEDDED).to_owned();
        let first = if first.is_empty() { name.clone() } else { first };
        vec![whole, name, first]
    }
}

/// Adds the parameters of a JSON Schema, foreign and possibly nested without end.
fn collect(schema: &Value, depth: usize, found: &mut Vec<Parameter>) {
    if depth == DEPTH {
        return;
    }
    for (name, what) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        if found.len() == PARAMETERS {
            return;
        }
        let description = what.get("description").and_then(Value::as_str).unwrap_or_default();
        let description = text::cut(description, PARAMETER_TEXT).to_owned();
        found.push(Parameter { name: text::cut(name, PARAMETER_TEXT).to_owned(), description });
        collect(what, depth + 1, found);
    }
    if let Some(items) = schema.get("items") {
        collect(items, depth + 1, found);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition(schema: Value) -> Definition {
        Definition {
            name: "sendMail".to_owned(),
            title: None,
            description: Some("Sends a mail. Be careful.".to_owned()),
            input_schema: schema,
            output_schema: None,
            annotations: None,
        }
    }

    #[test]
    fn nested_parameters_are_found() {
        let schema = json!({"properties": {"to": {"type": "array", "items": {"properties": {"address": {"description": "where"}}}}}});
        let document = Document::new("a", "mail", &definition(schema));
        let names: Vec<_> = document.parameters.iter().map(|parameter| parameter.name.as_str()).collect();
        assert_eq!(names, ["to", "address"]);
        assert_eq!(
            document.texts_to_embed(),
            ["send mail: Sends a mail. Be careful. to:  address: where", "send mail", "Sends a mail."]
        );
    }

    #[test]
    fn hostile_schemas_are_bounded() {
        let mut deep = json!({});
        for _ in 0..500 {
            deep = json!({"properties": {"x": deep}});
        }
        assert_eq!(Document::new("a", "s", &definition(deep)).parameters.len(), DEPTH);
        let many: serde_json::Map<String, Value> = (0..5000).map(|i| (format!("p{i}"), json!(3))).collect();
        let document = Document::new("a", "s", &definition(json!({ "properties": many })));
        assert_eq!(document.parameters.len(), PARAMETERS);
        assert!(document.texts_to_embed().iter().all(|text| text.len() <= EMBEDDED));
    }
}
