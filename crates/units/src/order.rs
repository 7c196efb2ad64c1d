//! Who starts after whom: checked once, before anything runs.

use std::collections::HashMap;

use crate::error::SetupError;
use crate::spec::UnitSpec;

/// The relation `after` over all units, by position in the list of specs.
#[derive(Debug)]
pub(crate) struct Order {
    /// Those that each unit waits for.
    pub(crate) after: Vec<Vec<usize>>,
    /// Those that wait for each unit.
    pub(crate) before: Vec<Vec<usize>>,
    /// How many units in a row are left to stop once this one has stopped.
    pub(crate) depth: Vec<u32>,
}

impl Order {
    /// Checks names and cycles.
    pub(crate) fn of(specs: &[UnitSpec]) -> Result<Self, SetupError> {
        let mut position = HashMap::new();
        for (index, spec) in specs.iter().enumerate() {
            if position.insert(&spec.name, index).is_some() {
                return Err(SetupError::Duplicate(spec.name.clone()));
            }
        }
        let mut after = Vec::with_capacity(specs.len());
        let mut before = vec![Vec::new(); specs.len()];
        for (index, spec) in specs.iter().enumerate() {
            let mut waits_for = Vec::with_capacity(spec.after.len());
            for name in &spec.after {
                let Some(&other) = position.get(name) else {
                    return Err(SetupError::UnknownAfter { unit: spec.name.clone(), after: name.clone() });
                };
                if !waits_for.contains(&other) {
                    waits_for.push(other);
                    before[other].push(index);
                }
            }
            after.push(waits_for);
        }
        let mut walk = Walk { specs, after: &after, marks: vec![Mark::New; specs.len()], path: Vec::new() };
        let depth = (0..specs.len()).map(|index| walk.depth(index)).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { after, before, depth })
    }

    /// Everything that the unit waits for, directly or through others, those first that start first.
    pub(crate) fn ancestors(&self, index: usize) -> Vec<usize> {
        let mut found = Vec::new();
        let mut open = self.after[index].clone();
        while let Some(next) = open.pop() {
            if !found.contains(&next) {
                found.push(next);
                open.extend(&self.after[next]);
            }
        }
        found.sort_by_key(|&unit| self.depth[unit]);
        found
    }
}

#[derive(Clone, Copy)]
enum Mark {
    New,
    OnPath,
    Done(u32),
}

struct Walk<'a> {
    specs: &'a [UnitSpec],
    after: &'a [Vec<usize>],
    marks: Vec<Mark>,
    path: Vec<usize>,
}

impl Walk<'_> {
    fn depth(&mut self, index: usize) -> Result<u32, SetupError> {
        match self.marks[index] {
            Mark::Done(depth) => return Ok(depth),
            Mark::OnPath => {
                let start = self.path.iter().position(|&unit| unit == index).unwrap_or(0);
                let circle = self.path[start..].iter().chain([&index]);
                return Err(SetupError::Cycle(circle.map(|&unit| self.specs[unit].name.clone()).collect()));
            }
            Mark::New => {}
        }
        self.marks[index] = Mark::OnPath;
        self.path.push(index);
        let mut depth = 0;
        for &other in &self.after[index] {
            depth = depth.max(self.depth(other)? + 1);
        }
        self.path.pop();
        self.marks[index] = Mark::Done(depth);
        Ok(depth)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::name::UnitName;

    fn specs(edges: &[(&str, &[&str])]) -> Vec<UnitSpec> {
        edges
            .iter()
            .map(|(name, after)| {
                let mut spec = UnitSpec::new(UnitName::new(*name).unwrap(), "true");
                spec.after = after.iter().map(|name| UnitName::new(*name).unwrap()).collect();
                spec
            })
            .collect()
    }

    #[test]
    fn a_circle_is_named() {
        let error = Order::of(&specs(&[("a", &["b"]), ("b", &["c"]), ("c", &["b"])])).unwrap_err();
        assert_eq!(error.to_string(), "these units wait for each other: b after c after b");
        let error = Order::of(&specs(&[("a", &["a"])])).unwrap_err();
        assert_eq!(error.to_string(), "these units wait for each other: a after a");
    }

    #[test]
    fn a_unit_that_does_not_exist_is_named() {
        let error = Order::of(&specs(&[("a", &["ghost"])])).unwrap_err();
        assert_eq!(error.to_string(), "unit a comes after ghost, which does not exist");
        assert!(matches!(Order::of(&specs(&[("a", &[]), ("a", &[])])), Err(SetupError::Duplicate(_))));
    }

    #[test]
    fn depth_is_the_longest_chain_below() {
        let order =
            Order::of(&specs(&[("ralph", &["door", "db"]), ("door", &["db", "llama"]), ("db", &[]), ("llama", &[])]))
                .unwrap();
        assert_eq!(order.depth, [2, 1, 0, 0]);
        assert_eq!(order.before[2], [0, 1]);
        assert_eq!(order.ancestors(0).last(), Some(&1));
        assert_eq!(order.ancestors(0).len(), 3);
    }
}
