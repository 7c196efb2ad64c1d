//! Man pages and completions, made from the command line's own definition.

use std::path::Path;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::CompleteEnv;
use clap_complete::env::Shells;

use crate::cli::Cli;
use crate::output;

/// The environment variable by which a shell's completions ask this program.
const COMPLETE: &str = "LARES_COMPLETE";

/// Answers a shell that asks for completions and ends; otherwise does nothing.
pub fn complete() {
    CompleteEnv::with_factory(Cli::command).var(COMPLETE).bin("lares").complete();
}

/// Prints the completions for a shell: a few lines that ask this program each time, so that names of tools are known.
pub fn completions(shell: clap_complete::Shell) -> Result<()> {
    let name = shell.to_string();
    let completer = Shells::builtins();
    let completer = completer.completer(&name).with_context(|| format!("there are no completions for {name}"))?;
    let mut script = Vec::new();
    completer.write_registration(COMPLETE, "lares", "lares", "lares", &mut script)?;
    output::line(&String::from_utf8(script)?)
}

/// Writes `lares.1`, `lares-up.1`, … into a directory.
pub fn pages(directory: &Path) -> Result<()> {
    let failed = || format!("cannot write man pages into {}", directory.display());
    std::fs::create_dir_all(directory).with_context(failed)?;
    clap_mangen::generate_to(Cli::command(), directory).with_context(failed)
}
