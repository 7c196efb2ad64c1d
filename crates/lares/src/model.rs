//! `lares model …`: the catalog, fetching, and what a file says of itself.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Result;
use lares_config::Model;
use lares_llama::catalog::{self, Artifact, Origin};
use lares_llama::gguf::Metadata;
use lares_llama::memory::{self, Prediction};
use lares_llama::progress;
use lares_llama::pull::Puller;
use serde::Serialize;

use crate::cli::{self, Global, exit};
use crate::output::{self, Output};
use crate::{configuration, stack};

#[derive(Serialize)]
struct Listed {
    #[serde(flatten)]
    entry: catalog::Entry,
    file: Option<PathBuf>,
}

/// Carries out `lares model …`.
pub async fn run(global: &Global, command: cli::Model) -> Result<u8> {
    let config = configuration::load(global)?.config;
    let output = Output { json: global.json };
    match command {
        cli::Model::List => {
            let directory = config.models_dir();
            let models: Vec<Listed> = catalog::entries()
                .iter()
                .map(|entry| {
                    let file = Some(Artifact::from(entry).path(&directory)).filter(|path| path.is_file());
                    Listed { entry: entry.clone(), file }
                })
                .collect();
            output.value(&models, |models| {
                let rows = models.iter().map(|model| {
                    let entry = &model.entry;
                    [
                        entry.name.clone(),
                        if model.file.is_some() { "here" } else { "-" }.to_owned(),
                        output::bytes(entry.size),
                        entry.quantisation.clone(),
                        entry.licence.clone(),
                        entry.description.clone(),
                    ]
                });
                output::table(["model", "file", "size", "quantisation", "licence", "what"], rows)
            })?;
        }
        cli::Model::Pull { name } => {
            let origin = match config.models.get(&name) {
                Some(model) => catalog::origin(&name, model)?,
                None => Origin::Artifact(Artifact::from(catalog::find(&name)?)),
            };
            let (path, sha256) = match origin {
                Origin::File(path) => (path, None),
                Origin::Artifact(artifact) => {
                    let path = Puller::new(config.models_dir()).pull(&artifact, &*progress::on_stderr()).await?;
                    (path, Some(artifact.sha256))
                }
            };
            output.value(&serde_json::json!({ "name": name, "sha256": sha256, "path": path }), |_| {
                path.display().to_string()
            })?;
        }
        cli::Model::Show { model, context_size, slots } => {
            let path = if Path::new(&model).is_file() {
                PathBuf::from(&model)
            } else {
                let wanted = Model { source: Some(model.clone()), ..Model::default() };
                stack::file_of(&config, &model, &wanted).await?
            };
            let metadata = stack::metadata_of(&path).await?;
            let prediction = memory::predict(&Model { context_size, slots, ..Model::default() }, &metadata);
            show(output, &path, &metadata, &prediction)?;
        }
    }
    Ok(exit::OK)
}

fn show(output: Output, path: &Path, metadata: &Metadata, prediction: &Prediction) -> Result<()> {
    let value = serde_json::json!({
        "path": path,
        "name": metadata.name,
        "architecture": metadata.architecture,
        "parameters": metadata.parameter_count,
        "quantisation": metadata.quantisation,
        "context_length": metadata.context_length,
        "layers": metadata.block_count,
        "heads": metadata.head_count.first(),
        "kv_heads": metadata.head_count_kv.first(),
        "embedding_length": metadata.embedding_length,
        "vocabulary": metadata.vocabulary_size,
        "chat_template": metadata.chat_template,
        "memory": {
            "weights": prediction.weights,
            "kv": prediction.kv,
            "compute": prediction.compute,
            "fixed": prediction.fixed,
            "needed": prediction.needed(),
        },
    });
    output.value(&value, |_| {
        let mut text = String::new();
        let mut field = |name: &str, value: String| {
            let _ = writeln!(text, "{name:<13} {value}");
        };
        field("file", path.display().to_string());
        field("name", metadata.name.clone().unwrap_or_default());
        field("architecture", metadata.architecture.clone());
        field("parameters", format!("{:.2} billion", metadata.parameter_count as f64 / 1e9));
        field("quantisation", metadata.quantisation.clone().unwrap_or_default());
        field("trained for", format!("{} tokens of context", metadata.context_length));
        field("layers", metadata.block_count.to_string());
        field("template", if metadata.chat_template.is_some() { "has a chat template" } else { "none" }.to_owned());
        let part = output::bytes;
        field(
            "memory",
            format!(
                "{} = weights {} + KV cache {} + compute {} + program {}",
                part(prediction.needed()),
                part(prediction.weights),
                part(prediction.kv),
                part(prediction.compute),
                part(prediction.fixed)
            ),
        );
        text
    })
}
