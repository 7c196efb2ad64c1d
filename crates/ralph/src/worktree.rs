//! The worktree of a task: made from a commit, staged after each run of an agent, gone when the worker lets go.
//!
//! Every take-over gets a directory of its own, `TASK.FENCE`. A worker that lost its lease but does not know yet can
//! then write into nothing but its own leftovers, and the sweep can tell from the name alone what is still in use.
//! HEAD is detached in all of them: checkpoints are kept by refs below `refs/lares/`, the branch is set at the end.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tokio::fs;
use uuid::Uuid;

use crate::git::{Call, GitError, Repo};
use crate::protect::Protection;

/// Names the queue whose worktrees a directory holds, so that a sweep never touches those of another.
const MARKER: &str = ".lares-worktrees";
/// Untracked files that are by-products of running code, in no repository's interest.
const BY_PRODUCTS: &str = "__pycache__/\n*.py[cod]\n.pytest_cache/\n.mypy_cache/\n.ruff_cache/\n.hypothesis/\n\
                           node_modules/\n.DS_Store\n*.swp\n";
/// Build caches of checks that outlive a reset where the repository ignores them; a rebuild from nothing can take
/// longer than a check may.
const CACHES: [&str; 2] = ["target", "node_modules"];

/// Why the directory of the worktrees cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorktreesError {
    /// Another queue's worktrees are there.
    #[error(
        "{path} holds the worktrees of another database (queue {found}, this one is {own}); \
         set ralph.worktrees_dir to a directory of its own"
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// The queue it belongs to.
        found: String,
        /// The queue of this database.
        own: Uuid,
    },
    /// There are files in it that we did not make.
    #[error("{0} is not empty and was not made by Lares; set ralph.worktrees_dir to an empty or a new directory")]
    NotOurs(PathBuf),
    /// The disk did not do what was asked.
    #[error("{path}: {source}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
}

fn disk(path: &Path) -> impl FnOnce(std::io::Error) -> GitError + use<> {
    let path = path.to_owned();
    move |source| GitError::Disk { path, source }
}

/// The directory that holds all worktrees of one queue on this machine.
#[derive(Debug, Clone)]
pub(crate) struct Worktrees {
    root: PathBuf,
}

/// A worktree found on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) path: PathBuf,
    pub(crate) task: Uuid,
    pub(crate) fence: i64,
}

impl Worktrees {
    /// Makes the directory, or checks that the one that is there is this queue's.
    pub(crate) async fn open(root: &Path, queue: Uuid) -> Result<Self, WorktreesError> {
        let failed = |source| WorktreesError::Disk { path: root.to_owned(), source };
        fs::create_dir_all(root).await.map_err(failed)?;
        let root = fs::canonicalize(root).await.map_err(failed)?;
        let marker = root.join(MARKER);
        match fs::read_to_string(&marker).await {
            Ok(found) if found.trim() == queue.to_string() => {}
            // An empty marker is one whose writing was cut short.
            Ok(found) if !found.trim().is_empty() => {
                return Err(WorktreesError::Foreign { path: root, found: found.trim().to_owned(), own: queue });
            }
            Ok(_) => fs::write(&marker, format!("{queue}\n")).await.map_err(failed)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let mut entries = fs::read_dir(&root).await.map_err(failed)?;
                if entries.next_entry().await.map_err(failed)?.is_some() {
                    return Err(WorktreesError::NotOurs(root));
                }
                fs::write(&marker, format!("{queue}\n")).await.map_err(failed)?;
            }
            Err(error) => return Err(failed(error)),
        }
        fs::set_permissions(&root, std::fs::Permissions::from_mode(0o700)).await.map_err(failed)?;
        let excludes = root.join(".excludes");
        fs::write(&excludes, BY_PRODUCTS).await.map_err(failed)?;
        Ok(Self { root })
    }

    /// Where they are.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Directory of a task for one take-over.
    pub(crate) fn path(&self, task: Uuid, fence: i64) -> PathBuf {
        self.root.join(format!("{task}.{fence}"))
    }

    /// Makes the worktree of a take-over, with `commit` checked out.
    pub(crate) async fn make(&self, repo: &Repo, task: Uuid, fence: i64, commit: &str) -> Result<Worktree, GitError> {
        let path = self.path(task, fence);
        let args = ["worktree", "add", "--detach", "--quiet"].map(AsRef::as_ref);
        let args = args.into_iter().chain([path.as_os_str(), commit.as_ref()]);
        repo.call(args).run().await?;
        // Read before anybody else may write there; it is not looked at again.
        let link = fs::read_to_string(path.join(".git")).await.map_err(disk(&path))?;
        let admin = PathBuf::from(link.trim_start_matches("gitdir:").trim());
        Ok(Worktree { path, admin, excludes: self.root.join(".excludes") })
    }

    /// The worktrees on disk.
    pub(crate) async fn leftovers(&self) -> std::io::Result<Vec<Leftover>> {
        let mut found = Vec::new();
        let mut entries = fs::read_dir(&self.root).await?;
        while let Some(entry) = entries.next_entry().await? {
            found.extend(Leftover::at(entry.path()));
        }
        Ok(found)
    }

    /// Removes the worktrees of a task's take-overs up to `fence`, half made or damaged as they may be, and what the
    /// repository knows of them.
    ///
    /// `git worktree prune` would do the second part, but for a person's worktrees on an unplugged disk as well.
    pub(crate) async fn remove(&self, git_dir: Option<&Path>, task: Uuid, fence: i64) -> Result<(), GitError> {
        let meant = move |found: &Leftover| found.task == task && found.fence <= fence;
        for leftover in self.leftovers().await.map_err(disk(&self.root))?.into_iter().filter(meant) {
            let path = leftover.path.clone();
            blocking(&leftover.path, move || remove_tree(&path)).await?;
        }
        let Some(git_dir) = git_dir else { return Ok(()) };
        let (admins, root) = (git_dir.join("worktrees"), self.root.clone());
        blocking(git_dir, move || {
            let Ok(entries) = std::fs::read_dir(&admins) else { return Ok(()) };
            for entry in entries.flatten() {
                // A `git worktree add` that was cut short may not have written where it is; its name says it too.
                let at = std::fs::read_to_string(entry.path().join("gitdir"));
                let at = at.ok().and_then(|at| Some(Path::new(at.trim()).parent()?.to_owned()));
                let place = at.unwrap_or_else(|| root.join(entry.file_name()));
                if place.starts_with(&root) && Leftover::at(place).as_ref().is_some_and(meant) {
                    remove_tree(&entry.path())?;
                }
            }
            Ok(())
        })
        .await
    }
}

impl Leftover {
    /// What is at a path, by its name; `None` when it is none of ours.
    fn at(path: PathBuf) -> Option<Self> {
        let (task, fence) = path.file_name()?.to_str()?.split_once('.')?;
        let (task, fence) = (task.parse().ok()?, fence.parse().ok()?);
        Some(Self { path, task, fence })
    }
}

async fn blocking<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce() -> std::io::Result<T> + Send + 'static,
) -> Result<T, GitError> {
    tokio::task::spawn_blocking(work).await.map_err(std::io::Error::other).and_then(|done| done).map_err(disk(path))
}

/// Removes a directory with all that is in it, also where a run took its own permissions away.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    for _ in 0..3 {
        match std::fs::remove_dir_all(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => open_up(path, false)?,
        }
    }
    std::fs::remove_dir_all(path)
}

/// Gives the owner back what a run took from it, and removes `.git` entries below the top if told to: a repository
/// inside the worktree would be one whose configuration an agent wrote.
fn open_up(path: &Path, nested_git: bool) -> std::io::Result<()> {
    let mut pending = vec![path.to_owned()];
    while let Some(dir) = pending.pop() {
        let mode = std::fs::symlink_metadata(&dir)?.permissions().mode();
        if mode & 0o700 != 0o700 {
            std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(mode | 0o700))?;
        }
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if nested_git && entry.file_name() == ".git" {
                if dir != path {
                    if kind.is_dir() { remove_tree(&entry.path())? } else { std::fs::remove_file(entry.path())? }
                }
            } else if kind.is_dir() {
                pending.push(entry.path());
            } else if kind.is_file() {
                let mode = entry.metadata()?.permissions().mode();
                if mode & 0o600 != 0o600 {
                    std::fs::set_permissions(entry.path(), std::fs::Permissions::from_mode(mode | 0o600))?;
                }
            }
        }
    }
    Ok(())
}

/// A worktree that this worker made.
#[derive(Debug, Clone)]
pub(crate) struct Worktree {
    pub(crate) path: PathBuf,
    /// Its part of the repository's git directory.
    admin: PathBuf,
    excludes: PathBuf,
}

/// What a run of an agent left, as a tree ready to be committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Staged {
    pub(crate) tree: String,
    /// Protected files that were put back.
    pub(crate) restored: Vec<String>,
    /// New files that would steer the check, left out.
    pub(crate) refused: Vec<String>,
}

impl Worktree {
    fn call<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Call {
        Call::new(&self.path, args)
            .env("GIT_DIR", &self.admin)
            .env("GIT_WORK_TREE", &self.path)
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "core.excludesFile")
            .env("GIT_CONFIG_VALUE_0", &self.excludes)
    }

    /// Makes the worktree exactly what `commit` is, save for ignored build caches.
    pub(crate) async fn reset(&self, commit: &str) -> Result<(), GitError> {
        self.tidy().await?;
        self.call(["reset", "--hard", "--quiet", commit]).run().await?;
        let mut clean = vec!["clean", "-ffdxq"];
        for cache in CACHES {
            clean.extend(["-e", cache]);
        }
        self.call(clean).run().await.map(drop)
    }

    /// Takes in what an agent left, with protected files as they are in `base`.
    pub(crate) async fn stage(&self, base: &str, protection: &Protection) -> Result<Staged, GitError> {
        self.tidy().await?;
        self.call(["add", "--all", "."]).run().await?;
        let changed: BTreeSet<String> = self.diff_index(base, &[]).await?.into_iter().collect();
        let restored: Vec<String> = protection.restored.intersection(&changed).cloned().collect();
        let added = self.diff_index(base, &["--diff-filter=A"]).await?;
        let refused: Vec<String> = added.into_iter().filter(|path| protection.refuses_new(path)).collect();
        if !restored.is_empty() || !refused.is_empty() {
            let mut lines = Vec::new();
            for path in &refused {
                lines.extend_from_slice(format!("0 {}\t{path}\0", "0".repeat(base.len())).as_bytes());
            }
            // One entry of `ls-tree` is one line that `update-index` takes.
            let entries = self.call(["ls-tree", "-r", "-z", "--full-tree", base]).run().await?;
            for entry in entries.split(|byte| *byte == 0) {
                let Some(tab) = entry.iter().position(|byte| *byte == b'\t') else { continue };
                if restored.iter().any(|path| path.as_bytes() == &entry[tab + 1..]) {
                    lines.extend_from_slice(entry);
                    lines.push(0);
                }
            }
            self.call(["update-index", "--replace", "-z", "--index-info"]).stdin(lines).run().await?;
        }
        let tree = self.call(["write-tree"]).line().await?;
        Ok(Staged { tree, restored, refused })
    }

    async fn diff_index(&self, base: &str, options: &[&str]) -> Result<Vec<String>, GitError> {
        let args = ["diff", "--cached", "--name-only", "--no-renames", "--no-ext-diff", "-z"];
        self.call(args.into_iter().chain(options.iter().copied()).chain([base])).list().await
    }

    /// Undoes what a run can do to stop git: locks, permissions, repositories inside, a `.git` that is not ours.
    async fn tidy(&self) -> Result<(), GitError> {
        let (path, admin) = (self.path.clone(), self.admin.clone());
        blocking(&self.path, move || {
            let lock = admin.join("index.lock");
            if lock.exists() {
                std::fs::remove_file(lock)?;
            }
            open_up(&path, true)?;
            let link = path.join(".git");
            let wanted = format!("gitdir: {}\n", admin.display());
            let right = std::fs::symlink_metadata(&link).is_ok_and(|meta| meta.is_file())
                && std::fs::read_to_string(&link).is_ok_and(|found| found == wanted);
            if right {
                return Ok(());
            }
            match std::fs::symlink_metadata(&link) {
                Ok(meta) if meta.is_dir() => remove_tree(&link)?,
                Ok(_) => std::fs::remove_file(&link)?,
                Err(_) => {}
            }
            std::fs::write(&link, wanted)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::symlink;

    use jiff::Timestamp;

    use super::*;

    async fn git(dir: &Path, args: &[&str]) {
        Call::new(dir, args).run().await.unwrap();
    }

    struct Place {
        dir: tempfile::TempDir,
        repo: Repo,
        worktrees: Worktrees,
        base: String,
    }

    async fn place() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("repo");
        fs::create_dir_all(at.join("tests")).await.unwrap();
        git(&at, &["init", "-q", "-b", "main"]).await;
        fs::write(at.join("a.py"), "1\n").await.unwrap();
        fs::write(at.join("tests/test_a.py"), "assert\n").await.unwrap();
        git(&at, &["add", "-A"]).await;
        git(&at, &["commit", "-qm", "base"]).await;
        let repo = Repo::open(&at).await.unwrap();
        let worktrees = Worktrees::open(&dir.path().join("worktrees"), Uuid::nil()).await.unwrap();
        let base = repo.head().await.unwrap().commit;
        Place { dir, repo, worktrees, base }
    }

    #[tokio::test]
    async fn what_an_agent_did_is_staged_with_protected_files_as_they_were() {
        let place = place().await;
        let tree = place.worktrees.make(&place.repo, Uuid::now_v7(), 1, &place.base).await.unwrap();
        fs::write(tree.path.join("a.py"), "2\n").await.unwrap();
        fs::remove_file(tree.path.join("tests/test_a.py")).await.unwrap();
        fs::create_dir(tree.path.join("tests/test_a.py")).await.unwrap();
        fs::write(tree.path.join("tests/test_a.py/inside"), "").await.unwrap();
        fs::write(tree.path.join("conftest.py"), "").await.unwrap();
        fs::create_dir(tree.path.join("__pycache__")).await.unwrap();
        fs::write(tree.path.join("__pycache__/a.pyc"), "").await.unwrap();
        let files = place.repo.files(&place.base).await.unwrap();
        let protection = Protection::new(files.iter().map(String::as_str), "fix a", "pytest");
        let staged = tree.stage(&place.base, &protection).await.unwrap();
        assert_eq!(staged.restored, ["tests/test_a.py"]);
        assert_eq!(staged.refused, ["conftest.py"]);
        let commit = place.repo.commit(&staged.tree, &[&place.base], "x", Timestamp::UNIX_EPOCH).await.unwrap();
        assert_eq!(place.repo.changed(&place.base, &commit).await.unwrap(), ["a.py"]);
        tree.reset(&commit).await.unwrap();
        assert_eq!(fs::read_to_string(tree.path.join("tests/test_a.py")).await.unwrap(), "assert\n");
        assert!(!tree.path.join("conftest.py").exists() && !tree.path.join("__pycache__").exists());
    }

    #[tokio::test]
    async fn a_git_directory_an_agent_made_is_not_obeyed() {
        let place = place().await;
        let tree = place.worktrees.make(&place.repo, Uuid::now_v7(), 1, &place.base).await.unwrap();
        let proof = place.dir.path().join("proof");
        for (at, link) in [(tree.path.join("trap"), true), (tree.path.join("sub"), false)] {
            fs::create_dir_all(&at).await.unwrap();
            git(&at, &["init", "-q"]).await;
            git(&at, &["commit", "-q", "--allow-empty", "-m", "x"]).await;
            let run = format!("touch {}", proof.display());
            git(&at, &["config", "core.fsmonitor", &run]).await;
            if link {
                fs::remove_file(tree.path.join(".git")).await.unwrap();
                symlink(at.join(".git"), tree.path.join(".git")).unwrap();
            }
        }
        fs::write(tree.path.join("a.py"), "2\n").await.unwrap();
        let staged = tree.stage(&place.base, &Protection::default()).await.unwrap();
        tree.reset(&place.base).await.unwrap();
        assert_ne!(staged.tree, place.repo.tree(&place.base).await.unwrap());
        assert!(!proof.exists(), "a configuration written by the agent was run");
    }

    #[tokio::test]
    async fn removal_copes_with_missing_permissions_and_leaves_other_worktrees_alone() {
        let place = place().await;
        let task = Uuid::now_v7();
        let tree = place.worktrees.make(&place.repo, task, 1, &place.base).await.unwrap();
        let other = place.worktrees.make(&place.repo, task, 2, &place.base).await.unwrap();
        fs::create_dir(tree.path.join("locked")).await.unwrap();
        fs::write(tree.path.join("locked/x"), "").await.unwrap();
        fs::set_permissions(tree.path.join("locked"), std::fs::Permissions::from_mode(0o000)).await.unwrap();
        // What a `git worktree add` that was cut short leaves.
        let unfinished = place.repo.git_dir.join(format!("worktrees/{task}.0"));
        fs::create_dir(&unfinished).await.unwrap();
        place.worktrees.remove(Some(&place.repo.git_dir), task, 1).await.unwrap();
        assert!(!tree.path.exists() && !tree.admin.exists() && !unfinished.exists());
        assert!(other.path.exists() && other.admin.exists());
        assert_eq!(place.worktrees.leftovers().await.unwrap(), [Leftover { path: other.path.clone(), task, fence: 2 }]);
    }

    #[tokio::test]
    async fn a_directory_of_another_queue_is_refused() {
        let place = place().await;
        let error = Worktrees::open(place.worktrees.root(), Uuid::max()).await.unwrap_err();
        assert!(matches!(error, WorktreesError::Foreign { .. }), "{error}");
        let error = Worktrees::open(&place.repo.path, Uuid::nil()).await.unwrap_err();
        assert!(matches!(error, WorktreesError::NotOurs(_)), "{error}");
    }
}
