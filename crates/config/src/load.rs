//! Putting the layers together: defaults < file < environment < flags, and knowing afterwards which layer set what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use figment::providers::Serialized;
use figment::value::{Dict, Map, Tag, Value};
use figment::{Figment, Metadata, Profile, Provider};

use crate::error::{Error, Problem};
use crate::schema::{Kind, Node, nearest, unknown_key};
use crate::tree::Config;
use crate::validate::validate;

/// Variables that begin with `LARES_` and are no configuration keys.
const RESERVED: [&str; 4] = ["LARES_CONFIG", "LARES_URL", "LARES_API_KEY_FILE", "LARES_TEST_"];

/// The layers above the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The TOML file, if any.
    pub file: Option<PathBuf>,
    /// Environment: `LARES_RALPH__MAX_ITERATIONS=5` sets `ralph.max_iterations`. Others are passed over.
    pub environment: Vec<(String, String)>,
    /// Flags: key path and value, as in `--set ralph.max_iterations=5`.
    pub flags: Vec<(String, String)>,
}

/// A configuration that was found good, with the origin of every key that is not a default.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The effective configuration.
    pub config: Config,
    /// Key path → where it was set, for keys set anywhere.
    pub origins: BTreeMap<String, String>,
}

impl Sources {
    /// The layers of a usual start: the file, and this process's environment.
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| name.starts_with("LARES_"))
            .collect();
        Self { file, environment, flags }
    }

    /// Puts the layers together and checks the result.
    ///
    /// # Errors
    ///
    /// A file that cannot be read or parsed, unknown keys (all of them), a value of a wrong type, values that cannot
    /// work together (all of them).
    pub fn load(&self) -> Result<Loaded, Error> {
        let mut problems = Vec::new();
        let mut figment = Figment::from(Serialized::defaults(Config::default()));
        let mut origins = BTreeMap::new();

        if let Some(path) = &self.file {
            let layer = Layer::from_file(path, &mut problems)?;
            layer.note_origins(&mut origins);
            figment = figment.merge(layer);
        }
        for (name, text) in &self.environment {
            let Some(key) = variable_key(name, &mut problems) else { continue };
            let layer = Layer::from_text(format!("environment variable {name}"), &key, text, &mut problems);
            layer.note_origins(&mut origins);
            figment = figment.merge(layer);
        }
        for (key, text) in &self.flags {
            let layer = Layer::from_text(format!("--set {key}"), key, text, &mut problems);
            layer.note_origins(&mut origins);
            figment = figment.merge(layer);
        }
        if !problems.is_empty() {
            return Err(Error::Invalid(problems));
        }
        let config: Config = figment.extract().map_err(|error| Error::Invalid(wrong_types(error)))?;
        problems = validate(&config);
        if !problems.is_empty() {
            for problem in &mut problems {
                problem.origin = origin_of(&origins, &problem.key);
            }
            return Err(Error::Invalid(problems));
        }
        Ok(Loaded { config, origins })
    }
}

/// Origin of a key, or of the nearest table above it that was set.
fn origin_of(origins: &BTreeMap<String, String>, key: &str) -> String {
    let mut key = key;
    loop {
        if let Some(origin) = origins.get(key) {
            return origin.clone();
        }
        if let Some((_, origin)) = origins.range(format!("{key}.")..).find(|(k, _)| k.starts_with(&format!("{key}."))) {
            return origin.clone();
        }
        match key.rsplit_once('.') {
            // A top-level section says nothing about a key that is not set in it.
            Some((parent, _)) if parent.contains('.') => key = parent,
            _ => return String::new(),
        }
    }
}

/// `LARES_RALPH__MAX_ITERATIONS` → `ralph.max_iterations`; `None` for reserved names and (noted) unknown ones.
fn variable_key(name: &str, problems: &mut Vec<Problem>) -> Option<String> {
    if RESERVED.iter().any(|reserved| name == *reserved || (reserved.ends_with('_') && name.starts_with(reserved))) {
        return None;
    }
    let key = name.strip_prefix("LARES_")?.to_ascii_lowercase().replace("__", ".");
    let section = key.split('.').next().unwrap_or_default();
    let known = Node::root().keys();
    if known.contains(&section) {
        return Some(key);
    }
    let hint = nearest(section, known.iter().copied())
        .map_or_else(String::new, |near| format!("; did you mean `LARES_{}…`?", near.to_ascii_uppercase()));
    problems.push(Problem {
        key,
        message: format!(
            "no section of the configuration has this name{hint} (sections are joined by two underscores)"
        ),
        origin: format!("environment variable {name}"),
    });
    None
}

/// One layer of values, all from one place.
struct Layer {
    name: String,
    file: Option<PathBuf>,
    values: Dict,
}

impl Layer {
    fn from_file(path: &Path, problems: &mut Vec<Problem>) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| Error::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let origin = path.display().to_string();
        unknown_keys(Node::root(), "", &table, &origin, problems);
        let values = Value::serialize(&table).ok().and_then(Value::into_dict).unwrap_or_default();
        Ok(Self { name: origin, file: Some(path.to_owned()), values })
    }

    fn from_text(origin: String, key: &str, text: &str, problems: &mut Vec<Problem>) -> Self {
        let mut node = Node::root();
        let mut fail = |key: &str, message: String| {
            problems.push(Problem { key: key.to_owned(), message, origin: origin.clone() });
        };
        for part in key.split('.') {
            match node.child(part) {
                Some(child) => node = child,
                None => {
                    fail(key, unknown_key(node, part));
                    return Self { name: origin, file: None, values: Dict::new() };
                }
            }
        }
        let value = match read_text(node.kind(), text) {
            Ok(value) => value,
            Err(message) => {
                fail(key, message);
                return Self { name: origin, file: None, values: Dict::new() };
            }
        };
        let values = figment::util::nest(key, value).into_dict().unwrap_or_default();
        Self { name: origin, file: None, values }
    }

    fn note_origins(&self, origins: &mut BTreeMap<String, String>) {
        fn walk(prefix: &str, values: &Dict, name: &str, origins: &mut BTreeMap<String, String>) {
            for (key, value) in values {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                match value {
                    Value::Dict(_, inner) => walk(&path, inner, name, origins),
                    _ => {
                        origins.insert(path, name.to_owned());
                    }
                }
            }
        }
        walk("", &self.values, &self.name, origins);
    }
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        match &self.file {
            Some(path) => Metadata::from("file", path.as_path()),
            None => Metadata::named(self.name.clone()),
        }
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Profile::Default.collect(self.values.clone()))
    }
}

/// Text from a variable or a flag as the value that the key takes.
fn read_text(kind: Kind, text: &str) -> Result<Value, String> {
    match kind {
        Kind::Text => Ok(Value::from(text)),
        Kind::Integer => text
            .trim()
            .parse::<i64>()
            .map(Value::from)
            .map_err(|_| format!("expected a whole number, found \"{text}\"")),
        Kind::Boolean => match text.trim() {
            "true" => Ok(Value::from(true)),
            "false" => Ok(Value::from(false)),
            _ => Err(format!("expected true or false, found \"{text}\"")),
        },
        Kind::List if !text.trim_start().starts_with('[') => {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            Ok(Value::Array(Tag::Default, items.map(Value::from).collect()))
        }
        Kind::List | Kind::Table => {
            let table: toml::Table = format!("value = {text}").parse().map_err(|error: toml::de::Error| {
                format!("expected a TOML value such as `[\"a\", \"b\"]` or `{{ key = 1 }}`: {}", error.message())
            })?;
            Value::serialize(&table["value"]).map_err(|error| error.to_string())
        }
    }
}

fn unknown_keys(node: Node, prefix: &str, table: &toml::Table, origin: &str, problems: &mut Vec<Problem>) {
    for (key, value) in table {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match node.child(key) {
            None => {
                problems.push(Problem { key: path, message: unknown_key(node, key), origin: origin.to_owned() });
            }
            Some(child) => {
                if let toml::Value::Table(inner) = value
                    && child.kind() == Kind::Table
                {
                    unknown_keys(child, &path, inner, origin, problems);
                }
            }
        }
    }
}

/// What `figment` says about types, in our words.
fn wrong_types(error: figment::Error) -> Vec<Problem> {
    error
        .into_iter()
        .map(|error| {
            let origin = error.metadata.as_ref().map_or_else(String::new, |metadata| {
                metadata.source.as_ref().map_or_else(|| metadata.name.to_string(), ToString::to_string)
            });
            let message = match &error.kind {
                figment::error::Kind::UnknownVariant(found, known) => {
                    format!("`{found}` is none of {}", known.join(", "))
                }
                figment::error::Kind::InvalidType(found, expected) => {
                    // serde names its own types; a person knows those of the file.
                    let expected = match expected.as_str() {
                        "u16" | "u32" | "u64" => "a whole number",
                        "a sequence" => "a list such as [\"a\", \"b\"]",
                        "a map" => "a table",
                        expected if expected.starts_with("struct ") => "a table",
                        expected => expected,
                    };
                    format!("expected {expected}, found {found}")
                }
                kind => kind.to_string(),
            };
            Problem { key: error.path.join("."), message, origin }
        })
        .collect()
}
