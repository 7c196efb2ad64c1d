//! The files of a worktree, as git knows them, and their text.

use std::fs;
use std::io::Read;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::backend::BackendError;

/// Longest git may take.
const GIT_TIMEOUT: Duration = Duration::from_secs(60);
/// Most bytes of the list: some hundred thousand paths.
const MAX_LISTING: u64 = 16 << 20;
/// Most files looked at.
const MAX_FILES: usize = 20_000;
/// Largest file that is read. A small model's window is far smaller.
const MAX_FILE: u64 = 256 << 10;
/// Most bytes read of one worktree.
const MAX_READ: u64 = 16 << 20;

/// Directories of code that is somebody else's or made by a tool.
const FOREIGN: [&str; 8] = ["node_modules", "vendor", "third_party", "target", "dist", "build", ".venv", "__pycache__"];
/// Files made by tools.
const GENERATED: [&str; 6] = [".lock", "-lock.json", ".min.js", ".min.css", ".map", "go.sum"];

/// One text file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Source {
    /// Relative to the worktree, with `/`.
    pub(super) path: String,
    pub(super) text: String,
}

/// Paths git tracks or would track, without what tools made.
pub(super) async fn paths(worktree: &Path) -> Result<Vec<String>, BackendError> {
    let failed = |source: std::io::Error| BackendError::Worktree { path: worktree.to_owned(), source };
    let mut git = tokio::process::Command::new("git")
        // A repository's own settings can name programs to run; none of them is needed to list files.
        .args(["-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null"])
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"])
        .current_dir(worktree)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let (mut listing, mut complaint) = (Vec::new(), Vec::new());
    let (stdout, stderr) = (git.stdout.take(), git.stderr.take());
    let read = async {
        if let Some(stdout) = stdout {
            stdout.take(MAX_LISTING).read_to_end(&mut listing).await?;
        }
        if let Some(stderr) = stderr {
            stderr.take(4096).read_to_end(&mut complaint).await?;
        }
        git.wait().await
    };
    let status = tokio::time::timeout(GIT_TIMEOUT, read).await;
    let status = status.map_err(|_| failed(std::io::Error::other("git ls-files took too long")))?.map_err(failed)?;
    if !status.success() && listing.len() < MAX_LISTING as usize {
        let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
        return Err(failed(std::io::Error::other(format!("git ls-files: {complaint}"))));
    }
    let paths = listing.split(|&byte| byte == 0).filter_map(|path| std::str::from_utf8(path).ok());
    Ok(paths.filter(|path| !path.is_empty() && !is_made(path)).take(MAX_FILES).map(str::to_owned).collect())
}

fn is_made(path: &str) -> bool {
    GENERATED.iter().any(|ending| path.ends_with(ending))
        || Path::new(path)
            .parent()
            .is_some_and(|parent| parent.components().any(|part| FOREIGN.iter().any(|name| part.as_os_str() == *name)))
}

/// The text of those of `paths` that are text, inside the worktree and of a size that matters.
pub(super) fn read(worktree: &Path, paths: &[String]) -> Vec<Source> {
    let Ok(root) = worktree.canonicalize() else { return Vec::new() };
    let mut left = MAX_READ;
    let mut sources = Vec::new();
    for path in paths {
        if let Some(text) = text(&root, path).filter(|text| text.len() as u64 <= left) {
            left -= text.len() as u64;
            sources.push(Source { path: path.clone(), text });
        }
    }
    sources
}

fn text(root: &Path, path: &str) -> Option<String> {
    let relative = PathBuf::from(path);
    if !relative.components().all(|component| matches!(component, Component::Normal(_))) {
        return None;
    }
    let file = root.join(relative);
    // A link could lead to what the prompt must not hold.
    let inside = file.parent()?.canonicalize().ok()?.starts_with(root);
    let metadata = fs::symlink_metadata(&file).ok()?;
    if !inside || !metadata.is_file() || metadata.len() > MAX_FILE {
        return None;
    }
    let mut bytes = Vec::new();
    fs::File::open(&file).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn links_binaries_and_paths_outside_are_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "key").unwrap();
        fs::write(dir.path().join("a.py"), "x = 1\n").unwrap();
        fs::write(dir.path().join("b.bin"), b"a\0b").unwrap();
        std::os::unix::fs::symlink(outside.path().join("secret"), dir.path().join("link.py")).unwrap();
        std::os::unix::fs::symlink(outside.path(), dir.path().join("way")).unwrap();
        let paths = ["a.py", "b.bin", "link.py", "way/secret", "../x", "missing.py"].map(str::to_owned);
        let sources = read(dir.path(), &paths);
        assert_eq!(sources, [Source { path: "a.py".into(), text: "x = 1\n".into() }]);
    }

    #[test]
    fn what_tools_made_is_left_out() {
        assert!(is_made("node_modules/x/index.js") && is_made("Cargo.lock") && is_made("a/vendor/b.go"));
        assert!(!is_made("src/build.rs") && !is_made("src/vendor.py"));
    }
}
