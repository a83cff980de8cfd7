//! How much memory there is: of the machine, of the control groups that a container or a batch system puts this
//! process in, and of a GPU. Linux tells it in files; elsewhere nothing is known.

use std::path::{Path, PathBuf};

use tch::Device;

use crate::device::gpu_memory;

/// Bytes that this process could still have; none where the system does not tell.
pub fn free_on(device: Device) -> Option<f64> {
    if device.is_cuda() {
        return gpu_memory(device).map(|memory| memory.free as f64);
    }
    let meminfo = read("/proc/meminfo").and_then(|text| kib(&text, "MemAvailable:"));
    let groups = read("/proc/self/cgroup").map(|text| group_files(&text)).unwrap_or_default();
    let limits = groups.iter().filter_map(|group| group.free(&|file| read(file)));
    meminfo.into_iter().chain(limits).reduce(f64::min)
}

/// Bytes of this process in memory.
pub fn resident() -> Option<f64> {
    status("VmRSS:")
}

/// The most bytes that this process had in memory since [`forget_peak`].
pub fn peak() -> Option<f64> {
    status("VmHWM:")
}

/// The peak starts again from what is resident now. Where the system does not do that, it is that of the whole
/// process: a step larger than all before shows in it nevertheless.
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

/// `Name:   123 kB` as bytes.
fn kib(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(1024.0 * line.split_whitespace().next()?.parse::<f64>().ok()?)
}

/// The files of a control group that tell its memory.
#[derive(Debug, PartialEq)]
struct Group {
    folder: PathBuf,
    /// Limit, usage, and the line of `memory.stat` with what the kernel would give back: version 2, then
    /// version 1.
    names: [&'static str; 3],
}

const VERSION_2: [&str; 3] = ["memory.max", "memory.current", "inactive_file "];
const VERSION_1: [&str; 3] = ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "];

/// The groups that `/proc/self/cgroup` names, and all around them: a limit holds for what is inside. In a
/// container the names may be those of the host, which lie nowhere here; the outermost folder is the
/// container's own group then.
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
        // Component by component: what is joined to nothing ends in a slash.
        let own: PathBuf = root.join(path.trim_start_matches('/')).components().collect();
        let around = own.ancestors().take_while(|folder| folder.starts_with(&root));
        groups.extend(around.map(|folder| Group { folder: folder.to_owned(), names }));
    }
    groups
}

impl Group {
    /// Bytes up to the limit, counting what the kernel would give back; none without a limit.
    fn free(&self, read: &dyn Fn(&Path) -> Option<String>) -> Option<f64> {
        let number = |name: &str| read(&self.folder.join(name))?.trim().parse::<f64>().ok();
        let [limit, usage, inactive] = self.names;
        // Version 2 writes `max` where there is none, version 1 a number near 2^63.
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
    fn kibibytes_are_read() {
        assert_eq!(kib("VmHWM:\t   12 kB\nVmRSS:\t 3 kB\n", "VmRSS:"), Some(3072.0));
        assert_eq!(kib("x", "VmRSS:"), None);
    }

    #[test]
    fn groups_and_those_around_them_are_found() {
        let folders = |text: &str| -> Vec<_> {
            group_files(text).into_iter().map(|group| group.folder.display().to_string()).collect()
        };
        assert_eq!(folders("0::/a/b\n"), ["/sys/fs/cgroup/a/b", "/sys/fs/cgroup/a", "/sys/fs/cgroup"]);
        let mixed = "5:cpu,cpuacct:/x\n4:memory:/job\n0::/\n";
        assert_eq!(folders(mixed), ["/sys/fs/cgroup/memory/job", "/sys/fs/cgroup/memory", "/sys/fs/cgroup"]);
        assert_eq!(folders(""), Vec::<String>::new());
    }

    #[test]
    fn a_limit_less_what_is_used_and_cannot_be_given_back_is_free() {
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
