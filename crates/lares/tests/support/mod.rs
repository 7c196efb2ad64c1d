//! A real stack for the tests of the whole: `lares up` in a directory of its own, with the model the suite fetched.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "each test file uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The demo's repository: small enough for the smallest model.
pub const EXAMPLE: [(&str, &str); 2] = [
    ("scores.py", include_str!("../../demo/scores.py")),
    ("test_scores.py", include_str!("../../demo/test_scores.py")),
];

/// Tests with a real model, and those that go by the clock, take turns: llama-servers slow everything else down without
/// end on two cores.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The model and the `llama-server` that `make test` fetched, and the turn of the test that holds them; `None` after saying
/// that the test is skipped.
pub fn real_parts(test: &str) -> Option<(PathBuf, PathBuf, MutexGuard<'static, ()>)> {
    let get = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_file());
    let parts = get("LARES_TEST_MODEL").zip(get("LARES_TEST_LLAMA_SERVER"));
    if parts.is_none() {
        eprintln!("SKIP {test}: LARES_TEST_MODEL and LARES_TEST_LLAMA_SERVER name no files; `make test` sets them");
    }
    let (model, server) = parts?;
    Some((model, server, turn()))
}

/// The command under test, without the settings of whoever runs the tests.
pub fn lares() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lares"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARES_") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null());
    command
}

/// Text of an output, both streams.
pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// A directory that PostgreSQL's user can walk down to, removed at the end.
pub fn state_dir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::Builder::new().prefix("lares-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    directory
}

/// A running `lares up`.
pub struct Stack {
    pub state_dir: PathBuf,
    pub config: PathBuf,
    process: Child,
}

impl Stack {
    /// Starts it with this configuration (the listen addresses are chosen free) and waits until it is ready.
    pub fn up(state_dir: &Path, configuration: &str) -> Self {
        let config = state_dir.join("lares.toml");
        std::fs::write(&config, configuration).unwrap();
        let mut stack =
            Self { state_dir: state_dir.to_owned(), config: config.clone(), process: launch(state_dir, &config) };
        stack.wait_ready(Duration::from_secs(180));
        stack
    }

    /// A model section for the real parts.
    pub fn model(name: &str, model: &Path, more: &str) -> String {
        format!("[models.{name}]\npath = \"{}\"\n{more}\n", model.display())
    }

    /// What every stack of the tests has: no fixed ports, the given `llama-server`.
    pub fn base(server: &Path) -> String {
        format!(
            // Tests add keys of ralph's behind it.
            "[llama]\nserver = \"{}\"\n[coordinator]\nlisten = \"127.0.0.1:0\"\n[healer]\nlisten = \"127.0.0.1:0\"\n\
             [tools]\nlisten = \"127.0.0.1:0\"\n[tools.search]\nembedding = \"none\"\n\
             [ralph]\nlisten = \"127.0.0.1:0\"\n",
            server.display()
        )
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits until every unit is active.
    pub fn wait_ready(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("lares up ended with {status}:\n{}", self.log());
            }
            if let Some(overview) = self.overview()
                && overview["units"].as_array().is_some_and(|units| units.iter().all(|unit| unit["state"] == "active"))
            {
                return;
            }
            assert!(Instant::now() < deadline, "not ready in {patience:?}: {:?}\n{}", self.overview(), self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    pub fn overview(&self) -> Option<Value> {
        let output = self.run(&["status", "--json"]);
        output.status.success().then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub fn unit(&self, name: &str) -> Option<Value> {
        self.overview()?["units"].as_array()?.iter().find(|unit| unit["name"] == name).cloned()
    }

    /// What it printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.state_dir.join("up.out")).unwrap_or_default()
    }

    /// A `lares` command against it.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = lares();
        command.arg("--config").arg(&self.config).arg("--state-dir").arg(&self.state_dir).args(arguments);
        command
    }

    /// Runs a `lares` command against it.
    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a `lares` command against it that must work, and reads the JSON it prints.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let output = self.command(arguments).arg("--json").output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", text(&output)))
    }

    /// Address of a unit, as `host:port`.
    pub fn address(&self, unit: &str) -> String {
        let detail = self.unit(unit).unwrap()["detail"].as_str().unwrap().to_owned();
        detail.trim_start_matches("http://").to_owned()
    }

    /// Kills `lares up` itself, without a warning.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts `lares up` again after it was killed.
    pub fn again(&mut self) {
        self.process = launch(&self.state_dir, &self.config);
    }

    /// Ctrl-C; gives how it ended and how long it took.
    pub fn interrupt(&mut self) -> (ExitStatus, Duration) {
        let began = Instant::now();
        signal(self.process.id(), "INT");
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                return (status, began.elapsed());
            }
            assert!(began.elapsed() < Duration::from_secs(20), "still there 20 s after SIGINT:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes whose command line or working directory names the state directory.
    pub fn leftovers(&self) -> Vec<String> {
        processes_of(&self.state_dir)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.process.try_wait().ok().flatten().is_none() {
            signal(self.process.id(), "TERM");
            let began = Instant::now();
            while self.process.try_wait().ok().flatten().is_none() {
                if began.elapsed() > Duration::from_secs(12) {
                    let _ = self.process.kill();
                    let _ = self.process.wait();
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        if std::thread::panicking() {
            eprintln!("--- what lares up printed ---\n{}", self.log());
            for unit in ["ralph", "coordinator", "postgres"] {
                let log = std::fs::read_to_string(self.state_dir.join(format!("logs/{unit}.log"))).unwrap_or_default();
                let tail: Vec<&str> = log.lines().rev().take(30).collect();
                eprintln!("--- {unit} ---\n{}", tail.into_iter().rev().collect::<Vec<_>>().join("\n"));
            }
        }
    }
}

fn launch(state_dir: &Path, config: &Path) -> Child {
    let out = std::fs::File::options().create(true).append(true).open(state_dir.join("up.out")).unwrap();
    lares()
        .arg("--config")
        .arg(config)
        .arg("--state-dir")
        .arg(state_dir)
        .arg("up")
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .spawn()
        .unwrap()
}

/// Sends a signal to a process.
pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// Command lines of the processes that name this directory.
pub fn processes_of(directory: &Path) -> Vec<String> {
    let needle = directory.display().to_string();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let cwd = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if line.contains(&needle) || cwd.starts_with(directory) {
            found.push(format!("{pid} {line}"));
        }
    }
    found
}

/// A git repository with these files in one commit.
pub fn repository(directory: &Path, files: &[(&str, &str)]) {
    std::fs::create_dir_all(directory).unwrap();
    for (name, content) in files {
        let path = directory.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    git(directory, &["init", "-q", "-b", "main"]);
    git(directory, &["add", "-A"]);
    git(directory, &["-c", "user.name=Test", "-c", "user.email=test@example.org", "commit", "-q", "-m", "base"]);
}

/// Runs git, which must work, and gives what it printed.
pub fn git(directory: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git").arg("-C").arg(directory).args(arguments).output().unwrap();
    assert!(output.status.success(), "git {arguments:?}: {}", text(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
