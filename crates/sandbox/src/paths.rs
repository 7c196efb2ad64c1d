//! Which paths a run may read: the system's own, what was listed, and never what is hidden below them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use super::{Reach, Spec};

/// Programs, libraries and kernel interfaces every run may read and execute.
const SYSTEM: [&str; 16] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/opt",
    "/nix/store",
    "/nix/var/nix/profiles",
    "/gnu/store",
    "/home/linuxbrew/.linuxbrew",
    "/run/current-system",
    "/run/opengl-driver",
    "/proc",
    "/sys",
];

/// Read by the resolver of a run that has the machine's network.
const RESOLVER: [&str; 2] = ["/run/systemd/resolve", "/run/resolvconf"];

/// How deep a walk goes and how many entries of a directory it looks at, so that a strange tree cannot stall a run.
const MAX_DEPTH: usize = 8;
const MAX_ENTRIES: usize = 4096;

/// The home directory of the user this process runs as.
pub fn home() -> Option<PathBuf> {
    std::env::var_os("HOME")
        .map(PathBuf::from)
        .filter(|home| home.is_absolute())
        .or_else(|| nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten().map(|user| user.dir))
}

/// `~` and `~/x` with the home directory put in; other relative paths mean nothing here and are dropped.
pub fn expand(path: &Path, home: Option<&Path>) -> Option<PathBuf> {
    match path.strip_prefix("~") {
        Ok(rest) => home.map(|home| home.join(rest)),
        Err(_) => path.is_absolute().then(|| path.to_owned()),
    }
}

/// Directories and files a run may read, as they were named; those that do not exist are left out.
pub(super) fn readable(spec: &Spec) -> Vec<PathBuf> {
    let resolver = if spec.reach == Reach::Host { &RESOLVER[..] } else { &[] };
    SYSTEM
        .iter()
        .chain(resolver)
        .map(PathBuf::from)
        .chain(spec.read.iter().cloned())
        .filter(|path| path.exists())
        .collect()
}

/// What hidden paths exist, without symbolic links in them.
pub(super) fn hidden(spec: &Spec) -> Vec<PathBuf> {
    spec.hidden.iter().filter_map(|path| path.canonicalize().ok()).collect()
}

/// The parts of `path` that lie outside every hidden path: itself when none lies below it.
pub(super) fn without(path: &Path, hidden: &[PathBuf]) -> Vec<PathBuf> {
    let mut parts = Vec::new();
    if let Ok(path) = path.canonicalize() {
        split(&path, hidden, &mut parts, 0);
    }
    parts
}

fn split(path: &Path, hidden: &[PathBuf], parts: &mut Vec<PathBuf>, depth: usize) {
    if hidden.iter().any(|hidden| path.starts_with(hidden)) {
        return;
    }
    if !hidden.iter().any(|hidden| hidden.starts_with(path)) {
        parts.push(path.to_owned());
        return;
    }
    if depth < 2 * MAX_DEPTH {
        for entry in entries(path) {
            if !entry.is_symlink() {
                split(&entry, hidden, parts, depth + 1);
            }
        }
    }
}

/// The parts of `/etc` that every user of the machine may read. A daemon that runs as root would otherwise hand out
/// password hashes and host keys.
pub(super) fn public_settings() -> Vec<PathBuf> {
    let mut parts = Vec::new();
    for entry in entries(Path::new("/etc")) {
        public(&entry, &mut parts, 0);
    }
    parts
}

/// Adds `path`, or the parts of it that are public; whether all of it was.
fn public(path: &Path, parts: &mut Vec<PathBuf>, depth: usize) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else { return false };
    let mode = metadata.permissions().mode();
    if metadata.is_symlink() {
        // What it points to is granted, or not, on its own.
        return true;
    }
    if !metadata.is_dir() {
        let readable = mode & 0o004 != 0;
        if readable {
            parts.push(path.to_owned());
        }
        return readable;
    }
    if mode & 0o005 != 0o005 || depth >= MAX_DEPTH {
        return false;
    }
    let before = parts.len();
    let mut all = true;
    for entry in entries(path) {
        // Each is looked at, also after one was not public: it adds what it has to `parts`.
        all &= public(&entry, parts, depth + 1);
    }
    if all {
        parts.truncate(before);
        parts.push(path.to_owned());
    }
    all
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().take(MAX_ENTRIES).map(|entry| entry.path()).collect()
}

/// Whether every run may read `path` (one without symbolic links in it), as far as its permissions let it.
pub fn is_system(path: &Path) -> bool {
    SYSTEM.iter().any(|system| path.starts_with(system)) || path.starts_with("/etc")
}

/// The symbolic links one walks through to reach `path`, each with where it points.
pub fn links(path: &Path) -> Vec<(PathBuf, PathBuf)> {
    /// As many as the kernel follows.
    const MAX_LINKS: usize = 40;
    let mut found = Vec::new();
    let mut at = path.to_owned();
    'again: while found.len() < MAX_LINKS {
        let mut walked = PathBuf::new();
        let mut components = at.components();
        while let Some(component) = components.next() {
            walked.push(component);
            if let Ok(target) = fs::read_link(&walked) {
                let rest = components.as_path().to_owned();
                let parent = walked.parent().unwrap_or(Path::new("/"));
                let next = normal(&parent.join(&target).join(rest));
                found.push((walked, target));
                at = next;
                continue 'again;
            }
        }
        break;
    }
    found
}

/// Removes a directory with all in it, also directories their owner may not write to (Go's module cache makes such).
pub fn remove(directory: &Path) {
    if fs::remove_dir_all(directory).is_ok() || !directory.exists() {
        return;
    }
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o700));
        pending.extend(entries(&directory).into_iter().filter(|path| path.is_dir() && !path.is_symlink()));
    }
    let _ = fs::remove_dir_all(directory);
}

/// `path` without `.` and `..`, by name only.
fn normal(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_directory_with_something_hidden_below_is_given_out_in_parts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir_all(root.join("share/app")).unwrap();
        fs::create_dir_all(root.join("state/lares/keys")).unwrap();
        fs::create_dir_all(root.join("state/other")).unwrap();
        symlink(root.join("state/lares"), root.join("alias")).unwrap();
        let mut parts = without(&root, &[root.join("state/lares")]);
        parts.sort();
        assert_eq!(parts, [root.join("share"), root.join("state/other")]);
        assert_eq!(without(&root.join("share"), &[root.join("state/lares")]), [root.join("share")]);
        assert!(without(&root.join("state/lares/keys"), &[root.join("state/lares")]).is_empty());
    }

    #[test]
    fn of_a_tree_only_what_everybody_may_read_is_public() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, mode) in [("ssh/config", 0o644), ("ssh/host_key", 0o600), ("ssl/cert", 0o644), ("shadow", 0o640)] {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::set_permissions(path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
            fs::write(&path, name).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut parts = Vec::new();
        assert!(!public(root, &mut parts, 0));
        parts.sort();
        assert_eq!(parts, [root.join("ssh/config"), root.join("ssl")]);
    }

    #[test]
    fn links_on_the_way_are_found_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        symlink("real", root.join("one")).unwrap();
        symlink("one", root.join("two")).unwrap();
        assert_eq!(
            links(&root.join("two/file")),
            [(root.join("two"), PathBuf::from("one")), (root.join("one"), PathBuf::from("real"))]
        );
    }

    #[test]
    fn tilde_is_the_home_directory_and_relative_paths_are_dropped() {
        let home = Path::new("/home/p");
        assert_eq!(expand(Path::new("~/.cargo"), Some(home)), Some("/home/p/.cargo".into()));
        assert_eq!(expand(Path::new("/opt/x"), None), Some("/opt/x".into()));
        assert_eq!(expand(Path::new("x"), Some(home)), None);
        assert_eq!(expand(Path::new("~/x"), None), None);
    }
}
