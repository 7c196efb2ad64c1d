//! Who needs whom: the order of starting, and who must not be acted on at the same time.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// These units in the order in which they have to come up. What belongs to a circle comes in some fixed order.
pub(crate) fn in_order<'a>(
    units: impl IntoIterator<Item = &'a str>,
    needs: impl Fn(&str) -> &'a [String],
) -> Vec<String> {
    fn visit<'a>(
        unit: &'a str,
        needs: &dyn Fn(&str) -> &'a [String],
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) {
        if seen.insert(unit) {
            for other in needs(unit) {
                visit(other, needs, seen, order);
            }
            order.push(unit);
        }
    }
    let wanted: BTreeSet<&str> = units.into_iter().collect();
    let (mut seen, mut order) = (BTreeSet::new(), Vec::new());
    for unit in &wanted {
        visit(unit, &needs, &mut seen, &mut order);
    }
    order.into_iter().filter(|unit| wanted.contains(unit)).map(str::to_owned).collect()
}

/// Who needs whom, over all units that are watched.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs(BTreeMap<String, Vec<String>>);

impl Needs {
    /// Sets what a unit needs directly.
    pub fn set(&mut self, unit: &str, needs: Vec<String>) {
        self.0.insert(unit.to_owned(), needs);
    }

    /// Whether one of two units needs the other, directly or through others, or both are the same.
    pub fn related(&self, one: &str, other: &str) -> bool {
        self.reaches(one, other) || self.reaches(other, one)
    }

    /// Whether one needs the other, directly or through others, or both are the same.
    pub(crate) fn reaches(&self, from: &str, to: &str) -> bool {
        let (mut open, mut seen) = (vec![from], BTreeSet::new());
        while let Some(unit) = open.pop() {
            if unit == to {
                return true;
            }
            if seen.insert(unit) {
                open.extend(self.0.get(unit).into_iter().flatten().map(String::as_str));
            }
        }
        false
    }
}

/// What several incidents have in common.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "shared", rename_all = "snake_case")]
pub enum Shared {
    /// They need this unit, which is down.
    Dependency {
        /// The one that others need first.
        unit: String,
    },
    /// They began with this system generation.
    Generation {
        /// Its number.
        generation: u64,
    },
    /// They fill the same disk.
    Disk {
        /// Where it is mounted.
        mount: String,
    },
}

impl crate::diagnose::Cause {
    /// What this cause has in common with those of other units, if it is of that kind.
    pub fn shared(&self) -> Option<Shared> {
        Some(match self {
            Self::DependencyDown { units, .. } => Shared::Dependency { unit: units.first()?.clone() },
            Self::DependencyBusy { unit } => Shared::Dependency { unit: unit.clone() },
            Self::NewGeneration { generation, .. } => Shared::Generation { generation: *generation },
            Self::DiskFull { mount, .. } => Shared::Disk { mount: mount.clone() },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn graph(edges: &[(&str, &[&str])]) -> Needs {
        let mut needs = Needs::default();
        for (unit, of) in edges {
            needs.set(unit, of.iter().map(|s| (*s).to_owned()).collect());
        }
        needs
    }

    #[test]
    fn what_others_need_comes_first_also_through_units_that_are_not_asked_for() {
        let needs = graph(&[("app", &["cache", "api"]), ("api", &["db"]), ("cache", &["db"]), ("db", &["disk"])]);
        let of = |unit: &str| needs.0.get(unit).map_or(&[][..], Vec::as_slice);
        assert_eq!(in_order(["app", "db", "disk", "cache"], of), ["disk", "db", "cache", "app"]);
        assert_eq!(in_order(["app", "disk"], of), ["disk", "app"]);
    }

    #[test]
    fn a_circle_has_an_order_too() {
        let needs = graph(&[("a", &["b"]), ("b", &["c"]), ("c", &["a"])]);
        let of = |unit: &str| needs.0.get(unit).map_or(&[][..], Vec::as_slice);
        assert_eq!(in_order(["a", "b", "c"], of), ["c", "b", "a"]);
        assert!(needs.related("a", "c") && needs.related("c", "a"));
    }

    #[test]
    fn siblings_are_not_related() {
        let needs = graph(&[("a", &["db"]), ("b", &["db"]), ("db", &[])]);
        assert!(needs.related("a", "db") && needs.related("db", "b"));
        assert!(!needs.related("a", "b"));
    }

    proptest! {
        #[test]
        fn every_unit_comes_once_and_after_what_it_needs(edges in prop::collection::vec((0_usize..12, 0_usize..12), 0..40)) {
            // From larger to smaller only: no circles.
            let name = |n: usize| format!("u{n:02}");
            let mut all: Vec<Vec<String>> = vec![Vec::new(); 12];
            for (a, b) in edges {
                if a > b {
                    all[a].push(name(b));
                }
            }
            let names: Vec<String> = (0..12).map(name).collect();
            let of = |unit: &str| names.iter().position(|n| n == unit).map_or(&[][..], |n| all[n].as_slice());
            let order = in_order(names.iter().map(String::as_str), of);
            prop_assert_eq!(order.len(), 12);
            let place = |unit: &str| order.iter().position(|n| n == unit);
            for unit in &names {
                for needed in of(unit) {
                    prop_assert!(place(needed) < place(unit));
                }
            }
        }
    }
}
