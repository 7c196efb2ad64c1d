//! Builds llama-server for this machine: `cargo run -p lares-llama --example install_engine -- DIRECTORY`.

use std::path::Path;
use std::process::ExitCode;

use lares_llama::{install, progress};

#[tokio::main]
async fn main() -> ExitCode {
    let Some(directory) = std::env::args().nth(1) else {
        eprintln!("usage: install_engine DIRECTORY");
        return ExitCode::from(2);
    };
    match install::install(Path::new(&directory), progress::on_stderr().as_ref()).await {
        Ok(binary) => {
            println!("{}", binary.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
