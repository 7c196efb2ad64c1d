//! The texts of a definition, and how likely a person is to read each.

use serde_json::Value;

use super::{Findings, Rule, Severity};
use crate::definition::Definition;

/// What a text is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The tool's name.
    Name,
    /// The tool's title, a parameter's title.
    Title,
    /// The tool's description.
    Description,
    /// A parameter's name.
    ParameterName,
    /// A parameter's description.
    ParameterDescription,
    /// A place that reaches the model and that no client shows: defaults, enums, examples, comments, unknown keywords.
    Unread,
}

/// One text and where it stands.
#[derive(Debug)]
pub(super) struct Text<'a> {
    pub field: String,
    pub role: Role,
    pub raw: &'a str,
}

/// Name of a member of `field`, as a JSON pointer writes it.
pub(super) fn child(field: &str, key: &str) -> String {
    // A key may be as long as a text; a path of such keys would grow with their product.
    const MAX_KEY: usize = 64;
    let key: String = key.chars().take(MAX_KEY).collect();
    format!("{field}/{}", key.replace('~', "~0").replace('/', "~1"))
}

/// All texts of a definition within bounds.
pub(super) fn texts(definition: &Definition) -> Vec<Text<'_>> {
    let mut texts = vec![Text { field: "name".to_owned(), role: Role::Name, raw: &definition.name }];
    if let Some(raw) = definition.title.as_deref() {
        texts.push(Text { field: "title".to_owned(), role: Role::Title, raw });
    }
    if let Some(raw) = definition.description.as_deref() {
        texts.push(Text { field: "description".to_owned(), role: Role::Description, raw });
    }
    schema("input_schema", &definition.input_schema, Place::Schema, &mut texts);
    if let Some(output) = &definition.output_schema {
        schema("output_schema", output, Place::Schema, &mut texts);
    }
    if let Some(annotations) = &definition.annotations {
        schema("annotations", annotations, Place::Annotations, &mut texts);
    }
    texts
}

/// What the value under a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Schema,
    Properties,
    Data,
    Annotations,
}

/// Keywords whose value is a schema or a list of them (JSON Schema 2020-12, core and applicator vocabularies).
const SCHEMAS: &[&str] = &[
    "items",
    "prefixItems",
    "additionalProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "additionalItems",
    "contains",
    "propertyNames",
    "not",
    "if",
    "then",
    "else",
    "allOf",
    "anyOf",
    "oneOf",
    "contentSchema",
];
/// Keywords whose value maps names to schemas.
const MAPS: &[&str] = &["properties", "patternProperties", "$defs", "definitions", "dependentSchemas"];
/// Keywords whose text no one writes prose into: what they refer to, or the draft they follow.
const REFERENCES: &[&str] = &["$ref", "$schema", "$id", "$anchor", "$dynamicRef", "$dynamicAnchor"];

fn schema<'a>(field: &str, value: &'a Value, place: Place, texts: &mut Vec<Text<'a>>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = child(field, key);
                if place == Place::Properties {
                    texts.push(Text { field: path.clone(), role: Role::ParameterName, raw: key });
                    schema(&path, value, Place::Schema, texts);
                    continue;
                }
                let role = match (place, key.as_str()) {
                    (Place::Schema, "description") => Role::ParameterDescription,
                    (Place::Schema | Place::Annotations, "title") => Role::Title,
                    _ => Role::Unread,
                };
                if let Value::String(raw) = value {
                    texts.push(Text { field: path, role, raw });
                    continue;
                }
                let inner = if place != Place::Schema {
                    Place::Data
                } else if SCHEMAS.contains(&key.as_str()) {
                    Place::Schema
                } else if MAPS.contains(&key.as_str()) {
                    Place::Properties
                } else {
                    Place::Data
                };
                if place != Place::Schema
                    || (inner == Place::Data && !matches!(value, Value::Bool(_) | Value::Number(_)))
                {
                    // The key itself reaches the model too.
                    texts.push(Text { field: path.clone(), role: Role::ParameterName, raw: key });
                }
                schema(&path, value, inner, texts);
            }
        }
        Value::Array(items) => {
            for (at, item) in items.iter().enumerate() {
                schema(&child(field, &at.to_string()), item, place, texts);
            }
        }
        Value::String(raw) => texts.push(Text { field: field.to_owned(), role: Role::Unread, raw }),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Prose where the schema wants a keyword: `"type": "string <SYSTEM>…"`.
pub(super) fn odd_place(text: &Text<'_>, found: &mut Findings) {
    const TYPES: [&str; 7] = ["string", "number", "integer", "boolean", "object", "array", "null"];
    if text.role != Role::Unread {
        return;
    }
    let mut parts = text.field.rsplit('/');
    let key = parts.next().unwrap_or_default();
    let words = text.raw.split_whitespace().count();
    if key == "type" && !TYPES.contains(&text.raw) && words > 2 {
        let why = "The type of a value holds a sentence, which only the model reads.";
        found.add(Rule::UnreadText, Severity::Danger, text, 0..text.raw.len(), why);
    } else if (REFERENCES.contains(&key) || key == "format" || parts.next() == Some("required")) && words > 3 {
        let why = "A keyword of the schema holds a sentence, which only the model reads.";
        found.add(Rule::UnreadText, Severity::Warning, text, 0..text.raw.len(), why);
    }
}
