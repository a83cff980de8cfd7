//! Free memory of the machine, of the process's control groups (containers, batch systems) and of a GPU. Host memory is read from
//! Linux's `/proc` and `/sys/fs/cgroup`; other systems report `None`.

use std::path::{Path, PathBuf};

use tch::Device;

use crate::device::gpu_memory;

/// Bytes.
pub const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// `bytes` with unit.
pub fn gib(bytes: f64) -> String {
    format!("{:.1} GiB", bytes / GIB)
}

/// Bytes that this process can still allocate on `device`.
pub fn free_on(device: Device) -> Option<f64> {
    if device.is_cuda() {
        return gpu_memory(device).map(|memory| memory.free as f64);
    }
    let meminfo = read("/proc/meminfo").and_then(|text| kib(&text, "MemAvailable:"));
    let groups = read("/proc/self/cgroup").map(|text| group_files(&text)).unwrap_or_default();
    let limits = groups.iter().filter_map(|group| group.free(&|file| read(file)));
    meminfo.into_iter().chain(limits).reduce(f64::min)
}

/// Resident set size of this process in bytes.
pub fn resident() -> Option<f64> {
    status("VmRSS:")
}

/// Largest resident set size in bytes since [`forget_peak`].
pub fn peak() -> Option<f64> {
    status("VmHWM:")
}

/// Resets the peak to the current size. Where that is not permitted, [`peak`] is the peak since the start of the process, in which
/// a step larger than all before it is still visible.
pub fn forget_peak() {
    // 5: see proc(5), clear_refs.
    let _ = fs_err::write("/proc/self/clear_refs", "5");
}

fn status(name: &str) -> Option<f64> {
    kib(&read("/proc/self/status")?, name)
}

fn read(path: impl AsRef<Path>) -> Option<String> {
    fs_err::read_to_string(path.as_ref()).ok()
}

/// Bytes of a line `Name:   123 kB`.
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1024.0 * line.split_whitespace().next()?.parse::<f64>().ok()?)
}

/// A memory control group.
#[derive(Debug, PartialEq)]
struct Group {
    folder: PathBuf,
    /// Files of limit and usage, and the prefix of the line of `memory.stat` with the reclaimable bytes.
    names: [&'static str; 3],
}

const VERSION_2: [&str; 3] = ["memory.max", "memory.current", "inactive_file "];
const VERSION_1: [&str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];

/// The groups in the text of `/proc/self/cgroup` and their ancestors; the limits of all of them apply. In a container the paths may be
/// those of the host and not exist; the root folder is then the container's own group.
fn group_files(text: &str) -> Vec<Group> {
    let root = Path::new("/sys/fs/cgroup");
    let mut groups = Vec::new();
    for line in text.lines() {
        // hierarchy:controllers:path
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let (root, names) = match controllers {
            "" => (root.to_owned(), VERSION_2),
            _ if controllers.split(',').any(|name| name == "memory") => (root.join("memory"), VERSION_1),
            _ => continue,
        };
        // Through components, because joining an empty path adds a slash.
        let own: PathBuf = root.join(path.trim_start_matches('/')).components().collect();
        let ancestors = own.ancestors().take_while(|folder| folder.starts_with(&root));
        groups.extend(ancestors.map(|folder| Group { folder: folder.to_owned(), names }));
    }
    groups
}

impl Group {
    /// Bytes up to the limit, including reclaimable ones; `None` without a limit.
    fn free(&self, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
        let number = |name: &str| read(&self.folder.join(name))?.trim().parse::<f64>().ok();
        let [limit, usage, inactive] = self.names;
        // Without a limit, version 2 has `max` and version 1 a number near 2^63.
        let limit = number(limit).filter(|&bytes| bytes < 2f64.powi(60))?;
        let stat = read(&self.folder.join("memory.stat")).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| line.strip_prefix(inactive)?.trim().parse::<f64>().ok());
        Some((limit - number(usage)? + inactive.unwrap_or_default()).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kib_parses_a_line_of_proc() {
        assert_eq!(kib("VmHWM:\t   12 kB\nVmRSS:\t 3 kB\n", "VmRSS:"), Some(3072.0));
        assert_eq!(kib("x", "VmRSS:"), None);
    }

    #[test]
    fn group_files_include_ancestors() {
        let folders = |text: &str| -> Vec<_> {
            group_files(text).into_iter().map(|group| group.folder.display().to_string()).collect()
        };
        assert_eq!(folders("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        let mixed = "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n";
        assert_eq!(folders(mixed), ["/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"]);
        assert_eq!(folders(""), Vec::<String>::new());
    }

    #[test]
    fn free_memory_is_limit_minus_usage_plus_reclaimable() {
        let free = |names, files: &[(&str, &str)]| {
            let group = Group { folder: "/g".into(), names };
            group.free(&|path| {
                files
                    .iter()
                    .find(|(name, _)| path == Path::new("/g").join(name))
                    .map(|(_, text)| (*text).into())
            })
        };
        let stat = ("memory.stat", "anon 5\ninactive_file 100\ntotal_inactive_file 200\n");
        let used = ("memory.current", "700\n");
        assert_eq!(free(VERSION_2, &[("memory.max", "1000\n"), used, stat]), Some(400.0));
        assert_eq!(free(VERSION_2, &[("memory.max", "1000\n"), used]), Some(300.0));
        assert_eq!(free(VERSION_2, &[("memory.max", "max\n"), used, stat]), None);
        assert_eq!(free(VERSION_2, &[]), None);
        let used = ("memory.usage_in_bytes", "700\n");
        assert_eq!(free(VERSION_1, &[("memory.limit_in_bytes", "1000\n"), used, stat]), Some(500.0));
        assert_eq!(free(VERSION_1, &[("memory.limit_in_bytes", "9223372036854771712\n"), used, stat]), None);
        assert_eq!(free(VERSION_1, &[("memory.limit_in_bytes", "600\n"), used]), Some(0.0));
    }
}
