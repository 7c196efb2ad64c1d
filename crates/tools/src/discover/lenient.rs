//! Files as people write them: JSON with comments and trailing commas, and YAML as far as settings need it.

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value};

/// Deepest nesting of YAML; serde_json stops at 128 by itself.
const DEEPEST: usize = 64;
/// Most values in a YAML file: 1 MiB of settings has far fewer.
const MOST: usize = 100_000;

/// Reads JSON that may have comments and trailing commas.
///
/// # Errors
/// Says where it is none.
pub(super) fn json(text: &str) -> Result<Value, String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&strict(text)).map_err(|error| format!("is not JSON: {error}"))
}

/// The same text with blanks for comments and trailing commas, so that lines and columns stay.
fn strict(text: &str) -> Cow<'_, str> {
    let mut out = text.as_bytes().to_vec();
    let mut changed = false;
    // The last comma, as long as only blanks and comments came after it.
    let mut comma = None;
    let mut at = 0;
    let byte = |at: usize| text.as_bytes().get(at).copied();
    while let Some(now) = byte(at) {
        match (now, byte(at + 1)) {
            (b'"', _) => {
                comma = None;
                at += 1;
                while let Some(inside) = byte(at) {
                    match inside {
                        b'\\' => at += 1,
                        b'"' => break,
                        _ => {}
                    }
                    at += 1;
                }
            }
            (b'/', Some(b'/')) => {
                changed = true;
                while byte(at).is_some_and(|inside| inside != b'\n') {
                    out[at] = b' ';
                    at += 1;
                }
                continue;
            }
            (b'/', Some(b'*')) => {
                changed = true;
                let end = text.as_bytes()[at + 2..].windows(2).position(|two| two == b"*/");
                let end = end.map_or(text.len(), |end| at + 2 + end + 2);
                out[at..end].iter_mut().filter(|inside| **inside != b'\n').for_each(|inside| *inside = b' ');
                at = end;
                continue;
            }
            (b',', _) => comma = Some(at),
            (b'}' | b']', _) => {
                if let Some(comma) = comma.take() {
                    changed = true;
                    out[comma] = b' ';
                }
            }
            (b' ' | b'\t' | b'\r' | b'\n', _) => {}
            _ => comma = None,
        }
        at += 1;
    }
    // Whole comments became blanks, so what is left is as good UTF-8 as it was.
    if changed { String::from_utf8(out).map_or(Cow::Borrowed(text), Cow::Owned) } else { Cow::Borrowed(text) }
}

/// Reads the first document of a YAML file. Numbers stay text, as they were written; aliases are refused.
///
/// # Errors
/// Says where it is none.
pub(super) fn yaml(text: &str) -> Result<Value, String> {
    let mut open: Vec<Open> = Vec::new();
    let mut count = 0;
    let mut parser = Parser::new_from_str(text);
    while let Some(next) = parser.next_event() {
        let (event, span) = next.map_err(|error| format!("is not YAML: {error}"))?;
        let at = |what: &str| Err(format!("{what} in line {}", span.start.line()));
        count += 1;
        if count > MOST {
            return at("has too many values");
        }
        let value = match event {
            Event::Alias(_) => return at("uses an alias (`*name`), which is not supported,"),
            Event::MappingStart(..) | Event::SequenceStart(..) if open.len() >= DEEPEST => {
                return at("is nested too deeply");
            }
            Event::MappingStart(..) => {
                open.push(Open::Map(Map::new(), None));
                continue;
            }
            Event::SequenceStart(..) => {
                open.push(Open::List(Vec::new()));
                continue;
            }
            Event::MappingEnd | Event::SequenceEnd => match open.pop() {
                Some(Open::Map(map, _)) => Value::Object(map),
                Some(Open::List(list)) => Value::Array(list),
                None => return at("ends what it did not begin"),
            },
            Event::Scalar(text, style, _, tag) => scalar(text, style, tag.is_some()),
            Event::DocumentEnd | Event::StreamEnd => return Ok(Value::Null),
            Event::Nothing | Event::StreamStart | Event::DocumentStart(_) => continue,
        };
        match open.last_mut() {
            None => return Ok(value),
            Some(Open::List(list)) => list.push(value),
            Some(Open::Map(map, key @ Some(_))) => {
                map.insert(key.take().unwrap_or_default(), value);
            }
            Some(Open::Map(_, key @ None)) => match value {
                Value::String(text) => *key = Some(text),
                Value::Bool(truth) => *key = Some(truth.to_string()),
                Value::Null => *key = Some("null".to_owned()),
                Value::Number(_) | Value::Array(_) | Value::Object(_) => return at("has a key that is no text"),
            },
        }
    }
    Ok(Value::Null)
}

/// A mapping with the key whose value comes next, or a sequence.
enum Open {
    Map(Map<String, Value>, Option<String>),
    List(Vec<Value>),
}

fn scalar(text: Cow<'_, str>, style: ScalarStyle, tagged: bool) -> Value {
    if style != ScalarStyle::Plain || tagged {
        return Value::String(text.into_owned());
    }
    match &*text {
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        _ => Value::String(text.into_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::{Duration, Instant};

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn comments_and_trailing_commas_are_passed_over() {
        let text = r#"{ // a comment, with a comma
            "url": "http://x/*no comment*/", /* two
            lines */ "list": [1, 2, /* here */ ], // }
            "escaped \" // quote": "}",
        }"#;
        let read = json(text).unwrap();
        assert_eq!(read, json!({"url": "http://x/*no comment*/", "list": [1, 2], "escaped \" // quote": "}"}));
    }

    #[test]
    fn an_error_names_the_line_of_the_file() {
        let error = json("{\n // fine\n \"a\": 1,\n oops\n}").unwrap_err();
        assert!(error.contains("line 4"), "{error}");
        assert!(json("{\"a\": 1,,}").is_err());
        assert!(json("[,]").is_err_and(|error| error.contains("is not JSON")) || json("[,]").unwrap() == json!([]));
    }

    #[test]
    fn yaml_gives_the_same_values_as_json_and_keeps_numbers_as_written() {
        let text = "extensions:\n  git:\n    cmd: uvx\n    args:\n    - mcp-server-git\n    - --depth=3\n    enabled: true\n    envs: {PORT: 0777, NAME: \"true\"}\n    env_keys: []\n    note: |\n      two\n      lines\n";
        assert_eq!(
            yaml(text).unwrap(),
            json!({"extensions": {"git": {
                "cmd": "uvx", "args": ["mcp-server-git", "--depth=3"], "enabled": true,
                "envs": {"PORT": "0777", "NAME": "true"}, "env_keys": [], "note": "two\nlines\n",
            }}})
        );
        assert_eq!(yaml("").unwrap(), Value::Null);
    }

    #[test]
    fn hostile_text_is_refused_quickly() {
        let size = 1 << 20;
        for opening in ["[", "{", "- ", "? ", "[{", "{a: ", "\"", "&a [", "!t ", "a: &x *x\n", "|\n", "#\n", "\t"] {
            let text = opening.repeat(size / 4 / opening.len());
            let began = Instant::now();
            let _ = yaml(&text);
            let _ = json(&text);
            assert!(began.elapsed() < Duration::from_secs(4), "{opening:?} took {:?}", began.elapsed());
        }
        assert!(yaml(&"[".repeat(size)).unwrap_err().contains("recursion limit"));
        assert!(yaml(&"- ".repeat(100)).unwrap_err().contains("nested too deeply"));
        assert!(json(&"[".repeat(size)).unwrap_err().contains("recursion limit"));
        assert!(yaml("a: &x [1]\nb: *x\n").unwrap_err().contains("line 2"));
    }

    proptest! {
        #[test]
        fn what_is_json_already_stays_as_it_is(text in any::<Vec<(String, Option<i32>)>>()) {
            let value: Value = text.iter().map(|(key, number)| (key.clone(), json!([number, key]))).collect();
            prop_assert_eq!(json(&value.to_string()).unwrap(), value);
        }

        #[test]
        fn no_text_makes_it_panic(text in "[ \n\t{}\\[\\]\"',:#&*!|>%@/\\\\a0~-]{0,60}") {
            let _ = json(&text);
            let _ = yaml(&text);
        }
    }
}
