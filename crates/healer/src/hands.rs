//! Carrying out one step.

use std::sync::Arc;
use std::time::Duration;

use lares_units::port::{JobOutcome, Manager, ManagerError, UnitId};
use tokio::time::sleep;

use crate::helper;
use crate::remedy::Step;

/// So often a stop that another job is in the way of is tried again, and the pause before that.
const STOPS: u32 = 20;
const STOP_AGAIN: Duration = Duration::from_millis(100);

/// How carrying out a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    /// It was done.
    Done,
    /// It was not, or it did not work.
    Failed(String),
    /// Nobody knows: the service manager could not be heard any more.
    Unseen(String),
}

/// What steps are carried out with.
#[derive(Debug, Clone)]
pub(crate) struct Hands {
    pub(crate) manager: Arc<dyn Manager>,
    pub(crate) helper: helper::Client,
}

impl Hands {
    /// Carries out one step of a remedy for `unit`.
    pub(crate) async fn carry_out(&self, unit: &str, step: &Step, patience: Duration) -> End {
        match step {
            Step::ResetFailed { unit } => match parsed(unit) {
                Ok(unit) => end(self.manager.reset_failed(&unit).await.map(|()| JobOutcome::Done)),
                Err(end) => end,
            },
            Step::Start { unit } => self.start(unit, patience).await,
            Step::Restart { unit } => match parsed(unit) {
                Ok(unit) => end(self.manager.restart(&unit, patience).await),
                Err(end) => end,
            },
            Step::Stop { unit } => match parsed(unit) {
                Ok(unit) => self.stop(&unit, patience).await,
                Err(end) => end,
            },
            // Nothing is done for it; it is never handed to anybody.
            Step::Await { .. } => End::Done,
            Step::FetchModel { model } => match self.start(&fetcher(model), patience).await {
                End::Unseen(why) => End::Failed(format!("{why}; it is still being fetched")),
                end => end,
            },
            Step::EndProcess { pid, started } => helped(self.helper.end_process(unit, *pid, *started).await),
            Step::SetPort { unit, to, .. } => helped(self.helper.set_port(unit, *to).await),
            Step::SetMemoryMax { unit, bytes } => helped(self.helper.set_memory_max(unit, *bytes).await),
            Step::Rollback { to } => helped(self.helper.roll_back(*to).await),
        }
    }

    /// A unit that dies again and again mostly has a start waiting, which a stop must not cancel: it comes after that.
    async fn stop(&self, unit: &UnitId, patience: Duration) -> End {
        let mut tries = 0;
        loop {
            match self.manager.stop(unit, patience).await {
                Err(ManagerError::Conflict { .. }) if tries < STOPS => tries += 1,
                other => return end(other),
            }
            sleep(STOP_AGAIN.mul_f64(rand::random_range(0.75..1.25))).await;
        }
    }

    async fn start(&self, unit: &str, patience: Duration) -> End {
        match parsed(unit) {
            Ok(unit) => end(self.manager.start(&unit, patience).await),
            Err(end) => end,
        }
    }
}

/// Name of the unit that fetches a model on NixOS.
pub(crate) fn fetcher(model: &str) -> String {
    format!("lares-model-{model}.service")
}

fn parsed(unit: &str) -> Result<UnitId, End> {
    UnitId::new(unit).map_err(|error| End::Failed(error.to_string()))
}

fn end(outcome: Result<JobOutcome, ManagerError>) -> End {
    match outcome {
        Ok(JobOutcome::Done) => End::Done,
        Ok(other) => End::Failed(format!("the job ended as `{other}`")),
        Err(
            error @ (ManagerError::Interrupted { .. } | ManagerError::Unavailable(_) | ManagerError::Patience { .. }),
        ) => End::Unseen(error.to_string()),
        Err(error) => End::Failed(error.to_string()),
    }
}

fn helped<T>(outcome: Result<T, helper::HelperError>) -> End {
    match outcome {
        Ok(_) => End::Done,
        Err(error) => End::Failed(error.to_string()),
    }
}
