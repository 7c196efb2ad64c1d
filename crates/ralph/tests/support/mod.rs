//! A repository, a database, scripted agents, and a ralph that can be started, stopped and killed.
#![allow(clippy::unwrap_used, dead_code, reason = "every test file uses its own part of it")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use lares_agents::sandbox::Launcher;
use lares_agents::{Backend, BackendError, Outcome, Run};
use lares_config::{Config, SandboxMode};
use lares_gate::Secret;
use lares_ralph::api::{SubmitTask, Task, TaskDetail, TaskState};
use lares_ralph::{Backends, ServeError, serve_with};
use lares_store::Store;
use lares_store::keys::{Key, Role};
use lares_store::testing::{Cluster, TestDatabase};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Longest anything in these tests may take, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(90);

pub fn git(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=Test", "-c", "user.email=test@localhost", "-c", "commit.gpgSign=false"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// What a scripted agent does with a run.
pub type Script = Arc<dyn Fn(&Run) -> Result<(), BackendError> + Send + Sync>;

/// An agent that does what a test says.
#[derive(Clone)]
pub struct Scripted {
    pub script: Script,
    /// Time each run takes.
    pub takes: Duration,
    pub runs: Arc<std::sync::Mutex<Vec<Run>>>,
}

impl Scripted {
    pub fn new(script: impl Fn(&Run) -> Result<(), BackendError> + Send + Sync + 'static) -> Self {
        Self { script: Arc::new(script), takes: Duration::ZERO, runs: Arc::default() }
    }

    pub fn taking(mut self, time: Duration) -> Self {
        self.takes = time;
        self
    }

    /// Writes a file, says nothing that sounds like success.
    pub fn writing(path: &'static str, text: &'static str) -> Self {
        Self::new(move |run| {
            std::fs::write(run.worktree.join(path), text).unwrap();
            Ok(())
        })
    }

    pub fn seen(&self) -> Vec<Run> {
        self.runs.lock().unwrap().clone()
    }

    pub fn backends(&self) -> Backends {
        let agent: Arc<dyn Backend> = Arc::new(self.clone());
        Arc::new(move |name, _| match name {
            "builtin" => Ok(Arc::clone(&agent)),
            other => Err(format!("there is no backend `{other}`; there is `builtin`")),
        })
    }
}

#[async_trait]
impl Backend for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn run(&self, run: &Run, shutdown: &CancellationToken) -> Result<Outcome, BackendError> {
        self.runs.lock().unwrap().push(run.clone());
        if shutdown.run_until_cancelled(tokio::time::sleep(self.takes)).await.is_none() {
            return Err(BackendError::Cancelled);
        }
        (self.script)(run)?;
        Ok(Outcome {
            summary: "All done, every test passes! <promise>COMPLETE</promise>".to_owned(),
            ..Outcome::default()
        })
    }
}

pub struct Place {
    pub db: TestDatabase,
    pub dir: tempfile::TempDir,
    pub repo: PathBuf,
    pub config: Config,
    pub store: Store,
    pub secrets: BTreeMap<&'static str, String>,
}

impl Place {
    /// A repository whose check `sh tests/test_answer.sh` wants 42 in `answer.txt`, which holds 41.
    pub async fn new() -> Self {
        Self::over(Cluster::shared().await).await
    }

    /// The same over another database.
    pub async fn over(db: TestDatabase) -> Self {
        Self::make(db, tempfile::tempdir().unwrap()).await
    }

    /// The same below this directory.
    pub async fn below(dir: &str) -> Self {
        Self::make(Cluster::shared().await, tempfile::tempdir_in(dir).unwrap()).await
    }

    async fn make(db: TestDatabase, dir: tempfile::TempDir) -> Self {
        let repo = dir.path().join("repo");
        std::fs::create_dir_all(repo.join("tests")).unwrap();
        git(&repo, &["init", "-q", "-b", "main"]);
        std::fs::write(repo.join("answer.txt"), "41\n").unwrap();
        std::fs::write(
            repo.join("tests/test_answer.sh"),
            "echo \"answer is $(cat answer.txt)\"\ngrep -qx 42 answer.txt\n",
        )
        .unwrap();
        git(&repo, &["add", "-A"]);
        git(&repo, &["commit", "-qm", "base"]);
        let mut config = Config { state_dir: dir.path().join("state"), store: db.config(), ..Config::default() };
        config.agents.sandbox.mode = SandboxMode::Off;
        config.ralph.listen = free_address();
        config.ralph.min_free_disk = lares_config::ByteSize::mib(1);
        config.ralph.lease = Duration::from_secs(5);
        let store = db.store().await;
        let mut secrets = BTreeMap::new();
        for (name, role) in [("viewer", Role::Viewer), ("operator", Role::Operator)] {
            let secret = Secret::generate().unwrap();
            store.keys().insert(&Key::new(name, role, secret.hash())).await.unwrap();
            secrets.insert(name, secret.expose().to_owned());
        }
        Self { db, dir, repo, config, store, secrets }
    }

    pub async fn start(&self, agent: &Scripted) -> Ralph {
        self.start_with(self.config.clone(), agent).await
    }

    pub async fn start_with(&self, config: Config, agent: &Scripted) -> Ralph {
        let shutdown = CancellationToken::new();
        let launcher = Launcher { program: env!("CARGO_BIN_EXE_lares-ralph-sandbox").into(), args: Vec::new() };
        let store = self.db.store().await;
        let url = format!("http://{}", config.ralph.listen);
        let serving = serve_with(Arc::new(config), store, launcher, agent.backends(), shutdown.clone());
        let ralph = Ralph {
            url,
            client: reqwest::Client::new(),
            key: self.secrets["operator"].clone(),
            viewer: self.secrets["viewer"].clone(),
            shutdown,
            handle: tokio::spawn(serving),
        };
        let began = Instant::now();
        while ralph.client.get(format!("{}/health", ralph.url)).send().await.is_err() {
            assert!(!ralph.handle.is_finished(), "ralph ended: {:?}", ralph.handle.await);
            assert!(began.elapsed() < PATIENCE, "ralph does not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        ralph
    }

    pub fn request(&self) -> SubmitTask {
        SubmitTask {
            prompt: "Make the answer right".to_owned(),
            repo: self.repo.display().to_string(),
            check: "sh tests/test_answer.sh".to_owned(),
            ..SubmitTask::default()
        }
    }

    /// Lets every lease run out now, as time would.
    pub async fn expire_leases(&self) {
        let client = self.db.client().await;
        client
            .execute(
                "UPDATE tasks SET lease_until = clock_timestamp() - interval '1 second' WHERE state = 'running'",
                &[],
            )
            .await
            .unwrap();
        client.execute("SELECT pg_notify('lares_tasks', '')", &[]).await.unwrap();
    }

    pub async fn log(&self, id: Uuid) -> Vec<String> {
        let lines = self.store.tasks().log_after(id, 0, 1000).await.unwrap();
        lines.into_iter().map(|line| format!("{}: {}", line.kind, line.message)).collect()
    }

    /// No worktree, no checkpoint ref, and the person's own branch and files as they were.
    pub fn assert_clean(&self) {
        let worktrees: Vec<_> = std::fs::read_dir(self.config.worktrees_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with('.'))
            .collect();
        assert!(worktrees.is_empty(), "left behind: {worktrees:?}");
        assert_eq!(git(&self.repo, &["worktree", "list", "--porcelain"]).matches("worktree ").count(), 1);
        assert_eq!(git(&self.repo, &["for-each-ref", "refs/lares/"]), "");
        assert_eq!(git(&self.repo, &["status", "--porcelain"]), "");
        assert_eq!(git(&self.repo, &["log", "--format=%s", "main"]), "base");
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

pub struct Ralph {
    pub url: String,
    pub client: reqwest::Client,
    pub key: String,
    pub viewer: String,
    pub shutdown: CancellationToken,
    pub handle: JoinHandle<Result<(), ServeError>>,
}

impl Ralph {
    pub fn post(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.post(format!("{}{path}", self.url)).bearer_auth(&self.key)
    }

    pub fn get(&self, path: &str) -> reqwest::RequestBuilder {
        self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.viewer)
    }

    pub async fn submit(&self, request: &SubmitTask) -> Task {
        let response = self.post("/tasks").json(request).send().await.unwrap();
        assert_eq!(response.status(), 201, "{}", response.text().await.unwrap());
        response.json().await.unwrap()
    }

    pub async fn show(&self, id: Uuid) -> TaskDetail {
        self.get(&format!("/tasks/{id}")).send().await.unwrap().json().await.unwrap()
    }

    /// The task once it is in one of these states.
    pub async fn until(&self, id: Uuid, states: &[TaskState]) -> TaskDetail {
        let began = Instant::now();
        loop {
            let detail = self.show(id).await;
            if states.contains(&detail.task.state) {
                return detail;
            }
            assert!(began.elapsed() < PATIENCE, "not {states:?} in time: {detail:#?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn ended(&self, id: Uuid) -> TaskDetail {
        self.until(id, &[TaskState::Succeeded, TaskState::Failed, TaskState::Cancelled, TaskState::AwaitingApproval])
            .await
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(12), self.handle).await.unwrap().unwrap().unwrap();
    }

    /// Ends it in the middle of whatever it does, with nothing written down.
    pub async fn kill(self) {
        self.handle.abort();
        let _ = self.handle.await;
    }
}

/// Waits until `ready` says so.
pub async fn eventually(what: &str, mut ready: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !ready().await {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
