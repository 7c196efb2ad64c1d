//! What the coordinator costs: the same load straight to an upstream and through the coordinator, in turns, in one run.
//!
//! `overhead` measures added latency at a fixed rate (open loop) and the requests one core can take, against a stub
//! upstream. The coordinator runs in a process of its own, by itself on one core where there are two; load and stub
//! share the other. It needs PostgreSQL's programs, because every request leaves its event as in real use.
//!
//! `overhead --llama URL --model NAME` compares tokens a second of a running llama-server (key in `LARES_BENCH_KEY`).

mod coordinator;
mod llama;
mod load;
mod report;

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use lares_gate::{Role, Secret};
use lares_store::keys::Key;
use lares_store::testing;

/// How this program calls itself.
const AS_COORDINATOR: &str = "as-coordinator";
const AS_LOAD: &str = "as-load";

/// The environment of the processes this program starts; secrets have no place in their arguments.
mod env {
    pub(crate) const STORE: &str = "LARES_BENCH_STORE";
    pub(crate) const STATE: &str = "LARES_BENCH_STATE";
    /// Key shown to the coordinator.
    pub(crate) const CALLER: &str = "LARES_BENCH_CALLER";
    /// Key shown to llama-server.
    pub(crate) const LLAMA: &str = "LARES_BENCH_KEY";
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [] => orchestrate(&Mode::Stub),
        ["--llama", url, "--model", model] => {
            orchestrate(&Mode::Llama { url: (*url).to_owned(), model: (*model).to_owned() })
        }
        [role, upstream, model, port] if *role == AS_COORDINATOR => coordinator::run(upstream, model, port.parse()?),
        [role, stub_port, coordinator_port, pid] if *role == AS_LOAD => {
            load::run(stub_port.parse()?, coordinator_port.parse()?, pid.parse()?)
        }
        _ => bail!("usage: overhead [--llama URL --model NAME]; URL ends in /v1"),
    }
}

enum Mode {
    Stub,
    Llama { url: String, model: String },
}

fn orchestrate(mode: &Mode) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let database = testing::Cluster::shared().await;
        let caller = Secret::generate()?;
        let store = database.store().await;
        store.keys().insert(&Key::new("bench", Role::Client, caller.hash())).await?;
        let url = database.config().url;
        let state = tempfile::tempdir()?;
        let [stub_port, port] = [free_port()?, free_port()?];
        let (upstream, model) = match mode {
            Mode::Stub => (format!("http://127.0.0.1:{stub_port}/v1"), "stub".to_owned()),
            Mode::Llama { url, model } => (url.clone(), model.clone()),
        };
        let pin = matches!(mode, Mode::Stub);
        let start = |core: u8, arguments: &[&str]| -> Result<Running> {
            let mut command = this_program(pin.then_some(core))?;
            command
                .args(arguments)
                .env(env::STORE, &url)
                .env(env::STATE, state.path())
                .env(env::CALLER, caller.expose());
            Ok(Running(command.stdin(Stdio::piped()).spawn().context("cannot start this program again")?))
        };
        let coordinator = start(1, &[AS_COORDINATOR, &upstream, &model, &port.to_string()])?;
        wait_for(port).await?;
        match mode {
            Mode::Stub => {
                let pid = coordinator.0.id().to_string();
                let mut load = start(0, &[AS_LOAD, &stub_port.to_string(), &port.to_string(), &pid])?;
                let status = tokio::task::spawn_blocking(move || load.0.wait()).await??;
                if !status.success() {
                    bail!("the load ended with {status}");
                }
            }
            Mode::Llama { url, model } => {
                let through = format!("http://127.0.0.1:{port}/v1");
                llama::compare(url, &through, model, caller.expose()).await?;
            }
        }
        drop(coordinator);
        let events = store.events().recent(Some("request"), 1).await?;
        if events.is_empty() {
            bail!("no event reached PostgreSQL: what was measured is not the real thing");
        }
        Ok(())
    })
}

/// A child that ends with this process, however that ends: the coordinator stops when its standard input does.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// This program again, on one core if there are several and `taskset` is there.
fn this_program(core: Option<u8>) -> Result<Command> {
    let program = std::env::current_exe()?;
    let cores = std::thread::available_parallelism()?.get();
    let taskset = || Command::new("taskset").arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success());
    Ok(match core {
        Some(core) if cores > 1 && taskset() => {
            let mut command = Command::new("taskset");
            command.args(["-c", &core.to_string()]).arg(program);
            command
        }
        Some(_) => {
            eprintln!(
                "note: one core only, or no taskset: nothing is pinned, and load and coordinator disturb each other"
            );
            Command::new(program)
        }
        None => Command::new(program),
    })
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

async fn wait_for(port: u16) -> Result<()> {
    for _ in 0..1500 {
        if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bail!("the coordinator did not come up within 30 s")
}
