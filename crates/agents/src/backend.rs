//! The port every coding agent sits behind: what one iteration is given, and what comes of it.

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::exec;
use crate::sandbox::Exit;

/// A coding agent that can carry out an iteration.
#[async_trait]
pub trait Backend: Send + Sync {
    /// The name tasks choose it by.
    fn name(&self) -> &str;

    /// Works on the task once. It may change files below [`Run::worktree`] and nothing else; whether the task is done
    /// is for the check to say.
    ///
    /// # Errors
    /// [`BackendError`] when the agent could not work. An agent that worked and changed nothing is an [`Outcome`] that
    /// says so.
    async fn run(&self, run: &Run, shutdown: &CancellationToken) -> Result<Outcome, BackendError>;
}

/// What an iteration is given: all there is to know, as every iteration starts from nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The task.
    pub task_id: Uuid,
    /// What is to be done, in the words of the person who wants it.
    pub prompt: String,
    /// Git worktree to work in: absolute, its own for this task.
    pub worktree: PathBuf,
    /// Shell command whose exit code decides.
    pub check: String,
    /// What earlier iterations left for later ones. Empty: nothing.
    pub notes: String,
    /// Unified diff from the base to the worktree as it is. Empty: nothing was changed yet.
    pub diff: String,
    /// The check on the worktree as it is, when it ran.
    pub last_check: Option<CheckReport>,
    /// Number of this iteration, from 1.
    pub iteration: u32,
    /// Sampling temperature for agents that take one; 0 repeats itself.
    pub temperature: f32,
    /// Seed for agents that take one.
    pub seed: Option<u32>,
    /// The worktree was put back to the base, and this is a new attempt from there.
    pub fresh: bool,
    /// Tokens the model has for prompt and answer together, when the caller knows.
    pub window: Option<u32>,
    /// Longest this iteration may take.
    pub timeout: Duration,
    /// Files and directories that must not change, relative to the worktree: the tests that decide.
    pub protected: Vec<PathBuf>,
}

impl Run {
    /// The first iteration of a task, at temperature 0, within a quarter of an hour.
    pub fn new(
        task_id: Uuid,
        prompt: impl Into<String>,
        worktree: impl Into<PathBuf>,
        check: impl Into<String>,
    ) -> Self {
        Self {
            task_id,
            prompt: prompt.into(),
            worktree: worktree.into(),
            check: check.into(),
            notes: String::new(),
            diff: String::new(),
            last_check: None,
            iteration: 1,
            temperature: 0.0,
            seed: None,
            fresh: false,
            window: None,
            timeout: Duration::from_secs(900),
            protected: Vec::new(),
        }
    }
}

/// What a check said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckReport {
    /// Its exit code; 128 and the number of the signal when one ended it, as a shell says it.
    pub exit: i32,
    /// Its output, cut to the configured bound.
    pub output: String,
    /// It was ended because its time was over.
    pub timed_out: bool,
}

impl From<&exec::Output> for CheckReport {
    fn from(output: &exec::Output) -> Self {
        let exit = match output.exit {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        };
        Self { exit, output: output.text(), timed_out: output.timed_out }
    }
}

/// What came of an iteration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Outcome {
    /// One line for people: what was changed, or why nothing was.
    pub summary: String,
    /// Files that were changed or made, relative to the worktree.
    pub changed: Vec<PathBuf>,
    /// Why nothing was changed; `None` when something was.
    pub empty: Option<String>,
    /// Tokens of all exchanges together.
    pub usage: Usage,
    /// What was said, in order.
    pub transcript: Vec<Exchange>,
}

/// Tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens read.
    pub prompt_tokens: u64,
    /// Tokens written.
    pub completion_tokens: u64,
}

impl std::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.prompt_tokens += other.prompt_tokens;
        self.completion_tokens += other.completion_tokens;
    }
}

/// One question to a model and its answer.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Exchange {
    /// The model that was asked.
    pub model: String,
    /// The whole prompt.
    pub prompt: String,
    /// The whole answer.
    pub answer: String,
    /// Why the answer ended, in the words of the API: `stop`, `length`.
    pub finish_reason: String,
    /// Its tokens.
    pub usage: Usage,
    /// Seconds from the request to the end of the answer.
    pub seconds: f64,
    /// What was made of the answer: the files it changed, or why it could not be used.
    pub verdict: String,
}

/// Why an agent could not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// A shutdown or a cancellation came.
    #[error("the iteration was cancelled")]
    Cancelled,
    /// Its time was over.
    #[error("the iteration took longer than {0:?}; raise ralph.iteration_timeout or use a faster model")]
    TimedOut(Duration),
    /// The model cannot be reached, also not after several tries.
    #[error("cannot reach the model at {url}: {reason}")]
    Unreachable {
        /// Base URL of the coordinator.
        url: String,
        /// What went wrong the last time.
        reason: String,
    },
    /// The coordinator said no.
    #[error("the coordinator refused the request with status {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its words.
        message: String,
    },
    /// What has to be in the prompt does not fit.
    #[error(
        "the prompt needs about {needed} bytes and has {available} (agents.builtin.max_prompt, or the model's context); \
         name a smaller file in the task, or use a model with more context"
    )]
    DoesNotFit {
        /// Bytes the smallest useful prompt has.
        needed: usize,
        /// Bytes there are.
        available: usize,
    },
    /// No file to work on was found.
    #[error("found no text file to work on in {worktree}; commit the files the task is about", worktree = worktree.display())]
    NothingToEdit {
        /// Where it looked.
        worktree: PathBuf,
    },
    /// A setting is wrong or missing.
    #[error("{0}")]
    Setup(String),
    /// The worktree cannot be read or written.
    #[error("{path}: {source}", path = path.display())]
    Worktree {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

impl BackendError {
    /// Whether trying again later can help.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Cancelled | Self::TimedOut(_) | Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 500..=599),
            _ => false,
        }
    }
}
