//! Writing changes into the worktree: every one is examined first, then all are made, or none.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use similar::{ChangeTag, TextDiff};
use tempfile::NamedTempFile;

use super::resolve::Change;

/// Largest file an answer may make, in bytes.
const MAX_FILE: usize = 1 << 20;
const MAX_PATH: usize = 1024;
/// Mode of a new file before the umask; temporary files are made unreadable for others.
const NEW_FILE: u32 = 0o644;

/// What was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Applied {
    /// Relative to the worktree.
    pub(super) changed: Vec<PathBuf>,
    pub(super) summary: String,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(super) enum ApplyError {
    #[error("the path {0:?} is not one inside the repository")]
    Outside(String),
    #[error("{0} belongs to git and is not to be changed")]
    Git(String),
    #[error("{0} is a symbolic link, or is reached through one that leads out of the repository")]
    Link(String),
    #[error("{0} must stay as it is")]
    Protected(String),
    #[error("{path} would have {size} bytes; the most is {MAX_FILE}")]
    TooLarge { path: String, size: usize },
    #[error("the new text of {0} is none: it has NUL bytes in it")]
    Binary(String),
    #[error("the new text of {0} is empty")]
    Empty(String),
    #[error("{0} is not a file")]
    NotAFile(String),
    #[error("{path}: {source}", path = path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// A change that was examined.
struct Checked {
    relative: String,
    file: PathBuf,
    new: String,
    /// What is there now, and its mode.
    old: Option<(Vec<u8>, u32)>,
    /// Directories to make, outermost first.
    directories: Vec<PathBuf>,
}

/// Makes `changes` below `worktree`.
pub(super) fn apply(worktree: &Path, changes: Vec<Change>, protected: &[PathBuf]) -> Result<Applied, ApplyError> {
    let root = worktree.canonicalize().map_err(|source| ApplyError::Io { path: worktree.to_owned(), source })?;
    let checked = changes.into_iter().map(|change| check(&root, change, protected)).collect::<Result<Vec<_>, _>>()?;
    let mut done = Vec::new();
    for change in &checked {
        if let Err(source) = write(change, &mut done) {
            for undo in done.into_iter().rev() {
                undo_one(undo);
            }
            return Err(ApplyError::Io { path: change.file.clone(), source });
        }
    }
    let summary = checked.iter().map(|change| {
        let old = change.old.as_ref().map(|(bytes, _)| String::from_utf8_lossy(bytes).into_owned()).unwrap_or_default();
        let diff = TextDiff::from_lines(&old, &change.new);
        let count = |tag| diff.iter_all_changes().filter(|line| line.tag() == tag).count();
        let made = if change.old.is_none() { "new, " } else { "" };
        format!("{} ({made}+{} −{})", change.relative, count(ChangeTag::Insert), count(ChangeTag::Delete))
    });
    Ok(Applied {
        summary: format!("changed {}", summary.collect::<Vec<_>>().join(", ")),
        changed: checked.iter().map(|change| PathBuf::from(&change.relative)).collect(),
    })
}

fn check(root: &Path, change: Change, protected: &[PathBuf]) -> Result<Checked, ApplyError> {
    let Change { path, text } = change;
    let relative = Path::new(&path);
    let names: Option<Vec<&str>> = relative
        .components()
        .map(|component| match component {
            Component::Normal(name) => name.to_str(),
            _ => None,
        })
        .collect();
    let names = names.filter(|names| !names.is_empty() && path.len() <= MAX_PATH && !path.contains(char::is_control));
    let Some(names) = names else { return Err(ApplyError::Outside(path)) };
    if names.iter().any(|name| is_git(name)) {
        return Err(ApplyError::Git(path));
    }
    if text.len() > MAX_FILE {
        return Err(ApplyError::TooLarge { path, size: text.len() });
    }
    if text.contains('\0') {
        return Err(ApplyError::Binary(path));
    }
    if text.trim().is_empty() {
        return Err(ApplyError::Empty(path));
    }
    let (parent, directories) =
        parent(root, &names[..names.len() - 1]).ok_or_else(|| ApplyError::Link(path.clone()))?;
    let file = parent.join(names[names.len() - 1]);
    // By its name, and by where links inside the worktree lead.
    let inside = file.strip_prefix(root).unwrap_or(relative);
    if inside.components().any(|part| part.as_os_str().to_str().is_some_and(is_git)) {
        return Err(ApplyError::Git(path));
    }
    if protected.iter().any(|protected| relative.starts_with(protected) || inside.starts_with(protected)) {
        return Err(ApplyError::Protected(path));
    }
    let old = match fs::symlink_metadata(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(ApplyError::Io { path: file, source }),
        Ok(metadata) if metadata.is_symlink() => return Err(ApplyError::Link(path)),
        Ok(metadata) if !metadata.is_file() => return Err(ApplyError::NotAFile(path)),
        Ok(metadata) => {
            let bytes = fs::read(&file).map_err(|source| ApplyError::Io { path: file.clone(), source })?;
            Some((bytes, metadata.permissions().mode() & 0o7777))
        }
    };
    let new = in_style_of(old.as_ref().map(|(bytes, _)| bytes.as_slice()), &text);
    Ok(Checked { relative: path, file, new, old, directories })
}

/// git's own directory, also in the spellings other file systems take for it.
fn is_git(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii).collect();
    let plain = plain.trim_end_matches(['.', ' ']);
    plain.eq_ignore_ascii_case(".git") || plain.eq_ignore_ascii_case("git~1")
}

/// The directory the names lead to, and those of its parents that have to be made. `None`: it leads out.
fn parent(root: &Path, names: &[&str]) -> Option<(PathBuf, Vec<PathBuf>)> {
    let mut at = root.to_owned();
    let mut missing = Vec::new();
    for name in names {
        let next = at.join(name);
        if !missing.is_empty() || next.symlink_metadata().is_err() {
            missing.push(next.clone());
            at = next;
            continue;
        }
        at = next.canonicalize().ok().filter(|real| real.starts_with(root) && real.is_dir())?;
    }
    Some((at, missing))
}

/// `text` with the line ends, the last line end and the byte order mark of what was there.
fn in_style_of(old: Option<&[u8]>, text: &str) -> String {
    const MARK: &str = "\u{feff}";
    let text = text.replace("\r\n", "\n");
    let body = text.trim_end_matches('\n');
    let Some(old) = old.filter(|old| !old.is_empty()).map(String::from_utf8_lossy) else {
        return format!("{body}\n");
    };
    let mut text = body.to_owned();
    if old.ends_with('\n') {
        text.push('\n');
    }
    if 2 * old.matches("\r\n").count() > old.matches('\n').count() {
        text = text.replace('\n', "\r\n");
    }
    if old.starts_with(MARK) && !text.starts_with(MARK) {
        text.insert_str(0, MARK);
    }
    text
}

/// How to take one step back.
enum Undo {
    Restore { file: PathBuf, bytes: Vec<u8>, mode: u32 },
    Remove(PathBuf),
    RemoveDirectory(PathBuf),
}

fn write(change: &Checked, done: &mut Vec<Undo>) -> io::Result<()> {
    for directory in &change.directories {
        match fs::create_dir(directory) {
            Ok(()) => done.push(Undo::RemoveDirectory(directory.clone())),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
            Err(error) => return Err(error),
        }
    }
    let mode = change.old.as_ref().map_or(NEW_FILE, |&(_, mode)| mode);
    replace(&change.file, change.new.as_bytes(), mode)?;
    done.push(match &change.old {
        Some((bytes, mode)) => Undo::Restore { file: change.file.clone(), bytes: bytes.clone(), mode: *mode },
        None => Undo::Remove(change.file.clone()),
    });
    Ok(())
}

/// Puts `bytes` in the place of `file` in one step.
fn replace(file: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let parent = file.parent().ok_or_else(|| io::Error::other("a file has a directory"))?;
    let mut new = NamedTempFile::with_prefix_in(".lares-", parent)?;
    new.write_all(bytes)?;
    File::set_permissions(new.as_file(), Permissions::from_mode(mode))?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

fn undo_one(undo: Undo) {
    let undone = match undo {
        Undo::Restore { file, bytes, mode } => replace(&file, &bytes, mode),
        Undo::Remove(file) => fs::remove_file(file),
        Undo::RemoveDirectory(directory) => fs::remove_dir(directory),
    };
    if let Err(error) = undone {
        tracing::error!(%error, "a half-made change could not be taken back; the worktree is put back by git");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn change(path: &str, text: &str) -> Change {
        Change { path: path.to_owned(), text: text.to_owned() }
    }

    fn worktree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("src")).unwrap();
        fs::create_dir(dir.path().join(".git")).unwrap();
        fs::write(dir.path().join(".git/config"), "[core]\n").unwrap();
        fs::write(dir.path().join("src/a.py"), "x = 1\n").unwrap();
        dir
    }

    /// Everything below a directory, for "nothing changed".
    fn everything(root: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let mut found = Vec::new();
        let mut pending = vec![root.to_owned()];
        while let Some(directory) = pending.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() {
                    found.push((path.clone(), Vec::new()));
                    pending.push(path);
                } else {
                    found.push((path.clone(), fs::read(&path).unwrap_or_default()));
                }
            }
        }
        found.sort();
        found
    }

    #[test]
    fn no_path_leads_out_of_the_worktree_or_into_git() {
        let dir = worktree();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("way")).unwrap();
        symlink(outside.path().join("file"), dir.path().join("link.py")).unwrap();
        symlink(".git", dir.path().join("store")).unwrap();
        symlink("src", dir.path().join("alias")).unwrap();
        let before = everything(dir.path());
        for path in [
            "/etc/x",
            "../x.py",
            "src/../../x.py",
            "",
            ".",
            "a\nb",
            ".git/config",
            ".GIT/hooks/x",
            "sub/.git/x",
            ".git./x",
            ".g\u{200c}it/config",
            "GIT~1/config",
            "way/x.py",
            "way/new/x.py",
            "link.py",
            "store/config",
            "src",
            "src/a.py/b",
        ] {
            let result = apply(dir.path(), vec![change("src/a.py", "x = 2\n"), change(path, "bad\n")], &[]);
            assert!(result.is_err(), "{path} was accepted");
        }
        assert_eq!(everything(dir.path()), before);
        assert!(fs::read_dir(outside.path()).unwrap().next().is_none());
        // A link that stays inside is followed.
        apply(dir.path(), vec![change("alias/a.py", "x = 2\n")], &[]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("src/a.py")).unwrap(), "x = 2\n");
    }

    #[test]
    fn protected_files_stay_whatever_name_is_used_for_them() {
        let dir = worktree();
        fs::create_dir(dir.path().join("tests")).unwrap();
        fs::write(dir.path().join("tests/test_a.py"), "assert\n").unwrap();
        symlink("tests", dir.path().join("t")).unwrap();
        let protected = [PathBuf::from("tests"), PathBuf::from("src/a.py")];
        for path in ["tests/test_a.py", "tests/new.py", "t/test_a.py", "src/a.py", "./src/a.py"] {
            assert!(apply(dir.path(), vec![change(path, "pass\n")], &protected).is_err(), "{path} was accepted");
        }
    }

    #[test]
    fn a_failing_write_takes_back_all_of_it() {
        let dir = worktree();
        fs::write(dir.path().join("src/b.py"), "y = 1\n").unwrap();
        let before = everything(dir.path());
        // The second file needs a directory where the first one made a file.
        let changes = vec![change("src/a.py", "x = 2\n"), change("made/c", "c\n"), change("made/c/d.py", "z = 1\n")];
        assert!(apply(dir.path(), changes, &[]).is_err());
        assert_eq!(everything(dir.path()), before);
    }

    #[test]
    fn mode_line_ends_and_mark_are_kept() {
        let dir = worktree();
        let file = dir.path().join("run.bat");
        fs::write(&file, "\u{feff}a\r\nb").unwrap();
        fs::set_permissions(&file, Permissions::from_mode(0o755)).unwrap();
        let applied = apply(dir.path(), vec![change("run.bat", "a\nc\n")], &[]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "\u{feff}a\r\nc");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(applied.changed, [PathBuf::from("run.bat")]);
        let applied = apply(dir.path(), vec![change("new/deep/x.py", "x = 1")], &[]).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("new/deep/x.py")).unwrap(), "x = 1\n");
        assert_eq!(applied.summary, "changed new/deep/x.py (new, +1 −0)");
    }

    #[test]
    fn texts_that_are_none_are_refused() {
        let dir = worktree();
        let large = "x".repeat(MAX_FILE + 1);
        for text in ["a\0b", "", " \n\n", large.as_str()] {
            assert!(apply(dir.path(), vec![change("src/a.py", text)], &[]).is_err());
        }
        assert_eq!(fs::read_to_string(dir.path().join("src/a.py")).unwrap(), "x = 1\n");
    }
}
