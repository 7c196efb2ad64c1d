//! Files that a failure is about, and the file systems that units write to.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::fcntl::OFlag;
use nix::sys::statvfs::{FsFlags, Statvfs, statvfs};
use nix::unistd::{Gid, Group, Uid, User};

use crate::facts::{Disk, File, FileState};

/// Free space below which programs fail, in bytes. On a small file system it is a twentieth.
const FULL: u64 = 16 << 20;
/// A file whose name is less like the wanted one is another file.
const SIMILAR: f64 = 0.6;
/// Most files of a directory that are compared.
const COMPARED: usize = 10_000;
/// Least that a GGUF file has: magic, version, and the numbers of tensors and of keys.
const GGUF_HEADER: u64 = 24;

/// What the lines say about a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// It is not there, or cannot be loaded, which often means the same.
    Missing,
    /// It may not be used.
    Forbidden,
    /// It is of no use.
    Corrupt,
}

/// Who a unit runs as, as far as its files tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Identity {
    /// None: not known, such as with `DynamicUser=`.
    user: Option<u32>,
    groups: BTreeSet<u32>,
}

impl Identity {
    /// Reads `User=`, `Group=` and `SupplementaryGroups=` in the unit's files, the last word counting. Names with
    /// specifiers are not known.
    pub(super) fn of_unit(files: &[PathBuf]) -> Self {
        let (mut user, mut group, mut dynamic, mut more) = (None, None, false, Vec::new());
        for text in files.iter().filter_map(|path| fs::read_to_string(path).ok()) {
            let mut in_service = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with('[') {
                    in_service = line == "[Service]";
                }
                let Some((key, value)) = line.split_once('=').filter(|_| in_service) else { continue };
                let value = value.trim();
                let some = || (!value.is_empty()).then(|| value.to_owned());
                match key.trim() {
                    "User" => user = some(),
                    "Group" => group = some(),
                    "DynamicUser" => dynamic = matches!(value, "yes" | "true" | "1" | "on" | "y" | "t"),
                    "SupplementaryGroups" if value.is_empty() => more.clear(),
                    "SupplementaryGroups" => more.extend(value.split_ascii_whitespace().map(str::to_owned)),
                    _ => {}
                }
            }
        }
        let found = match &user {
            None if dynamic => None,
            None => Some((0, 0)),
            Some(name) => user_of(name),
        };
        let mut groups: BTreeSet<u32> = more.iter().filter_map(|name| group_of(name)).collect();
        groups.extend(match &group {
            Some(name) => group_of(name),
            None => found.map(|(_, group)| group),
        });
        if let Some(name) = user.filter(|_| found.is_some()) {
            groups.extend(groups_with(&name));
        }
        Self { user: found.map(|(user, _)| user), groups }
    }

    /// Whether such a user may read a file, by the modes of it and of the directories above. None: not known, because
    /// the user is not, or because this process may not look.
    fn may_read(&self, path: &Path) -> Option<bool> {
        let path = fs::canonicalize(path).ok()?;
        let mut allowed = Some(true);
        for (depth, place) in path.ancestors().enumerate() {
            let found = fs::metadata(place).ok()?;
            let needed = match (depth, found.is_dir()) {
                (0, true) => 0o5,
                (0, false) => 0o4,
                _ => 0o1,
            };
            match self.may(&found, needed) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => allowed = None,
            }
        }
        allowed
    }

    /// Whether anything was changed that decides on whether such a user may use the file: it, what is above it, who is in
    /// which group, or the unit.
    fn was_changed_since(&self, path: &Path, unit_files: &[PathBuf], at: Timestamp) -> bool {
        let unit = unit_files.iter().map(PathBuf::as_path);
        // Root is not kept out by modes. And directories change with every file in them.
        let above = path.ancestors().skip(1).filter(|_| self.user != Some(0));
        let mut places = unit.chain([path, Path::new("/etc/group")]).chain(above);
        places.any(|place| fs::metadata(place).is_ok_and(|found| changed(&found) > at))
    }

    fn may(&self, found: &Metadata, needed: u32) -> Option<bool> {
        let (user, mode) = (self.user, found.mode());
        let has = |shift: u32| mode >> shift & needed == needed;
        if user == Some(0) {
            return Some(true);
        }
        // A list of further rights (ACL) shows in the group's bits and cannot be told from here.
        if user == Some(found.uid()) {
            Some(has(6))
        } else if self.groups.contains(&found.gid()) {
            Some(has(3))
        } else if has(0) {
            Some(true)
        } else {
            user.map(|_| false)
        }
    }
}

fn user_of(name: &str) -> Option<(u32, u32)> {
    let found = match name.parse() {
        Ok(id) => User::from_uid(Uid::from_raw(id)),
        Err(_) => User::from_name(name),
    };
    found.ok().flatten().map(|user| (user.uid.as_raw(), user.gid.as_raw()))
}

fn group_of(name: &str) -> Option<u32> {
    if let Ok(id) = name.parse() {
        return Some(id);
    }
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

/// The groups that list a user as a member.
fn groups_with(name: &str) -> Vec<u32> {
    let text = fs::read_to_string("/etc/group").unwrap_or_default();
    let listed = |line: &str| {
        let mut fields = line.splitn(4, ':').skip(2);
        let id = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|member| member.trim() == name).then_some(id)
    };
    text.lines().filter_map(listed).collect()
}

/// What lines say about a file, and all it takes to see whether that is still so.
#[derive(Debug, Clone)]
pub(super) struct Named {
    /// The file.
    pub(super) path: PathBuf,
    /// What the lines say.
    pub(super) said: Said,
    /// When.
    pub(super) at: Timestamp,
    /// Name of the model that the configuration declares at this path.
    pub(super) declared: Option<String>,
    /// The files that define the unit, the last word last.
    pub(super) unit_files: Vec<PathBuf>,
}

/// The file as it is now, and what could not be found out.
///
/// What the unit said counts as long as nothing has changed since: it knows its own user, sandbox and format best.
pub(super) fn file(named: Named) -> (File, Option<String>) {
    let Named { path, said, at, declared, unit_files } = named;
    let shown = path.display().to_string();
    let of = |state, access, nearest| File { path: shown.clone(), state, access, nearest, declared };
    match fs::metadata(&path) {
        Ok(found) => {
            let identity = Identity::of_unit(&unit_files);
            let readable = identity.may_read(&path);
            let state = match said {
                // Whoever may not read it has not seen what is in it.
                Said::Missing | Said::Corrupt if is_cut_short(&path, &found) => FileState::Corrupt,
                Said::Corrupt if changed(&found) <= at => FileState::Corrupt,
                Said::Forbidden if readable != Some(true) || !identity.was_changed_since(&path, &unit_files, at) => {
                    FileState::Forbidden
                }
                _ if readable == Some(false) => FileState::Forbidden,
                _ => FileState::Good,
            };
            (of(state, access(&found), None), None)
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            let state = match said {
                Said::Missing => FileState::Missing,
                Said::Forbidden => FileState::Forbidden,
                Said::Corrupt => FileState::Corrupt,
            };
            (of(state, String::new(), None), Some(format!("what {shown} is like now: {error}")))
        }
        Err(_) => (of(FileState::Missing, String::new(), nearest(&path)), None),
    }
}

/// Owner, group and mode.
fn access(found: &Metadata) -> String {
    let owner = User::from_uid(Uid::from_raw(found.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
    format!(
        "{} {} {:04o}",
        owner.map_or_else(|| found.uid().to_string(), |user| user.name),
        group.map_or_else(|| found.gid().to_string(), |group| group.name),
        found.mode() & 0o7777
    )
}

/// When the content of a file was written.
pub(super) fn modified(found: &Metadata) -> Timestamp {
    moment(found.mtime(), found.mtime_nsec())
}

/// When the content, the owner or the mode of a file was changed.
fn changed(found: &Metadata) -> Timestamp {
    moment(found.ctime(), found.ctime_nsec())
}

fn moment(seconds: i64, nanoseconds: i64) -> Timestamp {
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(0);
    Timestamp::new(seconds, nanoseconds).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// Whether a GGUF file does not begin as such a file does, or ends within its header.
fn is_cut_short(path: &Path, found: &Metadata) -> bool {
    if !found.is_file() || path.extension().is_none_or(|ending| !ending.eq_ignore_ascii_case("gguf")) {
        return false;
    }
    let mut magic = [0; 4];
    match fs::File::open(path).and_then(|mut file| file.read_exact(&mut magic)) {
        Ok(()) => &magic != b"GGUF" || found.len() < GGUF_HEADER,
        Err(error) => error.kind() == io::ErrorKind::UnexpectedEof,
    }
}

/// What is nearest to a path that does not exist: the file beside it with the most similar name, else the nearest place
/// above it.
fn nearest(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_string_lossy().to_lowercase();
    let beside = fs::read_dir(path.parent()?).ok();
    let files = beside.into_iter().flatten().take(COMPARED).flatten().map(|entry| entry.path());
    let alike = |path: PathBuf| {
        let name = path.file_name()?.to_string_lossy().to_lowercase();
        let likeness = strsim::normalized_levenshtein(&wanted, &name);
        (likeness >= SIMILAR && path.is_file()).then_some((likeness, path))
    };
    let most = files.filter_map(alike).max_by(|(one, a), (other, b)| one.total_cmp(other).then_with(|| b.cmp(a)));
    let found = match most {
        Some((_, path)) => path,
        None => path.ancestors().skip(1).find(|place| place.exists())?.to_owned(),
    };
    Some(found.display().to_string())
}

/// The file system that a place is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is mounted.
    pub(super) point: String,
    /// Major and minor number of its device, as the kernel has them.
    pub(super) device: (u64, u64),
}

/// The file system that a place is on. None: there is no such place, or this process may not go there.
pub(super) fn mount_of(path: &Path) -> Option<Mount> {
    // Takes no right to read the file, and tells exactly where several are mounted at one place.
    let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path).ok()?;
    let about = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd())).ok()?;
    let id = about.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().to_owned();
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| mount(line, &id))
}

/// A line of `mountinfo`: `id parent major:minor root point …`, with some characters as octal numbers.
fn mount(line: &str, id: &str) -> Option<Mount> {
    let fields: Vec<&str> = line.split(' ').collect();
    if *fields.first()? != id {
        return None;
    }
    let (major, minor) = fields.get(2)?.split_once(':')?;
    let mut point = (*fields.get(4)?).to_owned();
    for (code, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        point = point.replace(code, character);
    }
    Some(Mount { point, device: (major.parse().ok()?, minor.parse().ok()?) })
}

/// The fullest of the file systems that these places are on, and what could not be found out. Those that nobody can
/// write to do not count.
pub(super) fn fullest(places: &[&Path]) -> (Option<Disk>, Vec<String>) {
    let (mut found, mut unknown) = (Vec::new(), Vec::new());
    for place in places {
        // Where the file is not there (yet), the directory that it would come into.
        let Some(place) = place.ancestors().find(|place| place.exists()) else { continue };
        match statvfs(place) {
            Ok(about) if about.flags().contains(FsFlags::ST_RDONLY) || about.blocks() == 0 => {}
            Ok(about) => {
                let mount = mount_of(place).map_or_else(|| place.display().to_string(), |mount| mount.point);
                found.push(Disk { mount, free: free(&about), full: is_full(&about) });
            }
            Err(error) => unknown.push(format!("how full {} is: {error}", place.display())),
        }
    }
    (found.into_iter().min_by_key(|disk| (!disk.full, disk.free)), unknown)
}

fn free(about: &Statvfs) -> u64 {
    about.blocks_available().saturating_mul(about.fragment_size())
}

/// Whether there is no room for what programs write, or for one more file.
fn is_full(about: &Statvfs) -> bool {
    let size = about.blocks().saturating_mul(about.fragment_size());
    // File systems that make inodes as they need them have none to count.
    let no_inodes = about.files() > 0 && about.files_available() == 0;
    free(about) < FULL.min(size / 20) || no_inodes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;

    use jiff::SignedDuration;

    use super::*;

    fn of(path: &Path, said: Said, at: Timestamp) -> File {
        let named = Named { path: path.to_owned(), said, at, declared: None, unit_files: vec![] };
        let (file, unknown) = file(named);
        assert_eq!(unknown, None);
        file
    }

    fn soon() -> Timestamp {
        Timestamp::now() + SignedDuration::from_secs(60)
    }

    fn earlier() -> Timestamp {
        Timestamp::now() - SignedDuration::from_secs(60)
    }

    fn gguf() -> Vec<u8> {
        [b"GGUF".as_slice(), &[0; 100]].concat()
    }

    #[test]
    fn a_file_that_is_not_there_has_a_nearest_one() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let shown = |path: &Path| Some(path.display().to_string());
        let missing = of(&at("models/coder-0.5b.gguf"), Said::Missing, soon());
        assert_eq!((missing.state, missing.access.as_str()), (FileState::Missing, ""));
        assert_eq!(missing.nearest, shown(directory.path()));
        for name in ["coder-0.5b-Q4_K_M.gguf", "coder-7b.gguf", "notes.txt"] {
            fs::write(at(name), "").unwrap();
        }
        fs::create_dir(at("coder-0.5.gguf")).unwrap();
        assert_eq!(of(&at("Coder-0.5b.gguf"), Said::Missing, soon()).nearest, shown(&at("coder-7b.gguf")));
        assert_eq!(
            of(&at("coder-0.5b-q8_k_m.gguf"), Said::Missing, soon()).nearest,
            shown(&at("coder-0.5b-Q4_K_M.gguf"))
        );
        assert_eq!(of(&at("another"), Said::Missing, soon()).nearest, shown(directory.path()));
        // A link to nowhere is no file.
        std::os::unix::fs::symlink(at("nowhere"), at("link.gguf")).unwrap();
        assert_eq!(of(&at("link.gguf"), Said::Missing, soon()).state, FileState::Missing);
    }

    #[test]
    fn a_model_is_good_corrupt_or_cut_short() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.gguf");
        let with = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            of(&path, Said::Missing, soon()).state
        };
        assert_eq!(with(&gguf()), FileState::Good);
        assert_eq!(with(b"GGUF and no more"), FileState::Corrupt);
        assert_eq!(with(&[b"<!DOCTYPE html>".as_slice(), &[b' '; 100]].concat()), FileState::Corrupt);
        assert_eq!(with(b"GG"), FileState::Corrupt);
        assert_eq!(with(b""), FileState::Corrupt);
        // It reads well as far as can be told from here, and the program says otherwise.
        fs::write(&path, gguf()).unwrap();
        assert_eq!(of(&path, Said::Corrupt, soon()).state, FileState::Corrupt);
        // It was fetched again since.
        assert_eq!(of(&path, Said::Corrupt, earlier()).state, FileState::Good);
    }

    #[test]
    fn what_was_forbidden_is_so_until_somebody_changes_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        fs::write(&path, "").unwrap();
        assert_eq!(of(&path, Said::Forbidden, soon()).state, FileState::Forbidden);
        assert_eq!(of(&path, Said::Forbidden, earlier()).state, FileState::Good);
        // What is in it is another matter.
        let model = directory.path().join("secret.gguf");
        fs::write(&model, "").unwrap();
        assert_eq!(of(&model, Said::Forbidden, soon()).state, FileState::Forbidden);
        assert!(of(&path, Said::Forbidden, soon()).access.ends_with(" 0644"));
    }

    #[test]
    fn rights_are_those_of_the_units_user() {
        let directory = tempfile::tempdir().unwrap();
        let unit = |text: &str| {
            let path = directory.path().join("unit");
            fs::write(&path, text).unwrap();
            Identity::of_unit(&[PathBuf::from("/nowhere"), path])
        };
        assert_eq!(unit("[Service]\nExecStart=/bin/x").user, Some(0));
        let numbered = unit("[Unit]\nUser=1\n[Service]\n User = root\nSupplementaryGroups=4242 4243");
        assert_eq!((numbered.user, numbered.groups.contains(&4243)), (Some(0), true));
        assert_eq!(unit("[Service]\nDynamicUser=yes").user, None);
        assert_eq!(unit("[Service]\nUser=%i").user, None);

        let secret = directory.path().join("secret");
        fs::write(&secret, "").unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        mode(directory.path(), 0o755);
        mode(&secret, 0o640);
        let found = fs::metadata(&secret).unwrap();
        let who = |user, groups: &[u32]| Identity { user, groups: groups.iter().copied().collect() };
        let stranger = if found.uid() == 4242 { 4243 } else { 4242 };
        assert_eq!(who(Some(stranger), &[]).may_read(&secret), Some(false));
        assert_eq!(who(Some(stranger), &[found.gid()]).may_read(&secret), Some(true));
        assert_eq!(who(None, &[]).may_read(&secret), None);
        mode(&secret, 0o604);
        assert_eq!(who(Some(stranger), &[]).may_read(&secret), Some(true));
        assert_eq!(who(None, &[]).may_read(&secret), Some(true));
        // The group's bits count for its members, though everybody else has more.
        assert_eq!(who(Some(stranger), &[found.gid()]).may_read(&secret), Some(false));
        assert_eq!(who(Some(0), &[]).may_read(&secret), Some(true));
        // What is above has to be open as well.
        mode(directory.path(), 0o700);
        assert_eq!(who(Some(stranger), &[]).may_read(&secret), Some(false));
    }

    #[test]
    fn the_mount_of_a_place_is_known() {
        assert_eq!(mount_of(Path::new("/proc/self/stat")).unwrap().point, "/proc");
        assert_eq!(mount_of(Path::new("/nowhere/at/all")), None);
        let line = "36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount(line, "36"), Some(Mount { point: "/mnt/a b".into(), device: (98, 0) }));
        assert_eq!(mount(line, "3"), None);
    }

    #[test]
    fn the_fullest_place_counts_and_those_nobody_writes_to_do_not() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("not/there/yet.db");
        let (disk, unknown) = fullest(&[Path::new("/proc"), &missing]);
        let disk = disk.unwrap();
        assert_eq!(unknown, Vec::<String>::new());
        assert_eq!(Some(disk.mount), mount_of(directory.path()).map(|mount| mount.point));
        assert_eq!(fullest(&[Path::new("/proc")]).0, None);
        let least = fullest(&[Path::new("/dev/shm"), directory.path()]).0.unwrap().free;
        let each = [Path::new("/dev/shm"), directory.path()].map(|place| fullest(&[place]).0.unwrap().free);
        assert_eq!(least, each[0].min(each[1]));
    }
}
