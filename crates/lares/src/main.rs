//! The `lares` command: the daemons, the stack on one machine, and everything a person does with them.
//!
//! It wires the other crates together and decides nothing itself.

use std::process::ExitCode;

use clap::Parser;

mod cli;
mod configuration;
mod control;
mod daemon;
mod demo;
mod engine;
mod heal;
mod incident;
mod key;
mod llama;
mod logging;
mod manual;
mod model;
mod notify;
mod output;
mod serve;
mod sse;
mod stack;
mod status;
mod task;
mod tools;
mod up;

use cli::{Cli, Command, exit};

fn main() -> ExitCode {
    // The launcher of confined runs comes before everything else: it forks, so it must have one thread only.
    let mut arguments = std::env::args_os();
    if arguments.nth(1).is_some_and(|first| first == serve::LAUNCHER_COMMAND) {
        return lares_agents::sandbox::launcher_main(arguments);
    }
    // The shell asks for completions; then this process does nothing else.
    manual::complete();
    let cli = Cli::parse();
    match run(cli) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{}: {error:#}", console::style("error").red().bold().for_stderr());
            ExitCode::from(exit_code(&error))
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<u8> {
    let global = cli.global;
    match cli.command {
        Command::Completions { shell } => return manual::completions(shell).map(|()| exit::OK),
        Command::Man { directory } => return manual::pages(&directory).map(|()| exit::OK),
        Command::Config(command) => return configuration::run(&global, command).map(|()| exit::OK),
        Command::Heal(command) => return heal::run(&global, &command),
        _ => {}
    }
    let mut building = tokio::runtime::Builder::new_multi_thread();
    if matches!(cli.command, Command::Serve(cli::Daemon::Helper)) {
        // It is asked once in a while, and its unit bounds its threads, however many cores there are.
        building.worker_threads(2).max_blocking_threads(8);
    }
    let runtime = building.enable_all().build()?;
    let result = runtime.block_on(async {
        match cli.command {
            Command::Up(arguments) => up::run(&global, &arguments).await,
            Command::Serve(daemon) => serve::run(&global, daemon).await,
            Command::Setup => stack::setup(&global).await,
            Command::Status => status::list(&global).await,
            Command::Unit(command) => status::run(&global, command).await,
            Command::Task(command) => task::run(&global, command).await,
            Command::Incident(command) => incident::run(&global, command).await,
            Command::Tools(command) => tools::run(&global, command).await,
            Command::Key(command) => key::run(&global, command).await,
            Command::Model(command) => model::run(&global, command).await,
            Command::Engine(command) => engine::run(&global, &command).await,
            Command::Demo(arguments) => demo::run(&global, &arguments).await,
            Command::Completions { .. } | Command::Man { .. } | Command::Config(_) | Command::Heal(_) => Ok(exit::OK),
        }
    });
    // Whatever still blocks a thread of the pool (a file on a dead disk) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    result
}

/// The exit code that tells scripts what kind of failure it was.
fn exit_code(error: &anyhow::Error) -> u8 {
    if let Some(error) = error.downcast_ref::<daemon::Error>() {
        return match error {
            daemon::Error::Unreachable { .. } => exit::UNREACHABLE,
            daemon::Error::Denied(_) | daemon::Error::NoKey { .. } => exit::DENIED,
            daemon::Error::NotFound(_) | daemon::Error::Refused(_) | daemon::Error::Strange { .. } => exit::FAILURE,
        };
    }
    if error.downcast_ref::<control::NotRunning>().is_some() {
        return exit::UNREACHABLE;
    }
    if error.downcast_ref::<lares_healer::patterns::Error>().is_some() {
        return exit::CONFIG;
    }
    if error.downcast_ref::<lares_config::Error>().is_some() { exit::CONFIG } else { exit::FAILURE }
}
