//! `NAME=VALUE` on the command line becomes JSON, with the types of a tool's schema.

use std::collections::BTreeSet;

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Map, Number, Value};

use super::schema::{Kind, Schema};

/// The arguments of a call: `base` with the pairs over it.
pub fn build(schema: Schema<'_>, base: Map<String, Value>, pairs: &[String]) -> Result<Map<String, Value>> {
    let mut arguments = base;
    let mut seen = BTreeSet::new();
    for pair in pairs {
        let (name, value) = pair
            .split_once('=')
            .with_context(|| format!("`{pair}` is no argument; write NAME=VALUE, for example path=README.md"))?;
        if let Some(name) = name.strip_suffix(':') {
            let value = serde_json::from_str(value)
                .with_context(|| format!("`{name}:=` takes JSON; text has to be in \"quotes\", or use `{name}=`"))?;
            arguments.insert(name.to_owned(), value);
            continue;
        }
        if name.is_empty() {
            bail!("`{pair}` has no name; write NAME=VALUE, for example path=README.md");
        }
        let path = path_of(schema, name)?;
        let wanted = path.iter().try_fold(schema, |schema, field| Some(schema.property(field).unwrap_or(Schema::ANY)));
        let first = seen.insert(name.to_owned());
        let slot = slot(&mut arguments, &path).map_err(|why| anyhow!("`{name}`: {why}"))?;
        put(wanted.unwrap_or(Schema::ANY), slot, value, first).map_err(|why| anyhow!("`{name}` {why}"))?;
    }
    let missing: Vec<String> = schema
        .required()
        .filter(|name| !arguments.contains_key(*name))
        .map(|name| match schema.property(name) {
            Some(property) => format!("{name} ({})", property.describe()),
            None => name.to_owned(),
        })
        .collect();
    if !missing.is_empty() {
        bail!("the tool needs more arguments: {}", missing.join(", "));
    }
    Ok(arguments)
}

/// Where a name leads: one argument, or with dots a field of an object.
fn path_of<'a>(schema: Schema<'_>, name: &'a str) -> Result<Vec<&'a str>> {
    if schema.property(name).is_some() || schema.is_open() && !name.contains('.') {
        return Ok(vec![name]);
    }
    let path: Vec<&str> = name.split('.').collect();
    let first = path.first().copied().unwrap_or_default();
    if path.len() > 1 && !path.contains(&"") && (schema.property(first).is_some() || schema.is_open()) {
        return Ok(path);
    }
    let known: Vec<&str> = schema.names().collect();
    if known.is_empty() {
        bail!("the tool takes no arguments, and `{name}` was given");
    }
    bail!("the tool has no argument `{name}`; it has {}. `{name}:=JSON` sends it all the same", known.join(", "))
}

/// The place of a value, objects on the way made.
fn slot<'a>(arguments: &'a mut Map<String, Value>, path: &[&str]) -> Result<&'a mut Value, String> {
    let Some((last, way)) = path.split_last() else { return Err("has no name".to_owned()) };
    let mut map = arguments;
    for field in way {
        let next = map.entry(*field).or_insert_with(|| Value::Object(Map::new()));
        map = next.as_object_mut().ok_or_else(|| format!("{field} is no object"))?;
    }
    Ok(map.entry(*last).or_insert(Value::Null))
}

/// Sets a value. One that is named again is added where a list is wanted. `first`: it was not named before, so that what
/// is there comes from --arguments and gives way.
fn put(schema: Schema<'_>, slot: &mut Value, text: &str, first: bool) -> Result<(), String> {
    let kinds = schema.kinds();
    let list = kinds.contains(&Kind::Array) && !text.trim_start().starts_with('[');
    // A schema that takes one or many takes one, until there is a second.
    let single = list && kinds.len() > 1;
    if list && !(single && first) {
        let value = parse(schema.items(), text)?;
        match slot {
            Value::Array(items) if !first => items.push(value),
            other if !first => {
                let before = other.take();
                *other = Value::Array(vec![before, value]);
            }
            other => *other = Value::Array(vec![value]),
        }
        return Ok(());
    }
    if !first {
        return Err("is given twice".to_owned());
    }
    *slot = parse(schema, text)?;
    Ok(())
}

fn parse(schema: Schema<'_>, text: &str) -> Result<Value, String> {
    let kinds = schema.kinds();
    if kinds.is_empty() {
        return Ok(guess(text));
    }
    // From the narrowest to the widest: text fits always.
    for kind in [Kind::Integer, Kind::Number, Kind::Boolean, Kind::Null, Kind::Array, Kind::Object, Kind::String] {
        if kinds.contains(&kind)
            && let Some(value) = read(kind, text)
        {
            return match schema.choices() {
                Some(choices) if !choices.contains(&value) => {
                    let choices: Vec<String> = choices.iter().map(shown).collect();
                    Err(format!("takes one of {}, not `{text}`", choices.join(", ")))
                }
                _ => Ok(value),
            };
        }
    }
    Err(format!("takes {}, not `{text}`", schema.describe()))
}

fn read(kind: Kind, text: &str) -> Option<Value> {
    let json = || serde_json::from_str::<Value>(text).ok();
    match kind {
        // 3.0 is an integer to JSON Schema, and to people.
        Kind::Integer => serde_json::from_str::<Number>(text)
            .ok()
            .filter(|n| n.is_i64() || n.is_u64() || n.as_f64().is_some_and(|n| n.fract() == 0.0))
            .map(Value::Number),
        Kind::Number => serde_json::from_str(text).ok().map(Value::Number),
        Kind::Boolean => text.parse().ok().map(Value::Bool),
        Kind::Null => (text == "null").then_some(Value::Null),
        Kind::Array => json().filter(Value::is_array),
        Kind::Object => json().filter(Value::is_object),
        Kind::String => Some(Value::String(text.to_owned())),
    }
}

/// Without a schema: JSON if it is some, else text.
fn guess(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn arguments(schema: &Value, pairs: &[&str]) -> Result<Value, String> {
        let pairs: Vec<String> = pairs.iter().map(|&pair| pair.to_owned()).collect();
        build(Schema::new(schema), Map::new(), &pairs).map(Value::Object).map_err(|error| format!("{error:#}"))
    }

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "path": {"type": "string"},
                "count": {"type": "integer"},
                "ratio": {"type": "number"},
                "deep": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
                "ids": {"type": "array", "items": {"type": "integer"}},
                "either": {"type": ["integer", "null"]},
                "any_of": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                "mode": {"enum": ["fast", "slow"]},
                "level": {"$ref": "#/$defs/level"},
                "where": {"type": "object", "properties": {"line": {"type": "integer"}, "text": {"type": "string"}}},
                "free": {},
                "one_or_many": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
            },
            "$defs": {"level": {"type": "string", "enum": ["1", "2"]}},
            "required": ["path"],
        })
    }

    #[test]
    fn values_get_the_types_of_the_schema() {
        let given = [
            "path=1",
            "count=5",
            "ratio=1e-3",
            "deep=true",
            "tags=a",
            "tags=b=c",
            "ids=1",
            "ids=2",
            "either=null",
            "any_of=7",
            "mode=fast",
            "level=2",
            "where.line=3",
            "where.text=4",
            "free={\"a\": [1]}",
            "one_or_many=x",
        ];
        assert_eq!(
            arguments(&schema(), &given),
            Ok(json!({
                "path": "1", "count": 5, "ratio": 0.001, "deep": true, "tags": ["a", "b=c"], "ids": [1, 2],
                "either": null, "any_of": 7, "mode": "fast", "level": "2", "where": {"line": 3, "text": "4"},
                "free": {"a": [1]}, "one_or_many": "x",
            }))
        );
        let given = [
            "path=",
            "tags=[\"a\", \"b\"]",
            "count:=\"text\"",
            "unknown:=[1]",
            "one_or_many=x",
            "one_or_many=y",
            "any_of=word",
            "free=word",
            "where={\"line\": 1}",
        ];
        assert_eq!(
            arguments(&schema(), &given),
            Ok(json!({
                "path": "", "tags": ["a", "b"], "count": "text", "unknown": [1], "one_or_many": ["x", "y"],
                "any_of": "word", "free": "word", "where": {"line": 1},
            }))
        );
    }

    #[test]
    fn what_does_not_fit_is_said_with_what_would() {
        for (pairs, said) in [
            (&["path=a", "count=many"][..], "`count` takes integer, not `many`"),
            (&["path=a", "count=1.5"], "`count` takes integer, not `1.5`"),
            (&["path=a", "deep=yes"], "`deep` takes boolean, not `yes`"),
            (&["path=a", "mode=quick"], "`mode` takes one of fast, slow, not `quick`"),
            (&["path=a", "level=3"], "`level` takes one of 1, 2, not `3`"),
            (&["path=a", "ids=x"], "`ids` takes integer, not `x`"),
            (&["path=a", "path=b"], "`path` is given twice"),
            (&["path=a", "where=x"], "`where` takes object, not `x`"),
            (&["path=a", "path.x=b"], "`path.x`: path is no object"),
            (&["path"], "`path` is no argument; write NAME=VALUE"),
            (&["=1"], "has no name"),
            (&["path=a", "pth=b"], "the tool has no argument `pth`; it has path, count"),
            (&["path:=a"], "`path:=` takes JSON"),
            (&["count=1"], "the tool needs more arguments: path (string)"),
        ] {
            let error = arguments(&schema(), pairs).expect_err(said);
            assert!(error.contains(said), "{error}");
        }
        let none = json!({"type": "object"});
        assert_eq!(arguments(&none, &["a=1", "b.c=x"]), Ok(json!({"a": 1, "b": {"c": "x"}})));
        let closed = json!({"type": "object", "additionalProperties": false});
        assert!(arguments(&closed, &["a=1"]).is_err_and(|error| error.contains("takes no arguments")));
    }

    #[test]
    fn pairs_go_over_the_json_that_is_given() {
        let base = json!({"path": "a", "tags": ["x"], "count": 1, "where": {"line": 1, "text": "t"}});
        let Value::Object(base) = base else { panic!("an object") };
        let pairs = ["tags=y", "tags=z", "count=2", "where.line=9"].map(str::to_owned);
        let built = build(Schema::new(&schema()), base, &pairs).expect("fits");
        assert_eq!(
            Value::Object(built),
            json!({"path": "a", "tags": ["y", "z"], "count": 2, "where": {"line": 9, "text": "t"}})
        );
    }
}
