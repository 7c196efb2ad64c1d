//! System generations of NixOS, and the way back to one.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Obstacle;

/// Root's profiles and programs on NixOS.
#[derive(Debug, Clone)]
pub(super) struct Profiles {
    /// Directory of the links `system` and `system-N-link`.
    directory: PathBuf,
    /// The program that changes profiles.
    nix_env: PathBuf,
    /// Who owns all of it.
    owner: u32,
}

impl Default for Profiles {
    fn default() -> Self {
        Self {
            directory: "/nix/var/nix/profiles".into(),
            nix_env: "/run/current-system/sw/bin/nix-env".into(),
            owner: 0,
        }
    }
}

impl Profiles {
    /// The commands that switch to an earlier generation, one after the other. The second one is that generation's own
    /// program, not what the profile happens to name then.
    pub(super) fn way_back(&self, to: u64) -> Result<[Vec<String>; 2], Obstacle> {
        let refuse = |reason: String| Err(Obstacle::Refused(reason));
        let shown = self.directory.display();
        let profile = self.directory.join("system");
        match fs::metadata(&self.directory) {
            Ok(found) if found.uid() == self.owner && found.mode() & 0o022 == 0 => {}
            Ok(_) => return refuse(format!("{shown} can be written by others than root")),
            Err(error) => return refuse(format!("there are no system generations: {shown}: {error}")),
        }
        let present = match fs::read_link(&profile) {
            Ok(target) => number(&target),
            Err(error) => return refuse(format!("there are no system generations: {}: {error}", profile.display())),
        };
        let Some(present) = present else {
            return refuse(format!("{} names no generation", profile.display()));
        };
        if to >= present {
            return refuse(format!("generation {to} is not earlier than the present one, {present}"));
        }
        let link = self.directory.join(format!("system-{to}-link"));
        let owned = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.uid() == self.owner);
        if !owned(&link) || !fs::symlink_metadata(&link).is_ok_and(|found| found.is_symlink()) {
            return refuse(format!("there is no generation {to}: {} is no link of root's", link.display()));
        }
        let switch = link.join("bin/switch-to-configuration");
        for program in [&switch, &self.nix_env] {
            let runs = |path: &PathBuf| {
                fs::metadata(path)
                    .is_ok_and(|f| f.is_file() && f.uid() == self.owner && f.permissions().mode() & 0o111 != 0)
            };
            if !runs(program) {
                return refuse(format!("{} is no program of root's", program.display()));
            }
        }
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok([
            vec![text(&self.nix_env), "-p".into(), text(&profile), "--switch-generation".into(), to.to_string()],
            vec![text(&switch), "switch".into()],
        ])
    }
}

/// N of `system-N-link` beside it.
fn number(target: &Path) -> Option<u64> {
    target.to_str()?.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::Permissions;
    use std::os::unix::fs::symlink;

    use super::*;

    fn program(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "#!/bin/sh\n").unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    /// Generations 40, 41 and 42, the last the present one; 40 has no program.
    fn machine() -> (tempfile::TempDir, Profiles) {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        program(&at("bin/nix-env"));
        fs::create_dir(at("profiles")).unwrap();
        fs::set_permissions(at("profiles"), Permissions::from_mode(0o755)).unwrap();
        for generation in [40, 41, 42] {
            let store = at(&format!("store/{generation}"));
            fs::create_dir_all(&store).unwrap();
            if generation > 40 {
                program(&store.join("bin/switch-to-configuration"));
            }
            symlink(store, at(&format!("profiles/system-{generation}-link"))).unwrap();
        }
        symlink("system-42-link", at("profiles/system")).unwrap();
        let owner = fs::metadata(root.path()).unwrap().uid();
        let profiles = Profiles { directory: at("profiles"), nix_env: at("bin/nix-env"), owner };
        (root, profiles)
    }

    fn refused(outcome: Result<[Vec<String>; 2], Obstacle>, words: &str) {
        match outcome {
            Err(Obstacle::Refused(reason)) if reason.contains(words) => {}
            other => panic!("wanted a refusal with {words:?}, got {other:?}"),
        }
    }

    #[test]
    fn the_way_back_is_that_generation_own_program() {
        let (root, profiles) = machine();
        let at = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        let [set, switch] = profiles.way_back(41).unwrap();
        assert_eq!(
            set,
            [at("bin/nix-env"), "-p".into(), at("profiles/system"), "--switch-generation".into(), "41".into()]
        );
        assert_eq!(switch, [at("profiles/system-41-link/bin/switch-to-configuration"), "switch".into()]);
    }

    #[test]
    fn only_earlier_generations_of_root_are_gone_back_to() {
        let (root, profiles) = machine();
        for not_earlier in [42, 43, u64::MAX] {
            refused(profiles.way_back(not_earlier), "not earlier");
        }
        refused(profiles.way_back(7), "no generation 7");
        refused(profiles.way_back(40), "no program");
        fs::create_dir(root.path().join("profiles/system-8-link")).unwrap();
        refused(profiles.way_back(8), "no link of root's");
        refused(Profiles { owner: profiles.owner + 1, ..profiles.clone() }.way_back(41), "by others");
        refused(Profiles { directory: root.path().join("none"), ..profiles.clone() }.way_back(41), "no system");
        refused(Profiles { nix_env: root.path().join("none"), ..profiles.clone() }.way_back(41), "no program");
        fs::set_permissions(root.path().join("profiles"), Permissions::from_mode(0o777)).unwrap();
        refused(profiles.way_back(41), "by others");
    }

    #[test]
    fn a_profile_that_leads_elsewhere_is_not_followed() {
        for odd in ["/tmp/system-43-link", "../system-43-link", "system-x-link", "system"] {
            let (root, profiles) = machine();
            let profile = root.path().join("profiles/system");
            fs::remove_file(&profile).unwrap();
            symlink(odd, &profile).unwrap();
            refused(profiles.way_back(41), "names no generation");
        }
    }
}
