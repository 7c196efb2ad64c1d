//! `lares demo`: the main job, shown from nothing to a commit, and an injury that heals.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use console::style;
use lares_config::{Config, Model};
use lares_ralph::api::{SubmitTask, Task, TaskDetail, TaskList, TaskState};
use lares_units::State;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use crate::cli::{self, Global, exit};
use crate::control::{Client, Overview};
use crate::daemon::Daemon;
use crate::output::{self, Output, seconds};
use crate::{configuration, incident, serve, stack, status, task};

/// The repository with the failing tests.
const FILES: [(&str, &str); 3] = [
    ("README.md", include_str!("../demo/README.md")),
    ("scores.py", include_str!("../demo/scores.py")),
    ("test_scores.py", include_str!("../demo/test_scores.py")),
];
const PROMPT: &str = "make the tests pass";
const CHECK: &str = "python3 -m unittest";
/// Name of the model in the demo's stack.
const MODEL: &str = "coder";

/// Carries out `lares demo`.
pub async fn run(global: &Global, arguments: &cli::Demo) -> Result<u8> {
    let began = Instant::now();
    let shutdown = serve::shutdown_on_signals()?;
    let mut config = configuration::load(global)?.config;
    let source = arguments.model.clone().unwrap_or_else(|| stack::DEFAULT_MODEL.to_owned());
    config.models = [(MODEL.to_owned(), Model { source: Some(source.clone()), ..Model::default() })].into();
    let state_dir = config.state_dir.clone();
    stack::make_state_dir(&state_dir).await?;

    say(1, &format!("llama-server and the model {source}"));
    let work = async {
        stack::fetch(&config).await?;
        let demo = Demonstration { config, state_dir: state_dir.clone(), arguments };
        demo.show(began).await
    };
    tokio::select! {
        result = work => result,
        () = shutdown.cancelled() => bail!("interrupted; what is left is in {}", state_dir.display()),
    }
}

fn say(step: u32, text: &str) {
    println!("\n{} {}", style(format!("[{step}/5]")).cyan().bold(), style(text).bold());
}

struct Demonstration<'a> {
    config: Config,
    state_dir: PathBuf,
    arguments: &'a cli::Demo,
}

impl Demonstration<'_> {
    async fn show(&self, began: Instant) -> Result<u8> {
        say(2, "lares up: PostgreSQL, llama-server, coordinator, ralph, tools");
        let mut up = self.start_up().await?;
        let shown = self.show_running(&mut up).await;
        // Whatever happened: nothing of it stays.
        let stopped = stop(&mut up).await;
        let code = shown?;
        say(5, "everything is stopped");
        println!(
            "stopped in {}, no process left. The state is in {}\nthe whole demo took {}; `rm -r` that directory removes all of it",
            seconds(stopped?),
            style(self.state_dir.display()).bold(),
            seconds(began.elapsed())
        );
        Ok(code)
    }

    /// `lares up` with the demo's configuration, as a person would start it in another terminal.
    async fn start_up(&self) -> Result<Child> {
        let file = self.state_dir.join("demo.toml");
        tokio::fs::write(&file, self.config.to_toml()?)
            .await
            .with_context(|| format!("cannot write {}", file.display()))?;
        let log = self.state_dir.join("logs/up.log");
        let out = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // setpriv ends it when this process dies without a chance to.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM", "--"]).arg(std::env::current_exe()?).arg("--config").arg(&file).arg("up");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("LARES_")) {
            command.env_remove(name);
        }
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        command.spawn().context("cannot start `lares up` through setpriv (Debian package util-linux)")
    }

    async fn show_running(&self, up: &mut Child) -> Result<u8> {
        let client = Client::new(&self.state_dir);
        let began = Instant::now();
        let overview = self.ready(up, &client).await?;
        println!("{}", status::units(&overview.units));
        println!("ready in {}", seconds(began.elapsed()));

        // The addresses `lares up` chose are in the configuration it wrote for its daemons.
        let effective = lares_config::Sources {
            file: Some(configuration::effective_file(&self.state_dir)),
            ..lares_config::Sources::default()
        }
        .load()?
        .config;
        let ralph = Daemon::ralph(&effective)?;
        let code = self.solve(&ralph).await?;
        self.injure(&client, &effective).await?;
        Ok(code)
    }

    async fn ready(&self, up: &mut Child, client: &Client) -> Result<Overview> {
        loop {
            if let Some(status) = up.try_wait()? {
                let log = std::fs::read_to_string(self.state_dir.join("logs/up.log")).unwrap_or_default();
                bail!("`lares up` ended with {status}:\n{}", log.trim());
            }
            if let Ok(overview) = client.overview().await
                && overview.units.iter().all(|unit| unit.state == State::Active)
            {
                return Ok(overview);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The task, as often as was asked for.
    async fn solve(&self, ralph: &Daemon) -> Result<u8> {
        // What an interrupted demo left in the queue would come first.
        let left: TaskList = ralph.get("/tasks?limit=100").await?;
        for task in left.tasks.iter().filter(|task| !task.state.is_final()) {
            let _: Task = ralph.command(&format!("/tasks/{}/cancel", task.id)).await?;
        }
        let mut outcomes = Vec::new();
        for run in 1..=self.arguments.runs {
            say(3, &format!("a task: {PROMPT:?}, decided by `{CHECK}`{}", self.run_of(run)));
            let repo = self.clone_example().await?;
            let request = SubmitTask {
                prompt: PROMPT.to_owned(),
                repo: repo.to_string_lossy().into_owned(),
                check: CHECK.to_owned(),
                max_iterations: Some(self.arguments.max_iterations),
                ..SubmitTask::default()
            };
            let submitted: Task = ralph.post("/tasks", &request).await?;
            let end = task::watch(ralph, submitted.id, true, &mut task::Printer::new(Output { json: false })).await?;
            let ended = end.context("the task's log ended before the task did")?;
            let detail: TaskDetail = ralph.get(&format!("/tasks/{}", ended.id)).await?;
            if let (TaskState::Succeeded, Some(commit)) = (ended.state, &ended.result_commit) {
                println!("\n{}", task::diff(ralph, ended.id).await?.trim_end());
                println!("\n{}", git(&repo, &["show", "--no-patch", "--stat", commit]).await?);
            }
            outcomes.push((ended.state, detail.iterations.len(), ended.worked_seconds));
        }
        let solved = outcomes.iter().filter(|(state, ..)| *state == TaskState::Succeeded).count();
        if outcomes.len() > 1 {
            let rows = outcomes.iter().enumerate().map(|(run, (state, iterations, took))| {
                [(run + 1).to_string(), state.to_string(), iterations.to_string(), format!("{took:.1} s")]
            });
            println!("\n{}", output::table(["run", "state", "iterations", "time"], rows));
        }
        println!("solved {solved} of {}", outcomes.len());
        Ok(if solved == outcomes.len() { exit::OK } else { exit::TASK_FAILED })
    }

    fn run_of(&self, run: u32) -> String {
        if self.arguments.runs > 1 { format!(" (run {run} of {})", self.arguments.runs) } else { String::new() }
    }

    /// A fresh clone of the example, whose origin is made from what this binary carries.
    async fn clone_example(&self) -> Result<PathBuf> {
        let origin = self.state_dir.join("demo/origin");
        let repo = self.state_dir.join("demo/scores");
        for directory in [&origin, &repo] {
            match tokio::fs::remove_dir_all(directory).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("cannot clear {}", directory.display()));
                }
                _ => {}
            }
        }
        tokio::fs::create_dir_all(&origin).await?;
        for (name, content) in FILES {
            tokio::fs::write(origin.join(name), content).await?;
        }
        git(&origin, &["init", "--quiet", "--initial-branch", "main"]).await?;
        git(&origin, &["add", "--all"]).await?;
        let author = ["-c", "user.name=Example", "-c", "user.email=example@example.org", "-c", "commit.gpgsign=false"];
        git(
            &origin,
            &[&author[..], &["commit", "--quiet", "--message", "Scores of a game, with a failing test"]].concat(),
        )
        .await?;
        let (from, to) = (origin.to_string_lossy().into_owned(), repo.to_string_lossy().into_owned());
        git(&self.state_dir, &["clone", "--quiet", &from, &to]).await?;
        println!("cloned into {}", repo.display());
        Ok(repo)
    }

    /// Kills llama-server and waits until it is back and answers.
    async fn injure(&self, client: &Client, config: &Config) -> Result<()> {
        let name = stack::llama_unit(MODEL);
        let unit = |overview: Overview| overview.units.into_iter().find(|unit| unit.name.as_str() == name);
        let before = unit(client.overview().await?).context("the stack has no llama-server")?;
        let pid = before.pid.context("llama-server has no process")?;
        say(4, &format!("kill -9 {pid} (llama-server)"));
        let began = Instant::now();
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL).context("cannot kill llama-server")?;
        let mut noticed = None;
        let after = loop {
            if began.elapsed() > Duration::from_secs(120) {
                bail!("llama-server is not back after 120 s; its log is in {}", self.state_dir.join("logs").display());
            }
            let now = unit(client.overview().await?).context("the stack lost llama-server")?;
            if now.pid != Some(pid) || now.state != State::Active {
                noticed.get_or_insert(began.elapsed());
            }
            if now.state == State::Active && now.pid.is_some_and(|new| new != pid) {
                break now;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let back = began.elapsed();
        println!(
            "noticed within {}, back and ready in {} as process {} ({})",
            seconds(noticed.unwrap_or_default()),
            style(seconds(back)).green().bold(),
            after.pid.unwrap_or_default(),
            after.last_exit.map_or_else(String::new, |exit| exit.to_string())
        );
        let answer = chat(config).await?;
        println!("asked through the coordinator, it answers: {:?}", answer.trim());
        if let Some(story) = incident::story(&Daemon::healer(config)?, &name).await? {
            println!("the healer wrote down (`lares incident list`):\n{story}");
        }
        Ok(())
    }
}

/// One short answer through the coordinator.
async fn chat(config: &Config) -> Result<String> {
    let key = tokio::fs::read_to_string(config.admin_key_file()).await?;
    let body = serde_json::json!({
        "model": MODEL,
        "messages": [{ "role": "user", "content": "Say hello in one word." }],
        "max_tokens": 8,
        "temperature": 0,
    });
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(120)).build()?;
    let answer: serde_json::Value = client
        .post(format!("http://{}/v1/chat/completions", config.coordinator.listen))
        .bearer_auth(key.trim())
        .json(&body)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    answer["choices"][0]["message"]["content"]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("an answer without content: {answer}"))
}

/// Ctrl-C for `lares up`; gives how long it took.
async fn stop(up: &mut Child) -> Result<Duration> {
    let began = Instant::now();
    if let Some(pid) = up.id() {
        kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGINT).context("cannot stop `lares up`")?;
        if tokio::time::timeout(Duration::from_secs(15), up.wait()).await.is_err() {
            up.kill().await?;
            bail!("`lares up` did not stop within 15 s and was killed");
        }
    }
    Ok(began.elapsed())
}

async fn git(directory: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .await
        .context("cannot run git (Debian package git)")?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}
