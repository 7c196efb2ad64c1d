//! Pulls a model of the catalog: `cargo run -p lares-llama --example pull -- DIRECTORY NAME`.

use std::process::ExitCode;

use lares_llama::catalog::{self, Artifact};
use lares_llama::gguf::Metadata;
use lares_llama::progress;
use lares_llama::pull::Puller;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [directory, name] = arguments.as_slice() else {
        eprintln!("usage: pull DIRECTORY NAME");
        for entry in catalog::entries() {
            eprintln!("  {}: {} ({}, {})", entry.name, entry.description, entry.parameters, entry.licence);
        }
        return ExitCode::from(2);
    };
    match pull(directory, name).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn pull(directory: &str, name: &str) -> Result<(), Box<dyn std::error::Error>> {
    let artifact = Artifact::from(catalog::find(name)?);
    let path = Puller::new(directory).pull(&artifact, progress::on_stderr().as_ref()).await?;
    let model = Metadata::read(&path)?;
    println!(
        "{}: {} {}, {} tokens of context, {} parameters",
        path.display(),
        model.architecture,
        model.quantisation.unwrap_or_default(),
        model.context_length,
        model.parameter_count
    );
    Ok(())
}
