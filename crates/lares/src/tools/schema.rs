//! A tool's JSON Schema as people meet it: the names, types and meanings of its parameters. The schema is foreign text:
//! it may be wrong, deep, or point at itself.

use serde_json::Value;

use super::foreign;

/// References that are followed one after the other, and depth of nested alternatives.
const HOPS: usize = 8;
/// Depth of nested objects in a table.
const DEPTH: usize = 4;
/// Most rows of a table.
const ROWS: usize = 200;
/// Choices that are named in a table.
const CHOICES: usize = 12;
/// Longest default or choice in a table, in characters.
const SHORT: usize = 40;
/// Longest meaning of a parameter in a table, in characters.
const MEANING: usize = 400;

/// A type of JSON Schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Integer,
    Number,
    Boolean,
    Null,
    Array,
    Object,
    String,
}

impl Kind {
    const ALL: [(&'static str, Self); 7] = [
        ("string", Self::String),
        ("integer", Self::Integer),
        ("number", Self::Number),
        ("boolean", Self::Boolean),
        ("array", Self::Array),
        ("object", Self::Object),
        ("null", Self::Null),
    ];

    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, kind)| *kind == self).map_or("any", |(name, _)| name)
    }
}

static ANYTHING: Value = Value::Null;

/// A place in a schema.
#[derive(Debug, Clone, Copy)]
pub struct Schema<'a> {
    root: &'a Value,
    node: &'a Value,
}

impl<'a> Schema<'a> {
    /// What nothing is said of.
    pub const ANY: Schema<'static> = Schema { root: &ANYTHING, node: &ANYTHING };

    /// A whole schema.
    pub const fn new(root: &'a Value) -> Self {
        Self { root, node: root }
    }

    fn at(self, node: &'a Value) -> Self {
        let mut found = node;
        for _ in 0..HOPS {
            let Some(pointer) = found.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#')) else {
                break;
            };
            let Some(target) = self.root.pointer(pointer) else { break };
            found = target;
        }
        Self { root: self.root, node: found }
    }

    /// The schemas that this one is made of, itself first.
    fn parts(self, depth: usize) -> Vec<Self> {
        let mut parts = vec![self];
        if depth < HOPS {
            for keyword in ["anyOf", "oneOf", "allOf"] {
                let nodes = self.node.get(keyword).and_then(Value::as_array);
                for node in nodes.into_iter().flatten().take(CHOICES) {
                    parts.extend(self.at(node).parts(depth + 1));
                    if parts.len() > ROWS {
                        return parts;
                    }
                }
            }
        }
        parts
    }

    /// The types that it takes, in the order of the schema; empty: any.
    pub fn kinds(self) -> Vec<Kind> {
        let mut kinds = Vec::new();
        for part in self.parts(0) {
            let named: Vec<&str> = match part.node.get("type") {
                Some(Value::String(name)) => vec![name],
                Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
                _ => Vec::new(),
            };
            let mut found: Vec<Kind> = named.into_iter().filter_map(Kind::of).collect();
            if found.is_empty() {
                found = part.own_choices().iter().map(|value| kind_of(value)).collect();
            }
            if found.is_empty() && part.node.get("properties").is_some_and(Value::is_object) {
                found.push(Kind::Object);
            }
            for kind in found {
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
        }
        kinds
    }

    fn own_choices(self) -> Vec<&'a Value> {
        match (self.node.get("enum").and_then(Value::as_array), self.node.get("const")) {
            (Some(values), _) => values.iter().collect(),
            (None, Some(value)) => vec![value],
            (None, None) => Vec::new(),
        }
    }

    /// The values it takes, if they are few and named.
    pub fn choices(self) -> Option<Vec<Value>> {
        let parts = self.parts(0);
        let named: Vec<Value> = parts.iter().flat_map(|part| part.own_choices()).cloned().collect();
        // An alternative that takes any text makes the choices mere examples.
        let free = parts.iter().any(|part| part.node.get("type").is_some() && part.own_choices().is_empty());
        (!named.is_empty() && !free).then_some(named)
    }

    /// One of its properties.
    pub fn property(self, name: &str) -> Option<Self> {
        self.parts(0).into_iter().find_map(|part| Some(part.at(part.node.get("properties")?.get(name)?)))
    }

    /// The names of its properties.
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        self.parts(0)
            .into_iter()
            .filter_map(|part| part.node.get("properties")?.as_object())
            .flatten()
            .map(|(name, _)| name.as_str())
    }

    /// The names of those that have to be there.
    pub fn required(self) -> impl Iterator<Item = &'a str> {
        self.node.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    }

    /// Whether it takes properties that it does not name. One that names some means no others, unless it says so.
    pub fn is_open(self) -> bool {
        match self.node.get("additionalProperties") {
            Some(Value::Bool(open)) => *open,
            Some(_) => true,
            None => self.names().next().is_none(),
        }
    }

    /// What its items are like.
    pub fn items(self) -> Self {
        let items = self.parts(0).into_iter().find_map(|part| Some(part.at(part.node.get("items")?)));
        items.unwrap_or(Schema::ANY)
    }

    /// Its type in words: `integer, 1 to 10`, `list of string`, `one of fast, slow`.
    pub fn describe(self) -> String {
        self.describe_within(0)
    }

    fn describe_within(self, depth: usize) -> String {
        if let Some(choices) = self.choices() {
            let more = if choices.len() > CHOICES { ", …" } else { "" };
            let named: Vec<String> = choices.iter().take(CHOICES).map(short).collect();
            return format!("one of {}{more}", named.join(", "));
        }
        let kinds = self.kinds();
        if kinds.is_empty() {
            return "any".to_owned();
        }
        let names: Vec<String> = kinds
            .into_iter()
            .map(|kind| match kind {
                Kind::Array if depth < DEPTH => format!("list of {}", self.items().describe_within(depth + 1)),
                kind => kind.name().to_owned(),
            })
            .collect();
        let mut text = names.join(" or ");
        if let Some(format) = self.node.get("format").and_then(Value::as_str) {
            text.push_str(&format!(" ({})", foreign::line(format, SHORT)));
        }
        let bound = |name: &str| self.node.get(name).filter(|bound| bound.is_number());
        match (bound("minimum"), bound("maximum")) {
            (Some(least), Some(most)) => text.push_str(&format!(", {least} to {most}")),
            (Some(least), None) => text.push_str(&format!(", at least {least}")),
            (None, Some(most)) => text.push_str(&format!(", at most {most}")),
            (None, None) => {}
        }
        text
    }

    /// Its parameters as rows of a table: name, type, whether it is needed, default, meaning.
    pub fn table(self) -> Vec<[String; 5]> {
        let mut rows = Vec::new();
        self.rows("", 0, &mut rows);
        rows
    }

    fn rows(self, prefix: &str, depth: usize, rows: &mut Vec<[String; 5]>) {
        let required: Vec<&str> = self.required().collect();
        for name in self.names() {
            let Some(property) = self.property(name) else { continue };
            if rows.len() >= ROWS {
                return;
            }
            let text = |key: &str| property.node.get(key).and_then(Value::as_str);
            let meaning = text("description").or_else(|| text("title")).unwrap_or_default();
            let default = property.node.get("default").map(short).unwrap_or_default();
            let path = format!("{prefix}{}", foreign::line(name, SHORT));
            rows.push([
                path.clone(),
                property.describe(),
                if required.contains(&name) { "yes" } else { "" }.to_owned(),
                default,
                foreign::line(meaning, MEANING),
            ]);
            if depth < DEPTH {
                property.rows(&format!("{path}."), depth + 1, rows);
                property.items().rows(&format!("{path}[]."), depth + 1, rows);
            }
        }
    }
}

fn kind_of(value: &Value) -> Kind {
    match value {
        Value::Null => Kind::Null,
        Value::Bool(_) => Kind::Boolean,
        Value::Number(number) if number.is_f64() => Kind::Number,
        Value::Number(_) => Kind::Integer,
        Value::String(_) => Kind::String,
        Value::Array(_) => Kind::Array,
        Value::Object(_) => Kind::Object,
    }
}

fn short(value: &Value) -> String {
    match value {
        Value::String(text) if text.is_empty() => "\"\"".to_owned(),
        Value::String(text) => foreign::line(text, SHORT),
        other => foreign::line(&other.to_string(), SHORT),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_schema_becomes_a_table() {
        let schema = json!({
            "type": "object",
            "required": ["path", "edits"],
            "properties": {
                "path": {"type": "string", "description": "Where\n\tit is"},
                "depth": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
                "since": {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}], "default": null},
                "mode": {"enum": ["fast", "slow"], "default": "fast"},
                "edits": {"type": "array", "items": {"$ref": "#/$defs/edit"}},
                "any": true,
            },
            "$defs": {"edit": {
                "type": "object",
                "required": ["new"],
                "properties": {"old": {"type": "string"}, "new": {"type": "string", "title": "New\u{202e} text"}},
            }},
        });
        let rows: Vec<String> = Schema::new(&schema).table().iter().map(|row| row.join("|")).collect();
        assert_eq!(
            rows,
            [
                "path|string|yes||Where it is",
                "depth|integer, 1 to 9||3|",
                "since|string or null||null|",
                "mode|one of fast, slow||fast|",
                "edits|list of object|yes||",
                "edits[].old|string|||",
                "edits[].new|string|yes||New\\u{202e} text",
                "any|any|||",
            ]
        );
    }

    #[test]
    fn a_schema_that_points_at_itself_ends() {
        let schema = json!({
            "properties": {"a": {"$ref": "#"}, "b": {"$ref": "#/properties/b"}, "c": {"items": {"$ref": "#"}}},
            "anyOf": [{"$ref": "#"}, {"$ref": "#"}, {"$ref": "#"}],
        });
        let schema = Schema::new(&schema);
        assert!(schema.table().len() <= ROWS);
        assert!(schema.property("b").is_some());
        for wrong in [json!(null), json!([1]), json!({"properties": 5, "required": "x", "type": 3, "enum": {}})] {
            let schema = Schema::new(&wrong);
            assert_eq!((schema.table().len(), schema.kinds()), (0, Vec::new()));
        }
    }
}
