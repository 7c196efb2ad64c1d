//! What the tests against real processes share. Each test file uses a part of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use lares_units::{Settings, State, Supervisor, UnitName, UnitSpec, UnitStatus};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn name(text: &str) -> UnitName {
    UnitName::new(text).unwrap()
}

/// A unit that runs a line of shell.
pub fn shell(unit: &str, script: &str) -> UnitSpec {
    UnitSpec::new(name(unit), "sh").args(["-c", script])
}

pub struct House {
    pub supervisor: Supervisor,
    pub directory: TempDir,
}

impl House {
    pub async fn of(specs: Vec<UnitSpec>) -> Self {
        Self::with(lares_config::Units::default(), specs).await
    }

    pub async fn with(units: lares_config::Units, specs: Vec<UnitSpec>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self::within(directory, units, specs).await
    }

    pub async fn within(directory: TempDir, units: lares_config::Units, specs: Vec<UnitSpec>) -> Self {
        let settings = Settings { units, logs: directory.path().join("logs") };
        let supervisor = Supervisor::launch(settings, specs, CancellationToken::new()).await.unwrap();
        Self { supervisor, directory }
    }

    pub async fn status(&self, unit: &str) -> UnitStatus {
        self.supervisor.status(unit).await.unwrap()
    }

    /// Waits until the unit is as wanted.
    pub async fn until(&self, unit: &str, wanted: impl Fn(&UnitStatus) -> bool) -> UnitStatus {
        let start = Instant::now();
        loop {
            let status = self.status(unit).await;
            if wanted(&status) {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "{unit} does not get there: {status:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_active(&self, unit: &str) -> UnitStatus {
        self.until(unit, |status| status.state == State::Active).await
    }

    pub fn log(&self, unit: &str) -> String {
        let lines = self.supervisor.logs(unit, 1000).unwrap();
        lines.iter().map(|line| format!("{}\n", line.text)).collect()
    }

    /// Waits for a line and gives what stands behind the prefix.
    pub async fn said(&self, unit: &str, prefix: &str) -> String {
        let start = Instant::now();
        loop {
            if let Some(rest) = self.log(unit).lines().find_map(|line| line.strip_prefix(prefix)) {
                return rest.trim().to_owned();
            }
            assert!(start.elapsed() < PATIENCE, "{unit} does not say {prefix}: {}", self.log(unit));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

pub fn kill(pid: u32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.try_into().unwrap()), nix::sys::signal::Signal::SIGKILL)
        .unwrap();
}

/// Whether a process is there and not merely waiting to be reaped.
pub fn runs(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        let state = stat.rsplit_once(") ").unwrap().1.chars().next().unwrap();
        !matches!(state, 'Z' | 'X')
    })
}

pub async fn gone(pid: u32) {
    let start = Instant::now();
    while runs(pid) {
        assert!(start.elapsed() < PATIENCE, "process {pid} is still there");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The example program; cargo builds it together with the tests.
pub fn example() -> std::path::PathBuf {
    example_called("supervise")
}

pub fn example_called(name: &str) -> std::path::PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().and_then(Path::parent).unwrap().join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build -p lares-units --example {name}", path.display());
    path
}
