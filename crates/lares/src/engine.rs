//! `lares engine …`: the `llama-server` binary.

use anyhow::Result;
use lares_config::Config;
use lares_llama::options::{self, Placement};
use lares_llama::server::Server;
use lares_llama::{engine, install, machine, progress};
use serde_json::json;
use tokio::task::spawn_blocking;

use crate::cli::{self, Global, exit};
use crate::output::Output;
use crate::{configuration, stack};

/// Carries out `lares engine …`.
pub async fn run(global: &Global, command: &cli::Engine) -> Result<u8> {
    let config = configuration::load(global)?.config;
    let output = Output { json: global.json };
    match command {
        cli::Engine::Install => {
            let path = install::install(&config.engines_dir(), &*progress::on_stderr()).await?;
            output.value(&json!({ "path": path }), |_| path.display().to_string())?;
        }
        cli::Engine::Show => show(&config, output).await?,
    }
    Ok(exit::OK)
}

async fn show(config: &Config, output: Output) -> Result<()> {
    let path = {
        let config = config.clone();
        spawn_blocking(move || engine::find(&config)).await??
    };
    let server = Server::probe(&path).await?;
    let mut models = Vec::new();
    let cores = spawn_blocking(machine::physical_cores).await?;
    for (name, model) in &config.models {
        let file = stack::file_of(config, name, model).await?;
        let metadata = stack::metadata_of(&file).await?;
        let placement = Placement { name, file: &file, port: model.port, cores, api_key_file: None };
        let outcome = options::render(model, &metadata, &server, &placement);
        let flags = outcome
            .as_ref()
            .ok()
            .map(|args| args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>());
        models.push(json!({ "model": name, "flags": flags, "problem": outcome.err().map(|error| error.to_string()) }));
    }
    let value =
        json!({ "path": server.path, "version": server.version.text, "flags": server.flags().len(), "models": models });
    output.value(&value, |value| {
        let mut text =
            format!("{}\n{}, {} flags known", server.path.display(), server.version.text, server.flags().len());
        for model in value["models"].as_array().into_iter().flatten() {
            let name = model["model"].as_str().unwrap_or_default();
            let flags: Vec<_> =
                model["flags"].as_array().into_iter().flatten().filter_map(|flag| flag.as_str()).collect();
            let line = model["problem"].as_str().map_or_else(|| flags.join(" "), str::to_owned);
            text.push_str(&format!("\n{name}: {line}"));
        }
        text
    })
}
