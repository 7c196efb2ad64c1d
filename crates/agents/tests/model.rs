//! The built-in agent with a real model: how many of the broken repositories it repairs, and after how many iterations.
//!
//! Needs `LARES_TEST_LLAMA_SERVER` (the binary) and `LARES_TEST_MODEL` (a GGUF file of a coding model); run it with
//! `--no-capture` to see the table. `LARES_TEST_THREADS` (2) and `LARES_TEST_VERBOSE` (unset) are optional. With
//! `LARES_TEST_REPOSITORIES=all` it measures all of them, which takes ten minutes on two cores (`make bench` does).
#![allow(clippy::unwrap_used)]

mod broken;
mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use broken::{ALL, CHECK, PROMPT, Repository, git};
use common::Place;
use lares_agents::backend::{Backend, CheckReport, Run};
use lares_agents::builtin::{Builtin, Settings};
use lares_agents::sandbox::Policy;
use lares_config::EditFormat;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Iterations a repository gets when all are measured.
const ITERATIONS: u32 = 5;
/// Repositories and iterations of the test, and how many it has to repair: each of these took one iteration with
/// Qwen2.5-Coder 0.5B, and a processor that rounds differently may lose some.
const SAMPLE: usize = 4;
const SAMPLE_ITERATIONS: u32 = 2;
const SAMPLE_LEAST: u32 = 2;
/// From this iteration on every attempt starts from the base again, at a temperature.
const FRESH_FROM: u32 = 4;

struct Server {
    process: Child,
    url: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(binary: &str, model: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let threads = std::env::var("LARES_TEST_THREADS").unwrap_or_else(|_| "2".to_owned());
        let process = Command::new(binary)
            .args(["--model", model, "--host", "127.0.0.1", "--port", &port.to_string()])
            .args(["-c", "8192", "--parallel", "1", "-fa", "on", "-ub", "128", "-t", &threads])
            .env("OMP_WAIT_POLICY", "passive")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, url: format!("http://127.0.0.1:{port}/v1") }
    }

    async fn ready(&self) {
        let started = Instant::now();
        let health = self.url.replace("/v1", "/health");
        loop {
            if reqwest::get(&health).await.is_ok_and(|answer| answer.status().is_success()) {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(120), "llama-server did not become ready");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The iteration after which the check passed, and the seconds all took.
async fn repair(agent: &Builtin, repository: &Repository, iterations: u32) -> (Option<u32>, f64) {
    let mut place = Place::new();
    let directory = place.path().to_owned();
    repository.write(&directory);
    place.policy = Policy::for_check(&place.sandbox, &directory);
    let started = Instant::now();
    let mut run = Run::new(Uuid::now_v7(), PROMPT, &directory, CHECK);
    for iteration in 1..=iterations {
        run.iteration = iteration;
        run.fresh = iteration >= FRESH_FROM;
        run.seed = Some(iteration);
        run.temperature = if run.fresh { 0.7 } else { 0.0 };
        if run.fresh {
            git(&directory, &["checkout", "-q", "--", "."]);
            git(&directory, &["clean", "-qfd"]);
        }
        run.diff = git(&directory, &["diff"]);
        run.last_check = Some(CheckReport::from(&place.run(CHECK).await));
        let outcome = agent.run(&run, &CancellationToken::new()).await.unwrap();
        if std::env::var_os("LARES_TEST_VERBOSE").is_some() {
            for exchange in &outcome.transcript {
                eprintln!(
                    "--- {} {iteration}\n{}\n>>>\n{}\n=== {}",
                    repository.name, exchange.prompt, exchange.answer, exchange.verdict
                );
            }
        }
        assert_eq!(outcome.changed.is_empty(), outcome.empty.is_some());
        if outcome.changed.is_empty() {
            assert_eq!(git(&directory, &["diff"]), run.diff, "a change was made and not reported");
        }
        let tests_changed = git(&directory, &["status", "--porcelain"]).lines().any(|line| line.contains("test"));
        assert!(!tests_changed, "the agent changed a test");
        if place.run(CHECK).await.success() {
            return (Some(iteration), started.elapsed().as_secs_f64());
        }
    }
    (None, started.elapsed().as_secs_f64())
}

#[tokio::test]
async fn a_real_model_repairs_small_repositories() {
    let (Ok(binary), Ok(model)) = (std::env::var("LARES_TEST_LLAMA_SERVER"), std::env::var("LARES_TEST_MODEL")) else {
        eprintln!("SKIP a_real_model_repairs_small_repositories: LARES_TEST_LLAMA_SERVER or LARES_TEST_MODEL is unset");
        return;
    };
    let server = Server::start(&binary, &model);
    server.ready().await;
    let agent = Builtin::new(Settings {
        url: server.url.clone(),
        key_file: None,
        model: Path::new(&model).file_stem().unwrap().to_string_lossy().into_owned(),
        edit_format: EditFormat::WholeFile,
        max_prompt: 12 << 10,
        max_answer_tokens: 2048,
        answer_timeout: Duration::from_secs(300),
        window: Some(8192),
        billions: None,
    })
    .unwrap();
    let all = std::env::var("LARES_TEST_REPOSITORIES").is_ok_and(|wanted| wanted == "all");
    let (repositories, iterations) = if all { (ALL, ITERATIONS) } else { (&ALL[..SAMPLE], SAMPLE_ITERATIONS) };
    let mut solved = vec![0_u32; iterations as usize];
    for repository in repositories {
        let (iteration, seconds) = repair(&agent, repository, iterations).await;
        let said = iteration.map_or("not repaired".to_owned(), |iteration| format!("iteration {iteration}"));
        eprintln!("{:<28} {said:<14} {seconds:6.1} s", repository.name);
        for count in solved.iter_mut().skip(iteration.map_or(iterations, |iteration| iteration - 1) as usize) {
            *count += 1;
        }
    }
    eprintln!("repaired of {} within 1 to {iterations} iterations: {solved:?}", repositories.len());
    assert!(solved[solved.len() - 1] >= SAMPLE_LEAST, "fewer than {SAMPLE_LEAST} repositories were repaired");
}
