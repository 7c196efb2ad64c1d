//! A root directory of the run's own, in which nothing exists but what it may reach.
//!
//! Landlock decides what may be opened; this closes what Landlock of today's kernels leaves open: sockets in the file
//! system (the database's, D-Bus, container daemons), UDP, other people's terminals and shared memory, and for root
//! the privileges over the machine, which a user namespace does not have. Where the kernel forbids user namespaces to
//! this user the run goes without.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::unistd::{chdir, getgid, getuid, pivot_root};

use super::{Reach, Spec, paths};

/// Bytes of shared memory a run may use.
const SHARED_MEMORY: &str = "size=256m,mode=1777";

const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Moves this process into namespaces and a root directory of its own.
pub(super) fn build(spec: &Spec) -> Result<(), String> {
    let (uid, gid) = (getuid(), getgid());
    let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWIPC;
    if spec.reach == Reach::Nothing {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    unshare(flags).map_err(|error| format!("making namespaces: {error}"))?;
    for (file, text) in
        [("setgroups", "deny".to_owned()), ("uid_map", format!("{uid} {uid} 1")), ("gid_map", format!("{gid} {gid} 1"))]
    {
        fs::write(format!("/proc/self/{file}"), text).map_err(|error| format!("writing {file}: {error}"))?;
    }
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .map_err(|error| format!("making mounts private: {error}"))?;

    let root = Root { at: spec.scratch.join("root") };
    tmpfs(&root.at, "size=4m,mode=755")?;
    root.fill(spec)?;
    root.devices()?;

    let moved = chdir(&root.at).and_then(|()| pivot_root(".", ".")).and_then(|()| umount2(".", MntFlags::MNT_DETACH));
    moved.map_err(|error| format!("entering the new root directory: {error}"))?;
    chdir(&spec.directory).map_err(|error| format!("entering {}: {error}", spec.directory.display()))
}

struct Root {
    at: PathBuf,
}

/// What is done with a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// It is there as it is, to be written.
    Writable,
    /// It is there as it is, to be read.
    Shown,
    /// It is the run's private temporary directory.
    Temporary,
    /// It is empty.
    Hidden,
}

impl Root {
    fn fill(&self, spec: &Spec) -> Result<(), String> {
        let own = ["home", "tmp"].map(|name| spec.scratch.join(name));
        let writable: Vec<PathBuf> = spec.write.iter().cloned().chain(own).collect();
        let readable: Vec<PathBuf> = paths::readable(spec).into_iter().chain(["/etc".into()]).collect();
        let real = |paths: &[PathBuf], place: Place| -> Vec<(PathBuf, Place)> {
            paths.iter().filter_map(|path| path.canonicalize().ok()).map(|path| (path, place)).collect()
        };
        let mut places = real(&writable, Place::Writable);
        places.extend(real(&readable, Place::Shown));
        let named: Vec<PathBuf> = readable.into_iter().chain(writable).collect();
        places.extend(paths::hidden(spec).into_iter().map(|path| (path, Place::Hidden)));
        places.extend(["/tmp", "/var/tmp"].map(|path| (PathBuf::from(path), Place::Temporary)));
        // Sorted, every path comes after the ones it lies below.
        places.sort();
        places.dedup_by(|later, earlier| later.0 == earlier.0);
        let mut done: Vec<(&Path, Place)> = Vec::new();
        for (path, place) in &places {
            let around = done.iter().rev().find(|(outer, _)| path.starts_with(outer)).map(|&(_, place)| place);
            match (place, around) {
                (Place::Shown, Some(Place::Shown | Place::Writable))
                | (Place::Writable, Some(Place::Writable))
                | (Place::Hidden, None | Some(Place::Temporary | Place::Hidden)) => continue,
                (Place::Shown, Some(Place::Temporary)) => {
                    self.bind(path, path)?;
                    self.keep_unwritten(path)?;
                }
                (Place::Shown | Place::Writable, _) => self.bind(path, path)?,
                (Place::Temporary, _) => self.bind(&spec.scratch.join("tmp"), path)?,
                (Place::Hidden, Some(_)) if path.is_dir() => tmpfs(&self.inside(path), "size=4m,mode=755")?,
                (Place::Hidden, Some(_)) => self.bind(Path::new("/dev/null"), path)?,
            }
            done.push((path, *place));
        }
        let top = fs::read_dir("/").into_iter().flatten().flatten().map(|entry| entry.path());
        for (link, target) in named.iter().cloned().chain(top).flat_map(|path| paths::links(&path)) {
            let inside = self.inside(&link);
            if inside.symlink_metadata().is_err() {
                make_directory(inside.parent())?;
                let _ = symlink(target, inside);
            }
        }
        Ok(())
    }

    fn devices(&self) -> Result<(), String> {
        for device in DEVICES {
            let path = Path::new("/dev").join(device);
            if path.exists() {
                self.bind(&path, &path)?;
            }
        }
        let inside = self.inside(Path::new("/dev"));
        for (link, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            let _ = symlink(target, inside.join(link));
        }
        tmpfs(&inside.join("shm"), SHARED_MEMORY)?;
        let terminals = inside.join("pts");
        make_directory(Some(&terminals))?;
        // Few programs need a terminal, so a kernel that gives none is no reason to do without the rest.
        let _ = mount(None::<&str>, &terminals, Some("devpts"), MsFlags::empty(), Some("newinstance,ptmxmode=0666"));
        Ok(())
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.at.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Shows `source` at `path` of the new root.
    fn bind(&self, source: &Path, path: &Path) -> Result<(), String> {
        let target = self.inside(path);
        if source.is_dir() {
            make_directory(Some(&target))?;
        } else {
            make_directory(target.parent())?;
            if !target.exists() {
                File::create(&target).map_err(|error| format!("making {}: {error}", target.display()))?;
            }
        }
        mount(Some(source), &target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
            .map_err(|error| format!("showing {}: {error}", path.display()))
    }

    /// Makes what is shown at `path` read-only. Landlock grants writing below the temporary directory, whatever is
    /// mounted there, so below it the mount itself has to refuse.
    fn keep_unwritten(&self, path: &Path) -> Result<(), String> {
        let target = self.inside(path);
        let failed = |error: nix::Error| format!("making {} read-only: {error}", path.display());
        // Flags the mount has already may not be taken off in a user namespace, so they are named again.
        let has = statvfs(&target).map_err(failed)?.flags();
        let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        for (set, keep) in [
            (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
            (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
            (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
            (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
            (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
            (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
        ] {
            flags.set(keep, has.contains(set));
        }
        mount(None::<&str>, &target, None::<&str>, flags, None::<&str>).map_err(failed)
    }
}

fn tmpfs(at: &Path, options: &str) -> Result<(), String> {
    make_directory(Some(at))?;
    mount(None::<&str>, at, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options))
        .map_err(|error| format!("mounting {}: {error}", at.display()))
}

fn make_directory(path: Option<&Path>) -> Result<(), String> {
    let Some(path) = path else { return Ok(()) };
    fs::create_dir_all(path).map_err(|error| format!("making {}: {error}", path.display()))
}
