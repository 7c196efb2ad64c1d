//! Running the check of a task: confined, limited, and judged by its exit code alone.

use std::path::Path;
use std::time::Duration;

use lares_agents::exec::{self, ExecError, Limits};
use lares_agents::sandbox::{Exit, Launcher, Policy};
use lares_config::Config;

use crate::hold::{Halt, Hold};
use crate::score::{self, Score};

/// How long a task waits when the check could not be run for want of something that may come back.
const LATER: Duration = Duration::from_secs(30);

/// What a check said.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// Exit code; `None` when something ended it.
    pub(crate) exit: Option<i32>,
    /// What it printed, bounded, and at its end what ended it.
    pub(crate) output: String,
    pub(crate) duration: Duration,
    pub(crate) score: Option<Score>,
    passed: bool,
}

impl Verdict {
    /// Whether it ended by itself with exit code 0: the one thing that ends a task.
    pub(crate) fn passed(&self) -> bool {
        self.passed
    }

    /// In a few words.
    pub(crate) fn describe(&self) -> String {
        let tests = match self.score {
            Some(Score { passed, failed }) => format!(", {passed} of {} tests pass", passed.saturating_add(failed)),
            None => String::new(),
        };
        match self.exit {
            Some(0) => format!("passed{tests}"),
            Some(code) => format!("failed with exit code {code}{tests}"),
            None => format!("was ended{tests}"),
        }
    }
}

/// Runs `check` in `worktree`.
pub(crate) async fn run(
    config: &Config,
    launcher: &Launcher,
    hold: &Hold,
    check: &str,
    worktree: &Path,
    git_dir: &Path,
) -> Result<Verdict, Halt> {
    let sandbox = &config.agents.sandbox;
    let policy = Policy::for_check(sandbox, worktree).hide(&config.state_dir).read(git_dir);
    let command = exec::Command::shell(check, worktree);
    let limits = Limits::new(sandbox, config.ralph.check_timeout);
    let mut lost = 0;
    let output = loop {
        match exec::run(launcher, &policy, &command, &limits, &hold.stop).await {
            Ok(output) => break output,
            Err(ExecError::Lost) if lost == 0 => lost += 1,
            Err(error @ (ExecError::Confinement(_) | ExecError::Command(_) | ExecError::Launcher { .. })) => {
                return Err(Halt::Fail(format!("the check cannot be run: {error}")));
            }
            Err(error) => {
                return Err(Halt::Later { wait: LATER, reason: format!("the check could not be run: {error}") });
            }
        }
        hold.check()?;
    };
    hold.check()?;
    let mut text = output.text();
    let score = score::read(&text);
    let mut note = |what: String| {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&format!("[{what}]\n"));
    };
    if output.timed_out {
        let limit = lares_config::duration::format(limits.timeout);
        note(format!("the check was stopped: it ran longer than {limit} (ralph.check_timeout); does it ever end?"));
    } else if output.over_processes {
        note(format!("the check was stopped: it had more than {} processes", limits.max_processes));
    } else if let Exit::Signal(_) = output.exit {
        note(format!("the check was {}", output.exit));
    }
    let exit = match output.exit {
        Exit::Code(code) if !output.timed_out && !output.over_processes => Some(code),
        _ => None,
    };
    Ok(Verdict { exit, output: text, duration: output.duration, score, passed: output.success() })
}
