//! How a result arrives in the branch its task started from, without losing what a person has there.

use std::path::PathBuf;

use jiff::Timestamp;

use crate::git::{Call, GitError, Repo};

/// Why a result was not merged. The repository is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// There is no branch to merge into.
    #[error("the task started from a detached HEAD, so there is no branch to merge into; run `git merge {0}` yourself")]
    NoBranch(String),
    /// The branch is gone.
    #[error("the branch {0} is not there any more; run `git merge {1}` on the branch you want it in")]
    BranchGone(String, String),
    /// A person has uncommitted changes where the branch is checked out.
    #[error("{path} has the branch {branch} checked out and has uncommitted changes; commit or stash them, then merge")]
    Dirty {
        /// The working tree.
        path: PathBuf,
        /// The branch.
        branch: String,
    },
    /// Both sides changed the same lines.
    #[error("{branch} has changed where the result has, in {files}; run `git merge {result}` and resolve it by hand")]
    Conflict {
        /// The branch.
        branch: String,
        /// The files, comma-separated.
        files: String,
        /// The branch of the task.
        result: String,
    },
    /// Somebody committed to the branch in the same moment.
    #[error("{0} moved while merging; try again")]
    Moved(String),
    /// Git failed.
    #[error(transparent)]
    Git(#[from] GitError),
}

/// What a merge did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Merge {
    pub(crate) commit: String,
    pub(crate) fast_forward: bool,
}

/// Brings `result` into `base`: forward when `base` has not moved, else by a merge commit.
///
/// A branch that is checked out somewhere moves together with that working tree, which has to be clean.
pub(crate) async fn merge(
    repo: &Repo,
    base: Option<&str>,
    result: &str,
    result_branch: &str,
    message: &str,
) -> Result<Merge, MergeError> {
    let base = base.ok_or_else(|| MergeError::NoBranch(result_branch.to_owned()))?;
    let full = format!("refs/heads/{base}");
    let tip =
        repo.get_ref(&full).await?.ok_or_else(|| MergeError::BranchGone(base.to_owned(), result_branch.to_owned()))?;
    if is_ancestor(repo, result, &tip).await? {
        return Ok(Merge { commit: tip, fast_forward: true });
    }
    let fast_forward = is_ancestor(repo, &tip, result).await?;
    let commit =
        if fast_forward { result.to_owned() } else { joined(repo, base, &tip, result, result_branch, message).await? };
    match checked_out(repo, &full).await? {
        Some(path) => {
            let status = Call::new(&path, ["status", "--porcelain", "--untracked-files=no"]).run().await?;
            if !status.is_empty() {
                return Err(MergeError::Dirty { path, branch: base.to_owned() });
            }
            // Fails, touching nothing, when an untracked file of the person is in the way or the branch moved.
            Call::new(&path, ["merge", "--ff-only", "--quiet", &commit]).run().await?;
        }
        None => {
            let update = repo.call(["update-ref", "-m", "lares: merge", &full, &commit, &tip]).output().await?;
            if update.code != Some(0) {
                return Err(MergeError::Moved(base.to_owned()));
            }
        }
    }
    Ok(Merge { commit, fast_forward })
}

async fn is_ancestor(repo: &Repo, ancestor: &str, of: &str) -> Result<bool, GitError> {
    let answer = repo.call(["merge-base", "--is-ancestor", ancestor, of]).output().await?;
    match answer.code {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => answer.success().map(|_| false),
    }
}

/// The commit that joins both sides, made without any working tree.
async fn joined(
    repo: &Repo,
    base: &str,
    tip: &str,
    result: &str,
    result_branch: &str,
    message: &str,
) -> Result<String, MergeError> {
    let merged =
        repo.call(["merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", tip, result]).output().await?;
    let out = String::from_utf8_lossy(&merged.out).into_owned();
    let mut parts = out.split('\0').filter(|part| !part.is_empty());
    match merged.code {
        Some(0) => {
            let tree = parts.next().unwrap_or_default().trim().to_owned();
            Ok(repo.commit(&tree, &[tip, result], message, Timestamp::now()).await?)
        }
        Some(1) => Err(MergeError::Conflict {
            branch: base.to_owned(),
            files: parts.skip(1).collect::<Vec<_>>().join(", "),
            result: result_branch.to_owned(),
        }),
        _ => Err(merged.success().map_or_else(MergeError::Git, |_| MergeError::Moved(base.to_owned()))),
    }
}

/// The working tree that has a branch checked out.
async fn checked_out(repo: &Repo, branch: &str) -> Result<Option<PathBuf>, GitError> {
    let list = repo.call(["worktree", "list", "--porcelain", "-z"]).run().await?;
    let list = String::from_utf8_lossy(&list).into_owned();
    let mut path = None;
    for line in list.split('\0') {
        if let Some(at) = line.strip_prefix("worktree ") {
            path = Some(PathBuf::from(at));
        } else if line == "bare" {
            path = None;
        } else if line.strip_prefix("branch ") == Some(branch) {
            return Ok(path);
        }
    }
    Ok(None)
}
