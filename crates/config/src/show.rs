//! The effective configuration as a person reads it: every key, its value, and which layer set it.

use serde::Serialize;
use serde_json::Value;

use crate::load::Loaded;
use crate::tree::Config;

/// One key of the effective configuration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Entry {
    /// Path of the key.
    pub key: String,
    /// Its value, secrets masked.
    pub value: Value,
    /// `default`, or where it was set.
    pub origin: String,
}

impl Loaded {
    /// Every key in the order of the tree.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let tree = serde_json::to_value(&self.config).unwrap_or_default();
        walk("", &tree, &mut |key, value| {
            entries.push(Entry {
                key: key.to_owned(),
                value: mask(value),
                origin: self.origins.get(key).cloned().unwrap_or_else(|| "default".to_owned()),
            });
        });
        entries
    }
}

impl Config {
    /// The tree as a TOML file that reads back as the same tree.
    ///
    /// # Errors
    ///
    /// A value that TOML cannot hold, such as a path that is not UTF-8.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }
}

fn walk(prefix: &str, value: &Value, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, inner) in map {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                walk(&path, inner, visit);
            }
        }
        other => visit(prefix, other),
    }
}

/// Takes the password out of URLs and connection strings. Other secrets are in files, of which only the path is here.
fn mask(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::String(mask_password(text)),
        Value::Array(items) => Value::Array(items.iter().map(mask).collect()),
        other => other.clone(),
    }
}

/// A URL or `key=value` connection string without its password.
pub fn mask_password(text: &str) -> String {
    if let Some((scheme, rest)) = text.split_once("://") {
        // Up to the last `@`: a password may hold characters that it should have escaped, and masking too much is the
        // harmless mistake.
        let (user, tail) = rest.rsplit_once('@').unwrap_or(("", rest));
        let authority = match user.split_once(':') {
            Some((name, _)) => format!("{name}:***@"),
            None if user.is_empty() => String::new(),
            None => format!("{user}@"),
        };
        return format!("{scheme}://{authority}{}", mask_parameters(tail, &['&', '#']));
    }
    mask_parameters(text, &[' '])
}

fn mask_parameters(text: &str, separators: &[char]) -> String {
    let Some(at) = text.to_ascii_lowercase().find("password") else { return text.to_owned() };
    let after = &text[at + "password".len()..];
    let Some(value) = after.trim_start().strip_prefix('=').map(str::trim_start) else { return text.to_owned() };
    let end = if let Some(quoted) = value.strip_prefix('\'') {
        quoted.find('\'').map_or(value.len(), |end| end + 2)
    } else {
        value.find(separators).unwrap_or(value.len())
    };
    format!("{}password=***{}", &text[..at], mask_parameters(&value[end..], separators))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn passwords_are_masked_wherever_a_connection_string_may_have_them() {
        for (given, shown) in [
            ("postgres://lares:hunter2@db/lares", "postgres://lares:***@db/lares"),
            ("postgres://lares:p@ss@db/lares", "postgres://lares:***@db/lares"),
            ("postgres:///lares?host=/run&password=hunter2&x=1", "postgres:///lares?host=/run&password=***&x=1"),
            ("host=db password=hunter2 user=lares", "host=db password=*** user=lares"),
            ("host=db password = 'hunter 2' user=lares", "host=db password=*** user=lares"),
            ("postgres://db/lares", "postgres://db/lares"),
        ] {
            assert_eq!(mask_password(given), shown);
        }
    }

    proptest! {
        #[test]
        fn masking_never_shows_the_password(password in "[a-zA-Z0-9!@#%^*]{8,20}") {
            let url = mask_password(&format!("postgres://lares:{password}@db/lares"));
            prop_assert!(!url.contains(&password));
            let pairs = mask_password(&format!("user=lares password={password} host=db"));
            prop_assert!(!pairs.contains(&password));
        }
    }
}
