//! Running confined commands in tests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use lares_agents::exec::{self, Command, ExecError, Limits, Output};
use lares_agents::sandbox::{Launcher, Policy};
use lares_config::Sandbox;
use tokio_util::sync::CancellationToken;

pub fn launcher() -> Launcher {
    Launcher { program: PathBuf::from(env!("CARGO_BIN_EXE_lares-sandbox")), args: Vec::new() }
}

/// A directory as a run's worktree, and what is set for its checks.
pub struct Place {
    pub directory: tempfile::TempDir,
    pub sandbox: Sandbox,
    pub policy: Policy,
    pub timeout: Duration,
}

impl Place {
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::default();
        let policy = Policy::for_check(&sandbox, directory.path());
        Self { directory, sandbox, policy, timeout: Duration::from_secs(60) }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub async fn try_run(&self, line: &str) -> Result<Output, ExecError> {
        self.run_until(line, &CancellationToken::new()).await
    }

    pub async fn run(&self, line: &str) -> Output {
        self.try_run(line).await.unwrap()
    }

    pub async fn run_until(&self, line: &str, shutdown: &CancellationToken) -> Result<Output, ExecError> {
        let limits = Limits::new(&self.sandbox, self.timeout);
        exec::run(&launcher(), &self.policy, &Command::shell(line, self.path()), &limits, shutdown).await
    }
}
