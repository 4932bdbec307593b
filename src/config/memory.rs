//! The memory that this process may still take.
//!
//! The smallest of what the host has, what the control groups of a container leave, and what the limits of the process
//! allow. All of it is read from files, so tests read it from a tree of their own.

use std::fs;
use std::path::{Path, PathBuf};

/// The share of the address space that is left for data: thread stacks and the arenas of the allocator reserve much
/// more than they use.
const ADDRESS_SPACE_SHARE: u64 = 2;

/// The memory that this process may still take, in bytes, if the system tells.
pub fn available_bytes() -> Option<u64> {
    available_under(Path::new("/"))
}

/// Size in bytes from the line of a procfs file that begins with `label`, if there is one.
pub fn procfs_bytes(file: impl AsRef<Path>, label: &str) -> Option<usize> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(label))?;
    value.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1 << 10)
}

/// Resident memory of this process in bytes, where the system reports it.
pub fn resident_bytes() -> Option<usize> {
    procfs_bytes("/proc/self/status", "VmRSS:")
}

/// The memory available to the process that the files below `root` describe.
fn available_under(root: &Path) -> Option<u64> {
    let host = procfs_bytes(root.join("proc/meminfo"), "MemAvailable:").map(|bytes| bytes as u64);
    host.into_iter().chain(control_groups(root)).chain(process_limits(root)).min()
}

/// The bytes that the limits of the process leave of its address space and of its data.
fn process_limits(root: &Path) -> Vec<u64> {
    let limits = fs::read_to_string(root.join("proc/self/limits")).unwrap_or_default();
    let left = |limit: &str, usage: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(limit))?;
        // The soft limit comes first; it may be `unlimited`.
        let bytes: u64 = line.split_whitespace().next()?.parse().ok()?;
        let used = procfs_bytes(root.join("proc/self/status"), usage).unwrap_or(0) as u64;
        Some(bytes.saturating_sub(used) / ADDRESS_SPACE_SHARE)
    };
    [left("Max address space", "VmSize:"), left("Max data size", "VmData:")].into_iter().flatten().collect()
}

/// A version of the kernel's control groups: the names of its files.
struct CgroupVersion {
    /// The file systems' type in `mountinfo`.
    file_system: &'static str,
    /// Limits, of which the smallest counts; a file without a number sets none.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Lines of `memory.stat` with page cache, which the kernel takes back when memory is short.
    page_cache: [&'static str; 2],
}

const VERSIONS: [CgroupVersion; 2] = [
    CgroupVersion {
        file_system: "cgroup2",
        limits: &["memory.max", "memory.high"],
        usage: "memory.current",
        page_cache: ["inactive_file ", "active_file "],
    },
    CgroupVersion {
        file_system: "cgroup",
        limits: &["memory.limit_in_bytes"],
        usage: "memory.usage_in_bytes",
        page_cache: ["total_inactive_file ", "total_active_file "],
    },
];

/// The bytes that each limited control group of the process leaves: its own ones and all above them.
fn control_groups(root: &Path) -> Vec<u64> {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let mut left = Vec::new();
    for version in &VERSIONS {
        let Some(group) = groups.lines().find_map(|line| version.group(line)) else { continue };
        for (mounted, mount_point) in mounts.lines().filter_map(|line| version.mount(line)) {
            let top = root.join(mount_point.trim_start_matches('/'));
            left.extend(folders(&top, mounted, group).iter().filter_map(|folder| version.left(folder)));
        }
    }
    left
}

/// The folders of a group and of all groups above it, in a file system whose top is the group `mounted`. In a
/// container the group's path may be that on the host, of which the container sees the end only, or nothing.
fn folders(top: &Path, mounted: &str, group: &str) -> Vec<PathBuf> {
    let below = match mounted {
        "/" => Some(group),
        mounted => group.strip_prefix(mounted).filter(|rest| rest.is_empty() || rest.starts_with('/')),
    };
    let mut folder = top.to_owned();
    let mut folders = vec![folder.clone()];
    for name in below.unwrap_or_default().split('/').filter(|name| !name.is_empty()) {
        if name == ".." {
            // The process is outside of what the container sees.
            return vec![top.to_owned()];
        }
        folder.push(name);
        folders.push(folder.clone());
    }
    folders
}

impl CgroupVersion {
    /// The path of the process's group, from a line of `/proc/self/cgroup`: `id:controllers:path`.
    fn group<'a>(&self, line: &'a str) -> Option<&'a str> {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let is_own = match self.file_system {
            "cgroup2" => controllers.is_empty(),
            _ => controllers.split(',').any(|controller| controller == "memory"),
        };
        is_own.then_some(path)
    }

    /// The group at the top of a mounted file system, and where it is mounted, from a line of `mountinfo`.
    fn mount<'a>(&self, line: &'a str) -> Option<(&'a str, &'a str)> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(3);
        let (mounted, mount_point) = (mount.next()?, mount.next()?);
        let mut fields = file_system.split(' ');
        let is_own = fields.next()? == self.file_system
            && (self.file_system == "cgroup2" || fields.nth(1)?.split(',').any(|option| option == "memory"));
        is_own.then_some((mounted, mount_point))
    }

    /// The bytes that a group leaves, if it has a limit.
    fn left(&self, folder: &Path) -> Option<u64> {
        let number = |name: &str| fs::read_to_string(folder.join(name)).ok()?.trim().parse::<u64>().ok();
        let limit = self.limits.iter().filter_map(|name| number(name)).min()?;
        let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let of_stat =
            |label: &str| stat.lines().find_map(|line| line.strip_prefix(label)?.parse::<u64>().ok());
        let page_cache: u64 = self.page_cache.iter().filter_map(|label| of_stat(label)).sum();
        let used = number(self.usage).unwrap_or(0).saturating_sub(page_cache);
        Some(limit.saturating_sub(used))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// A tree of files, each given by its path and contents.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn available(files: &[(&str, &str)]) -> Option<u64> {
        available_under(tree(files).path())
    }

    const HOST: (&str, &str) =
        ("proc/meminfo", "MemTotal:       33554432 kB\nMemFree: 1 kB\nMemAvailable:   16777216 kB\n");
    const V2_MOUNT: (&str, &str) = (
        "proc/self/mountinfo",
        "24 30 0:22 / /proc rw - proc proc rw\n30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
    );

    #[test]
    fn without_limits_it_is_what_the_host_has() {
        assert_eq!(available(&[]), None);
        assert_eq!(available(&[HOST]), Some(16 * GIB));
        let unlimited = [
            HOST,
            V2_MOUNT,
            ("proc/self/cgroup", "0::/\n"),
            (
                "proc/self/limits",
                "Max address space         unlimited            unlimited            bytes\n",
            ),
            ("sys/fs/cgroup/memory.max", "max\n"),
            ("sys/fs/cgroup/memory.current", "5000\n"),
        ];
        assert_eq!(available(&unlimited), Some(16 * GIB));
    }

    #[test]
    fn a_container_of_version_2_leaves_its_limit_less_what_is_in_use() {
        let container = [
            HOST,
            V2_MOUNT,
            ("proc/self/cgroup", "0::/\n"),
            ("sys/fs/cgroup/memory.max", "536870912\n"),
            ("sys/fs/cgroup/memory.high", "max\n"),
            ("sys/fs/cgroup/memory.current", "136870912\n"),
            ("sys/fs/cgroup/memory.stat", "anon 1\nfile 99\ninactive_file 30000000\nactive_file 6870912\n"),
        ];
        assert_eq!(available(&container), Some(536_870_912 - 100_000_000));
        let throttled = [("sys/fs/cgroup/memory.high", "400000000\n")];
        assert_eq!(available(&[&container[..], &throttled].concat()), Some(300_000_000));
        let full = [("sys/fs/cgroup/memory.current", "999999999\n")];
        assert_eq!(available(&[&container[..], &full].concat()), Some(0));
    }

    #[test]
    fn the_groups_above_the_own_one_limit_it_too() {
        let service = [
            HOST,
            V2_MOUNT,
            ("proc/self/cgroup", "0::/system.slice/otron.service\n"),
            ("sys/fs/cgroup/system.slice/otron.service/memory.max", "max\n"),
            ("sys/fs/cgroup/system.slice/memory.max", "3221225472\n"),
            ("sys/fs/cgroup/system.slice/memory.current", "1073741824\n"),
        ];
        assert_eq!(available(&service), Some(2 * GIB));
        let own = [("sys/fs/cgroup/system.slice/otron.service/memory.max", "1073741824\n")];
        assert_eq!(available(&[&service[..], &own].concat()), Some(GIB));
        // A path that leaves the container's view counts as the top of that view.
        let outside = [("proc/self/cgroup", "0::/../../other\n"), ("sys/fs/cgroup/memory.max", "1000\n")];
        assert_eq!(available(&[&service[..], &outside].concat()), Some(1000));
    }

    #[test]
    fn version_1_is_read_with_the_path_of_the_host_and_of_the_container() {
        let mount = |mounted: &str| {
            format!(
                "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                 33 31 0:30 {mounted} /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 35 31 0:32 {mounted} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            )
        };
        let groups = ("proc/self/cgroup", "9:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n");
        let (host, container) = (mount("/"), mount("/docker/abc"));
        let files = |folder: &'static str| {
            ["limit_in_bytes", "usage_in_bytes", "stat"]
                .map(|name| format!("sys/fs/cgroup/memory/{folder}memory.{name}"))
        };
        for (mounts, [limit, usage, stat]) in [(&host, files("docker/abc/")), (&container, files(""))] {
            let found = available(&[
                HOST,
                ("proc/self/mountinfo", mounts),
                groups,
                (&limit, "2147483648\n"),
                (&usage, "1200000000\n"),
                (
                    &stat,
                    "cache 9\ninactive_file 7\ntotal_inactive_file 100000000\ntotal_active_file 100000000\n",
                ),
            ]);
            assert_eq!(found, Some(2_147_483_648 - 1_000_000_000), "{mounts}");
        }
        // The number that stands for no limit.
        let [limit, ..] = files("docker/abc/");
        let unlimited = [HOST, ("proc/self/mountinfo", &host), groups, (&limit, "9223372036854771712\n")];
        assert_eq!(available(&unlimited), Some(16 * GIB));
    }

    #[test]
    fn the_limits_of_the_process_count() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max data size             unlimited            unlimited            bytes     \n\
                      Max address space         2147483648           unlimited            bytes     \n";
        let files =
            [HOST, ("proc/self/limits", limits), ("proc/self/status", "Name:\tx\nVmSize:\t  102400 kB\n")];
        assert_eq!(available(&files), Some((2_147_483_648 - 104_857_600) / 2));
    }

    #[test]
    fn this_process_may_take_some_memory() {
        assert!(available_bytes().is_none_or(|bytes| bytes > 1 << 20));
    }
}
