//! Runs one check confined to a directory and prints what came of it.
//!
//! `run_check LAUNCHER DIRECTORY COMMAND`, where LAUNCHER is the `lares-sandbox` binary.

use std::path::PathBuf;
use std::time::Duration;

use lares_agents::exec::{self, Command, Limits};
use lares_agents::sandbox::{Launcher, Policy};
use lares_config::Sandbox;
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() {
    let mut args = std::env::args().skip(1);
    let (Some(launcher), Some(directory), Some(line)) = (args.next(), args.next().map(PathBuf::from), args.next())
    else {
        eprintln!("usage: run_check LAUNCHER DIRECTORY COMMAND");
        std::process::exit(2);
    };
    let sandbox = Sandbox::default();
    let launcher = Launcher { program: launcher.into(), args: Vec::new() };
    let policy = Policy::for_check(&sandbox, &directory);
    let limits = Limits::new(&sandbox, Duration::from_secs(60));
    let command = Command::shell(&line, &directory);
    match exec::run(&launcher, &policy, &command, &limits, &CancellationToken::new()).await {
        Ok(output) => println!("{}\n{} in {:?}, {:?}", output.text(), output.exit, output.duration, output.confinement),
        Err(error) => {
            eprintln!("{error}");
            std::process::exit(1);
        }
    }
}
