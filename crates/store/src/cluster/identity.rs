//! Who runs PostgreSQL and who may connect to it.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use nix::unistd::{Gid, Uid, User};
use tokio::process::Command;

use super::{Error, Result, io_error};

/// Users that exist on most machines and own nothing of worth to others, best first.
const CANDIDATES: [&str; 2] = ["postgres", "nobody"];

#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// Runs PostgreSQL.
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    /// Runs Lares.
    pub(super) invoker: String,
    /// Whether the two differ, which takes root.
    switch: bool,
}

pub(super) async fn choose(config: &lares_config::Cluster) -> Result<Identity> {
    let wanted = config.user.clone();
    // Looking a user up may ask a directory service.
    tokio::task::spawn_blocking(move || choose_blocking(wanted.as_deref()))
        .await
        .map_err(|e| io_error("look up users in", Path::new("/etc/passwd"))(e.into()))?
}

fn choose_blocking(wanted: Option<&str>) -> Result<Identity> {
    let me = Uid::effective();
    let invoker = User::from_uid(me).ok().flatten().ok_or_else(|| Error::NoUser(format!("with id {me}")))?;
    if !me.is_root() {
        return Ok(Identity {
            name: invoker.name.clone(),
            uid: me,
            gid: Gid::effective(),
            invoker: invoker.name,
            switch: false,
        });
    }
    let find = |name: &str| User::from_name(name).ok().flatten();
    let user = match wanted {
        Some(name) => find(name).ok_or_else(|| Error::NoUser(name.to_owned()))?,
        None => CANDIDATES.into_iter().find_map(find).ok_or_else(|| Error::NoUser(CANDIDATES.join(" or ")))?,
    };
    if user.uid.is_root() {
        return Err(Error::UserIsRoot(user.name));
    }
    Ok(Identity { name: user.name, uid: user.uid, gid: user.gid, invoker: invoker.name, switch: true })
}

impl Identity {
    pub(super) fn switch_to(&self) -> Option<(u32, u32)> {
        self.switch.then(|| (self.uid.as_raw(), self.gid.as_raw()))
    }

    /// A program of PostgreSQL, run as the user, with nothing of our environment that could change what it does.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").env("PATH", "/usr/bin:/bin:/run/current-system/sw/bin");
        if let Some(libraries) = std::env::var_os("LD_LIBRARY_PATH") {
            command.env("LD_LIBRARY_PATH", libraries);
        }
        if let Some((uid, gid)) = self.switch_to() {
            // Without supplementary groups: the standard library clears them for root.
            command.uid(uid).gid(gid);
        }
        command.current_dir("/").stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Whether the user can get down to a directory; tried out, because access lists are not in the mode.
    pub(super) async fn check_passable(&self, dir: &Path, postgres: &Path) -> Result<()> {
        let tried = self.command(postgres).arg("--version").current_dir(dir).output().await;
        match tried {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
                let component = self.closed_component(dir).unwrap_or_else(|| dir.to_owned());
                Err(Error::NotPassable { user: self.name.clone(), component })
            }
            Err(e) => Err(io_error("run", postgres)(e)),
            Ok(_) => Ok(()),
        }
    }

    /// The topmost directory whose mode shuts the user out.
    fn closed_component(&self, dir: &Path) -> Option<PathBuf> {
        let real = dir.canonicalize().ok()?;
        let mut components: Vec<&Path> = real.ancestors().collect();
        components.reverse();
        components.into_iter().find(|component| !self.may_pass(component)).map(Path::to_owned)
    }

    fn may_pass(&self, dir: &Path) -> bool {
        let Ok(meta) = dir.metadata() else { return false };
        let bit = if meta.uid() == self.uid.as_raw() {
            0o100
        } else if meta.gid() == self.gid.as_raw() {
            0o010
        } else {
            0o001
        };
        meta.permissions().mode() & bit != 0
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_user_that_does_not_exist_is_named() {
        if !Uid::effective().is_root() {
            return;
        }
        assert!(matches!(choose_blocking(Some("no-such-user")), Err(Error::NoUser(name)) if name == "no-such-user"));
        assert!(matches!(choose_blocking(Some("root")), Err(Error::UserIsRoot(_))));
        assert!(choose_blocking(None).unwrap().switch_to().is_some());
    }

    #[test]
    fn the_topmost_closed_directory_is_the_one_named() {
        let dir = tempfile::tempdir().unwrap();
        let (closed, below) = (dir.path().join("closed"), dir.path().join("closed/below"));
        std::fs::create_dir_all(&below).unwrap();
        for (path, mode) in [(dir.path(), 0o755), (&closed, 0o700), (&below, 0o700)] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        }
        // Somebody who owns nothing here.
        let stranger = Identity {
            name: "stranger".to_owned(),
            uid: Uid::from_raw(64_001),
            gid: Gid::from_raw(64_001),
            invoker: "root".to_owned(),
            switch: true,
        };
        assert_eq!(stranger.closed_component(&below).unwrap(), closed.canonicalize().unwrap());
    }
}
