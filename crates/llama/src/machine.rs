//! What this process may use of the machine: cores and memory, as affinity, cgroups and the kernel tell.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

/// Physical cores this process may use, at least 1: hyper-threads of one core count once, and a cgroup's CPU quota
/// bounds the number. Blocks briefly.
pub fn physical_cores() -> u32 {
    let allowed = allowed_cpus();
    let cores = distinct_cores(Path::new("/sys/devices/system/cpu"), &allowed).max(1);
    match cpu_quota(Path::new("/")) {
        Some(quota) => cores.min(quota),
        None => cores,
    }
}

fn allowed_cpus() -> Vec<usize> {
    match sched_getaffinity(Pid::from_raw(0)) {
        Ok(set) => (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect(),
        Err(_) => (0..std::thread::available_parallelism().map_or(1, std::num::NonZero::get)).collect(),
    }
}

fn distinct_cores(sys: &Path, cpus: &[usize]) -> u32 {
    let core = |cpu: &usize| {
        let siblings = sys.join(format!("cpu{cpu}/topology/thread_siblings_list"));
        std::fs::read_to_string(siblings).map_or_else(|_| cpu.to_string(), |list| list.trim().to_owned())
    };
    let distinct: BTreeSet<String> = cpus.iter().map(core).collect();
    u32::try_from(distinct.len()).unwrap_or(u32::MAX)
}

/// CPUs' worth of time the cgroup grants, rounded up.
fn cpu_quota(root: &Path) -> Option<u32> {
    let from = |quota: &str, period: &str| {
        let (quota, period) = (quota.parse::<u64>().ok()?, period.parse::<u64>().ok()?);
        u32::try_from(quota.div_ceil(period.max(1))).ok()
    };
    let unified = cgroup_dirs(root, "").into_iter().filter_map(|dir| {
        let text = std::fs::read_to_string(dir.join("cpu.max")).ok()?;
        let (quota, period) = text.trim().split_once(' ')?;
        from(quota, period)
    });
    let legacy = cgroup_dirs(root, "cpu").into_iter().filter_map(|dir| {
        let quota = std::fs::read_to_string(dir.join("cpu.cfs_quota_us")).ok()?;
        let period = std::fs::read_to_string(dir.join("cpu.cfs_period_us")).ok()?;
        from(quota.trim(), period.trim())
    });
    unified.chain(legacy).min()
}

/// Directories of this process's cgroup and its ancestors, for a v1 controller or (empty name) for v2.
fn cgroup_dirs(root: &Path, controller: &str) -> Vec<PathBuf> {
    let text = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let Some(path) = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let controllers = fields.next()?;
        let path = fields.next()?;
        controllers.split(',').any(|c| c == controller).then_some(path.trim_start_matches('/'))
    }) else {
        return Vec::new();
    };
    let mount = root.join("sys/fs/cgroup").join(controller);
    let own = mount.join(path);
    own.ancestors().take_while(|dir| dir.starts_with(&mount)).map(Path::to_owned).collect()
}

/// Memory that can be had now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Bytes.
    pub bytes: u64,
    /// Who says so, for messages.
    pub source: String,
}

/// Memory this process can get without pushing others out: the kernel's estimate, or what is left of the tightest
/// cgroup around it. `None` where neither can be read. Blocks briefly.
pub fn available_memory() -> Option<Memory> {
    available_memory_in(Path::new("/"))
}

fn available_memory_in(root: &Path) -> Option<Memory> {
    let kernel = std::fs::read_to_string(root.join("proc/meminfo")).ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Memory { bytes: kib << 10, source: "MemAvailable of /proc/meminfo".to_owned() })
    });
    let v2 = cgroup_dirs(root, "")
        .into_iter()
        .filter_map(|dir| left_of(&dir, "memory.max", "memory.current", "inactive_file"));
    let v1 = cgroup_dirs(root, "memory")
        .into_iter()
        .filter_map(|dir| left_of(&dir, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"));
    kernel.into_iter().chain(v2).chain(v1).min_by_key(|memory| memory.bytes)
}

/// What a cgroup's limit leaves: page cache that nobody uses can be dropped, so it counts as free.
fn left_of(dir: &Path, limit: &str, usage: &str, cache: &str) -> Option<Memory> {
    let number = |name: &str| std::fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok();
    let limit_bytes = number(limit)?;
    let stat = std::fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let droppable = stat.lines().find_map(|line| line.strip_prefix(cache)?.trim().parse::<u64>().ok()).unwrap_or(0);
    let used = number(usage).unwrap_or(0).saturating_sub(droppable);
    Some(Memory {
        bytes: limit_bytes.saturating_sub(used),
        source: format!("limit of the cgroup ({})", dir.join(limit).display()),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }

    #[test]
    fn hyper_threads_of_one_core_count_once() {
        let dir = tempfile::tempdir().unwrap();
        for (cpu, siblings) in [(0, "0,2"), (1, "1,3"), (2, "0,2"), (3, "1,3")] {
            write(dir.path(), &format!("cpu{cpu}/topology/thread_siblings_list"), siblings);
        }
        assert_eq!(distinct_cores(dir.path(), &[0, 1, 2, 3]), 2);
        assert_eq!(distinct_cores(dir.path(), &[0, 2]), 1);
        assert_eq!(distinct_cores(dir.path(), &[7, 8]), 2);
        assert!(physical_cores() >= 1);
    }

    #[test]
    fn the_tightest_limit_around_the_process_counts() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        assert_eq!(available_memory_in(root), None);
        write(root, "proc/meminfo", "MemTotal: 100 kB\nMemAvailable:    4096 kB\n");
        assert_eq!(available_memory_in(root).unwrap().bytes, 4 << 20);
        write(root, "proc/self/cgroup", "4:memory:/legacy\n0::/a/b\n");
        write(root, "sys/fs/cgroup/a/b/memory.max", "max\n");
        assert_eq!(available_memory_in(root).unwrap().bytes, 4 << 20);
        write(root, "sys/fs/cgroup/a/memory.max", "3000000\n");
        write(root, "sys/fs/cgroup/a/memory.current", "1500000\n");
        write(root, "sys/fs/cgroup/a/memory.stat", "anon 5\ninactive_file 500000\n");
        let memory = available_memory_in(root).unwrap();
        assert_eq!(memory.bytes, 2_000_000);
        assert!(memory.source.contains("a/memory.max"));
        write(root, "sys/fs/cgroup/memory/legacy/memory.limit_in_bytes", "1000\n");
        assert_eq!(available_memory_in(root).unwrap().bytes, 1000);
    }

    #[test]
    fn a_cpu_quota_is_rounded_up() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), "proc/self/cgroup", "0::/a\n");
        write(dir.path(), "sys/fs/cgroup/a/cpu.max", "max 100000\n");
        assert_eq!(cpu_quota(dir.path()), None);
        write(dir.path(), "sys/fs/cgroup/a/cpu.max", "150000 100000\n");
        assert_eq!(cpu_quota(dir.path()), Some(2));
    }
}
