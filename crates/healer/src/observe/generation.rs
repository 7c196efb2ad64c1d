//! Generations of the system, as the links of its profile tell: which one there is, which was before, and which units
//! differ.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};

use super::files;

/// What begins so soon after a switch is taken to come from it.
const SOON: SignedDuration = SignedDuration::from_mins(10);
/// Where a generation keeps its units.
const UNITS: &str = "etc/systemd/system";

/// The present generation and the one before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Generations {
    /// Number of the present one.
    pub(super) present: u64,
    /// Number of the one before.
    pub(super) previous: u64,
    /// When the present one came.
    pub(super) since: Timestamp,
    roots: [PathBuf; 2],
}

impl Generations {
    /// Those of a profile such as `/nix/var/nix/profiles/system`. None: there is no such profile, or nothing before its
    /// present generation.
    pub(super) fn of(profile: &Path) -> Option<Self> {
        let target = fs::read_link(profile).ok()?;
        let since = files::modified(&fs::symlink_metadata(profile).ok()?);
        let name = profile.file_name()?.to_str()?;
        let number = |link: &str| -> Option<u64> {
            link.strip_prefix(name)?.strip_prefix('-')?.strip_suffix("-link")?.parse().ok()
        };
        let present = number(target.file_name()?.to_str()?)?;
        let directory = profile.parent()?;
        let root = |generation: u64| directory.join(format!("{name}-{generation}-link"));
        let links = fs::read_dir(directory).ok()?.flatten();
        let numbers: BTreeSet<u64> = links.filter_map(|link| number(link.file_name().to_str()?)).collect();
        // The links of some may lead to what was collected as garbage.
        let previous = numbers.range(..present).rev().copied().find(|generation| root(*generation).is_dir())?;
        Some(Self { present, previous, since, roots: [root(previous), root(present)] })
    }

    /// Whether what began at this moment began with the present generation.
    pub(super) fn began(&self, moment: Timestamp) -> bool {
        let after = moment.duration_since(self.since);
        (SignedDuration::ZERO..=SOON).contains(&after)
    }

    /// Whether a unit is another one than in the generation before, in any of its files. They lie in the store below the
    /// hash of all that they lead to.
    pub(super) fn changed(&self, unit: &str) -> bool {
        let [before, now] = self.definitions(unit);
        before != now
    }

    /// The files that define a unit and are others in the present generation, as `old → new`; what was not there before, or
    /// is gone, is `nothing`.
    pub(super) fn changes(&self, unit: &str) -> Vec<String> {
        let [before, now] = self.definitions(unit);
        let (mut gone, mut new) = (before.difference(&now), now.difference(&before));
        let shown =
            |path: Option<&PathBuf>| path.map_or_else(|| "nothing".to_owned(), |path| path.display().to_string());
        std::iter::from_fn(|| match (gone.next(), new.next()) {
            (None, None) => None,
            (old, new) => Some(format!("{} → {}", shown(old), shown(new))),
        })
        .collect()
    }

    fn definitions(&self, unit: &str) -> [BTreeSet<PathBuf>; 2] {
        self.roots.each_ref().map(|root| definition(&root.join(UNITS), unit))
    }
}

/// The files in the store that define a unit.
fn definition(units: &Path, unit: &str) -> BTreeSet<PathBuf> {
    let template = unit.split_once('@').and_then(|(name, rest)| Some(format!("{name}@.{}", rest.rsplit_once('.')?.1)));
    let mut found = BTreeSet::new();
    for name in [Some(unit), template.as_deref()].into_iter().flatten() {
        found.extend(fs::canonicalize(units.join(name)));
        let parts = fs::read_dir(units.join(format!("{name}.d"))).into_iter().flatten().flatten();
        found.extend(parts.filter_map(|part| fs::canonicalize(part.path()).ok()));
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    /// A profile with a store beside it.
    struct Tree(TempDir);

    impl Tree {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn profile(&self) -> PathBuf {
            self.0.path().join("system")
        }

        /// A generation whose units have these contents; equal contents are one file, as in the store.
        fn generation(&self, number: u64, units: &[(&str, &str)]) {
            let directory = self.0.path().join(format!("closure-{number}")).join(UNITS);
            fs::create_dir_all(&directory).unwrap();
            for (unit, content) in units {
                let stored = self.0.path().join(format!("{content}-unit"));
                fs::write(&stored, content).unwrap();
                let link = directory.join(unit);
                fs::create_dir_all(link.parent().unwrap()).unwrap();
                symlink(stored, link).unwrap();
            }
            symlink(self.0.path().join(format!("closure-{number}")), self.link(number)).unwrap();
        }

        fn link(&self, number: u64) -> PathBuf {
            self.0.path().join(format!("system-{number}-link"))
        }

        fn switch(&self, number: u64) -> Option<Generations> {
            let _ = fs::remove_file(self.profile());
            symlink(format!("system-{number}-link"), self.profile()).unwrap();
            Generations::of(&self.profile())
        }
    }

    #[test]
    fn the_generation_before_is_the_highest_that_is_there() {
        let tree = Tree::new();
        assert_eq!(Generations::of(&tree.profile()), None);
        for number in [2, 9, 10, 11] {
            tree.generation(number, &[]);
        }
        // The system went back, and later generations stay.
        let back = tree.switch(10).unwrap();
        assert_eq!((back.present, back.previous), (10, 9));
        fs::remove_file(tree.link(9)).unwrap();
        symlink(tree.0.path().join("collected"), tree.link(9)).unwrap();
        assert_eq!(tree.switch(10).unwrap().previous, 2);
        assert_eq!(tree.switch(2), None);
        assert_eq!(tree.switch(12).map(|found| found.previous), Some(11));
        fs::remove_file(tree.profile()).unwrap();
        symlink("somewhere", tree.profile()).unwrap();
        assert_eq!(Generations::of(&tree.profile()), None);
    }

    #[test]
    fn a_switch_is_blamed_for_what_comes_soon_after() {
        let tree = Tree::new();
        tree.generation(1, &[]);
        tree.generation(2, &[]);
        let found = tree.switch(2).unwrap();
        let after = |seconds| found.began(found.since + SignedDuration::from_secs(seconds));
        assert_eq!([-1, 0, 5, 600, 601].map(after), [false, true, true, true, false]);
        assert!(found.since.duration_since(Timestamp::now()).abs() < SignedDuration::from_secs(60));
    }

    #[test]
    fn changed_units_are_those_with_another_file_in_the_store() {
        let tree = Tree::new();
        tree.generation(
            1,
            &[
                ("same.service", "a"),
                ("other.service", "b"),
                ("gone.service", "c"),
                ("part.service.d/overrides.conf", "d"),
                ("worker@.service", "e"),
            ],
        );
        tree.generation(
            2,
            &[
                ("same.service", "a"),
                ("other.service", "b2"),
                ("new.service", "c"),
                ("part.service.d/overrides.conf", "d2"),
                ("worker@.service", "e2"),
            ],
        );
        let found = tree.switch(2).unwrap();
        let changed = |unit| found.changed(unit);
        assert_eq!(["same.service", "of-no-generation.service"].map(changed), [false; 2]);
        assert_eq!(
            ["other.service", "gone.service", "new.service", "part.service", "worker@1.service"].map(changed),
            [true; 5]
        );
    }
}
