//! Whether what a daemon depends on is there: `/ready` asks every dependency at once and names each with its state.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use serde::Serialize;
use tokio::sync::Mutex;
use utoipa::ToSchema;

/// Longest wait for one check; they run at the same time, so `/ready` answers within it.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a result answers further callers. `/ready` is open to all, so asking it often must not load the store.
const KEPT: Duration = Duration::from_millis(200);

/// The answer of `/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Readiness {
    /// `ready` when every check passed.
    pub(crate) status: ReadyStatus,
    /// Every dependency.
    pub(crate) checks: Vec<Dependency>,
}

/// Whether requests can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum ReadyStatus {
    /// All dependencies are there.
    Ready,
    /// At least one is not.
    NotReady,
}

/// Something that requests depend on, and its state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
pub(crate) struct Dependency {
    /// What was asked.
    name: &'static str,
    /// How it is.
    state: DependencyState,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// State of a dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DependencyState {
    /// It answered.
    Ok,
    /// It did not, or said what is wrong.
    Failed,
}

type Run = Box<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

struct Check {
    name: &'static str,
    run: Run,
}

/// All checks of a surface.
#[derive(Default)]
pub(crate) struct Checks {
    checks: Vec<Check>,
    last: Mutex<Option<(Instant, Readiness)>>,
}

impl fmt::Debug for Checks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|check| check.name)).finish()
    }
}

impl Checks {
    pub(crate) fn add<C, F>(&mut self, name: &'static str, check: C)
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        self.checks.push(Check { name, run: Box::new(move || check().boxed()) });
    }

    /// Runs all checks, or hands out the result of a moment ago. Callers at the same time share one run.
    pub(crate) async fn run(&self) -> Readiness {
        let mut last = self.last.lock().await;
        if let Some((at, readiness)) = last.as_ref()
            && at.elapsed() < KEPT
        {
            return readiness.clone();
        }
        let checks = join_all(self.checks.iter().map(Check::ask)).await;
        let ready = checks.iter().all(|check| check.state == DependencyState::Ok);
        let status = if ready { ReadyStatus::Ready } else { ReadyStatus::NotReady };
        let readiness = Readiness { status, checks };
        *last = Some((Instant::now(), readiness.clone()));
        readiness
    }
}

impl Check {
    async fn ask(&self) -> Dependency {
        let checked = AssertUnwindSafe(async { (self.run)().await }).catch_unwind();
        let detail = match tokio::time::timeout(CHECK_TIMEOUT, checked).await {
            Ok(Ok(Ok(()))) => None,
            Ok(Ok(Err(detail))) => Some(detail),
            Ok(Err(_)) => Some("the check itself failed; the log has the cause".to_owned()),
            Err(_) => Some(format!("no answer within {} s", CHECK_TIMEOUT.as_secs())),
        };
        let state = if detail.is_none() { DependencyState::Ok } else { DependencyState::Failed };
        Dependency { name: self.name, state, detail }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn hanging_failing_and_panicking_checks_are_named_together() {
        let mut checks = Checks::default();
        checks.add("store", || async { Ok(()) });
        checks.add("upstream", || async { Err("connection refused".to_owned()) });
        checks.add("hanging", std::future::pending);
        checks.add("slow-too", std::future::pending);
        checks.add("broken", || async { panic!("a bug in a check") });
        let began = Instant::now();
        let readiness = checks.run().await;
        assert!(began.elapsed() < CHECK_TIMEOUT + Duration::from_secs(1), "{:?}", began.elapsed());
        insta::assert_snapshot!(serde_json::to_string_pretty(&readiness).unwrap(), @r#"
        {
          "status": "not-ready",
          "checks": [
            {
              "name": "store",
              "state": "ok"
            },
            {
              "name": "upstream",
              "state": "failed",
              "detail": "connection refused"
            },
            {
              "name": "hanging",
              "state": "failed",
              "detail": "no answer within 2 s"
            },
            {
              "name": "slow-too",
              "state": "failed",
              "detail": "no answer within 2 s"
            },
            {
              "name": "broken",
              "state": "failed",
              "detail": "the check itself failed; the log has the cause"
            }
          ]
        }
        "#);
    }

    #[tokio::test]
    async fn many_callers_share_one_run() {
        let runs = Arc::new(AtomicU32::new(0));
        let mut checks = Checks::default();
        let counted = Arc::clone(&runs);
        checks.add("store", move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok(()) }
        });
        for readiness in join_all((0..50).map(|_| checks.run())).await {
            assert_eq!(readiness.status, ReadyStatus::Ready);
        }
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        tokio::time::sleep(KEPT * 2).await;
        checks.run().await;
        assert_eq!(runs.load(Ordering::Relaxed), 2);
    }
}
