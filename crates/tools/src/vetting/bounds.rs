//! How large a definition may be, so that nothing else has to fear it.

use serde_json::Value;

use crate::definition::Definition;

/// Longest single text, in bytes. The longest description among 600 published tools has 4 KB; a client's context pays
/// for every byte.
pub const MAX_TEXT_BYTES: usize = 32 * 1024;
/// All texts and keys together, in bytes. Schemas generated from large APIs reach some tens of KB.
pub const MAX_DEFINITION_BYTES: usize = 256 * 1024;
/// Deepest nesting of a schema. Real ones stay below 15; whoever walks them may recurse this far.
pub const MAX_DEPTH: usize = 32;
/// Most keys in one object, such as the properties of a tool.
pub const MAX_PROPERTIES: usize = 512;
/// Most JSON values in one definition.
pub const MAX_VALUES: usize = 16 * 1024;

/// Which bound a definition exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TooBig {
    /// One text is longer than [`MAX_TEXT_BYTES`].
    #[error("a text in `{field}` has {bytes} bytes; a definition's texts have at most {MAX_TEXT_BYTES}")]
    Text {
        /// Top-level part of the definition.
        field: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// More than [`MAX_DEFINITION_BYTES`] in total.
    #[error("the definition has more than {MAX_DEFINITION_BYTES} bytes of text")]
    Total,
    /// Nested deeper than [`MAX_DEPTH`].
    #[error("`{field}` is nested deeper than {MAX_DEPTH} levels")]
    Depth {
        /// Top-level part of the definition.
        field: &'static str,
    },
    /// An object with more than [`MAX_PROPERTIES`] keys.
    #[error("an object in `{field}` has {keys} keys; at most {MAX_PROPERTIES} are read")]
    Properties {
        /// Top-level part of the definition.
        field: &'static str,
        /// How many there are.
        keys: usize,
    },
    /// More than [`MAX_VALUES`] JSON values.
    #[error("the definition has more than {MAX_VALUES} JSON values")]
    Values,
}

impl TooBig {
    /// The part of the definition that is too big, empty for all of it.
    pub fn field(&self) -> &'static str {
        match self {
            Self::Text { field, .. } | Self::Depth { field } | Self::Properties { field, .. } => field,
            Self::Total | Self::Values => "",
        }
    }
}

/// Whether a definition is small enough to be kept and read.
///
/// # Errors
/// The first bound that it exceeds. Reading stops there.
pub fn bounds(definition: &Definition) -> Result<(), TooBig> {
    let mut total = 0;
    let mut values = 0;
    let texts = [
        ("name", Some(definition.name.as_str())),
        ("title", definition.title.as_deref()),
        ("description", definition.description.as_deref()),
    ];
    for (field, text) in texts {
        add(field, text.unwrap_or_default(), &mut total)?;
    }
    let parts = [
        ("input_schema", Some(&definition.input_schema)),
        ("output_schema", definition.output_schema.as_ref()),
        ("annotations", definition.annotations.as_ref()),
    ];
    for (field, part) in parts {
        let mut left: Vec<(&Value, usize)> = part.map(|part| (part, 1)).into_iter().collect();
        while let Some((value, depth)) = left.pop() {
            values += 1;
            if values > MAX_VALUES {
                return Err(TooBig::Values);
            }
            if depth > MAX_DEPTH {
                return Err(TooBig::Depth { field });
            }
            match value {
                Value::String(text) => add(field, text, &mut total)?,
                // The check comes before the copy of references, so that an array of millions costs nothing.
                Value::Array(items) if values + items.len() > MAX_VALUES => return Err(TooBig::Values),
                Value::Array(items) => left.extend(items.iter().map(|item| (item, depth + 1))),
                Value::Object(map) => {
                    if map.len() > MAX_PROPERTIES {
                        return Err(TooBig::Properties { field, keys: map.len() });
                    }
                    for (key, item) in map {
                        add(field, key, &mut total)?;
                        left.push((item, depth + 1));
                    }
                }
                Value::Null | Value::Bool(_) | Value::Number(_) => {}
            }
        }
    }
    Ok(())
}

fn add(field: &'static str, text: &str, total: &mut usize) -> Result<(), TooBig> {
    if text.len() > MAX_TEXT_BYTES {
        return Err(TooBig::Text { field, bytes: text.len() });
    }
    *total += text.len();
    if *total > MAX_DEFINITION_BYTES { Err(TooBig::Total) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, json};

    use super::*;

    fn with(schema: Value) -> Definition {
        Definition {
            name: "t".to_owned(),
            title: None,
            description: None,
            input_schema: schema,
            output_schema: None,
            annotations: None,
        }
    }

    #[test]
    fn each_bound_holds_at_its_edge() {
        let mut nested = json!("x");
        for _ in 1..MAX_DEPTH {
            nested = json!([nested]);
        }
        assert_eq!(bounds(&with(nested.clone())), Ok(()));
        assert_eq!(bounds(&with(json!([nested]))), Err(TooBig::Depth { field: "input_schema" }));

        let keys = |n: usize| Value::Object((0..n).map(|i| (i.to_string(), json!(1))).collect::<Map<_, _>>());
        assert_eq!(bounds(&with(keys(MAX_PROPERTIES))), Ok(()));
        assert!(matches!(bounds(&with(keys(MAX_PROPERTIES + 1))), Err(TooBig::Properties { keys: 513, .. })));

        assert_eq!(bounds(&with(json!("x".repeat(MAX_TEXT_BYTES)))), Ok(()));
        assert!(matches!(bounds(&with(json!("x".repeat(MAX_TEXT_BYTES + 1)))), Err(TooBig::Text { .. })));
        assert_eq!(bounds(&with(json!(vec!["x".repeat(MAX_TEXT_BYTES); 9]))), Err(TooBig::Total));
        assert_eq!(bounds(&with(json!(vec![0; MAX_VALUES]))), Err(TooBig::Values));
    }
}
