//! What a unit's processes use, read from `/proc`.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Ticks a second in which `/proc/PID/stat` counts processor time. A constant of the kernel's interface on every
/// architecture that Lares runs on, whatever the kernel's own tick.
const TICKS_PER_SECOND: u64 = 100;

/// What all processes of a unit use together: its process group and whatever descends from its main process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Processor time since the current main process started, with that of children that have ended. Milliseconds.
    pub cpu_ms: u64,
    /// Resident memory in bytes; memory that several processes share counts once for each.
    pub rss_bytes: u64,
    /// Threads.
    pub threads: u64,
    /// Processes.
    pub processes: u64,
}

/// One line of `/proc/PID/stat`, as far as it is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) pid: u32,
    pub(crate) state: char,
    pub(crate) parent: u32,
    pub(crate) group: u32,
    cpu_ticks: u64,
}

impl Stat {
    /// Reads the text of `/proc/PID/stat`. The program's name in it is in brackets and may itself hold brackets, spaces and line ends.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (pid, rest) = text.split_once(" (")?;
        let (_, rest) = rest.rsplit_once(") ")?;
        let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
        let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
        let mut state = fields.first()?.chars();
        let (Some(letter), None) = (state.next(), state.next()) else { return None };
        // Counted from the state: 11 utime, 12 stime, 13 cutime, 14 cstime. The last two are signed in the kernel.
        let cpu_ticks = (11..=14).try_fold(0_u64, |sum, index| Some(sum.saturating_add(number(index)?)))?;
        Some(Self {
            pid: pid.parse().ok()?,
            state: letter,
            parent: number(1)?.try_into().ok()?,
            group: number(2)?.try_into().ok()?,
            cpu_ticks,
        })
    }

    /// Whether it still holds memory, files and ports: a zombie does not.
    pub(crate) fn is_running(&self) -> bool {
        !matches!(self.state, 'Z' | 'X' | 'x')
    }
}

/// Resident bytes and threads out of the text of `/proc/PID/status`. A process on its way out has no memory lines.
fn parse_status(text: &str) -> (u64, u64) {
    let field = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
            .and_then(|value| value.split_ascii_whitespace().next()?.parse::<u64>().ok())
            .unwrap_or(0)
    };
    (field("VmRSS").saturating_mul(1024), field("Threads"))
}

/// Every process of the machine that can be seen. Blocks for some milliseconds.
pub(crate) fn processes() -> Vec<Stat> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())))
        .filter_map(|entry| Stat::parse(&read(&entry.path().join("stat"))?))
        .collect()
}

fn read(path: &Path) -> Option<String> {
    Some(String::from_utf8_lossy(&fs::read(path).ok()?).into_owned())
}

/// What each of these main processes and all that belongs to it use. Blocks for some milliseconds.
pub(crate) fn of(mains: &[u32]) -> HashMap<u32, Usage> {
    let processes = processes();
    mains.iter().filter_map(|&main| Some((main, add_up(&family(main, &processes))?))).collect()
}

fn add_up(family: &[Stat]) -> Option<Usage> {
    if family.is_empty() {
        return None;
    }
    let mut usage = Usage::default();
    for stat in family {
        let status = read(Path::new(&format!("/proc/{}/status", stat.pid))).unwrap_or_default();
        let (rss, threads) = parse_status(&status);
        usage.cpu_ms = usage.cpu_ms.saturating_add(stat.cpu_ticks.saturating_mul(1000 / TICKS_PER_SECOND));
        usage.rss_bytes = usage.rss_bytes.saturating_add(rss);
        usage.threads = usage.threads.saturating_add(threads);
        usage.processes += 1;
    }
    Some(usage)
}

/// The process group of `main` and all its descendants.
fn family(main: u32, processes: &[Stat]) -> Vec<Stat> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    for stat in processes {
        children.entry(stat.parent).or_default().push(stat.pid);
    }
    let mut members = HashSet::new();
    let mut open: Vec<u32> =
        processes.iter().filter(|stat| stat.group == main || stat.pid == main).map(|stat| stat.pid).collect();
    while let Some(pid) = open.pop() {
        if members.insert(pid) {
            open.extend(children.get(&pid).into_iter().flatten());
        }
    }
    processes.iter().filter(|stat| members.contains(&stat.pid) && stat.is_running()).copied().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn line(pid: u32, name: &str, parent: u32, group: u32) -> String {
        format!(
            "{pid} ({name}) S {parent} {group} 900 0 -1 4194560 1 0 0 0 10 20 3 4 20 0 5 0 123 1000 250 18446744073709551615\n"
        )
    }

    #[test]
    fn a_name_full_of_brackets_does_not_shift_the_fields() {
        let stat = Stat::parse(&line(42, "a) S (b \n) Z", 7, 40)).unwrap();
        assert_eq!(stat, Stat { pid: 42, state: 'S', parent: 7, group: 40, cpu_ticks: 37 });
    }

    #[test]
    fn status_gives_memory_and_threads() {
        assert_eq!(parse_status("Name:\tx\nVmRSS:\t    2048 kB\nThreads:\t7\n"), (2048 * 1024, 7));
        assert_eq!(parse_status("Name:\tVmRSS: 1\nThreads:\t1\n"), (0, 1));
    }

    #[test]
    fn a_unit_is_its_group_and_its_descendants() {
        let stats: Vec<Stat> = [(10, 1, 10), (11, 10, 11), (12, 11, 11), (13, 1, 10), (14, 1, 14)]
            .iter()
            .map(|&(pid, parent, group)| Stat::parse(&line(pid, "x", parent, group)).unwrap())
            .collect();
        let pids: Vec<u32> = family(10, &stats).iter().map(|stat| stat.pid).collect();
        assert_eq!(pids, [10, 11, 12, 13]);
    }

    #[test]
    fn the_own_process_uses_something() {
        let me = std::process::id();
        let usage = of(&[me])[&me];
        assert!(usage.rss_bytes > 100_000 && usage.threads >= 1 && usage.processes >= 1, "{usage:?}");
        assert!(of(&[u32::MAX]).is_empty());
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}|[0-9]{1,3} \\([ -~\\n]{0,20}\\) [RSZ]( -?[0-9]{1,25}){0,30}") {
            let _ = Stat::parse(&text);
            let _ = parse_status(&text);
        }

        #[test]
        fn what_is_written_is_read_back(pid: u32, parent: u32, group: u32, name in "\\PC{0,16}") {
            let stat = Stat::parse(&line(pid, &name, parent, group)).unwrap();
            prop_assert_eq!((stat.pid, stat.parent, stat.group, stat.cpu_ticks), (pid, parent, group, 37));
        }

        #[test]
        fn a_circle_of_parents_ends(parents in proptest::collection::vec(0_u32..20, 20)) {
            let stats: Vec<Stat> = parents
                .iter()
                .zip(0_u32..)
                .map(|(&parent, pid)| Stat { pid, state: 'S', parent, group: pid, cpu_ticks: 0 })
                .collect();
            prop_assert!(family(3, &stats).iter().any(|stat| stat.pid == 3));
        }
    }
}
