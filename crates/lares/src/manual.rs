//! Man pages and completions, made from the command line's own definition.

use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;

use crate::cli::Cli;

/// Prints the completions for a shell.
pub fn completions(shell: clap_complete::Shell) {
    clap_complete::generate(shell, &mut Cli::command(), "lares", &mut std::io::stdout());
}

/// Writes `lares.1`, `lares-up.1`, … into a directory.
pub fn pages(directory: &Path) -> Result<()> {
    let failed = || format!("cannot write man pages into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(failed)
}
