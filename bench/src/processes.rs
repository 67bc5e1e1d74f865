//! What the proxies of a pod have used: every process of their user in the
//! pod's network namespace.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;

/// The user that every proxy runs as; its calls are not redirected.
pub const PROXY_UID: u32 = 1337;

/// Processes of the proxies' user in the network namespace of process `pod`.
pub fn proxies(pod: i32) -> anyhow::Result<Vec<i32>> {
    let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/net"));
    let of_pod = namespace(pod).context("the pod has ended")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if uid(&entry.path()) == Some(PROXY_UID) && namespace(pid).is_ok_and(|n| n == of_pod) {
            found.push(pid);
        }
    }
    Ok(found)
}

fn uid(process: &Path) -> Option<u32> {
    status_field(process, "Uid:")
}

fn status_field<T: std::str::FromStr>(process: &Path, name: &str) -> Option<T> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Processor time of all threads, which the kernel counts in nanoseconds.
pub fn cpu(pids: &[i32]) -> Duration {
    let mut nanos = 0;
    for pid in pids {
        let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let stat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let used = stat.split_whitespace().next().and_then(|n| n.parse().ok());
            nanos += used.unwrap_or(0u64);
        }
    }
    Duration::from_nanos(nanos)
}

/// Resident memory, in KiB.
pub fn resident_kib(pids: &[i32]) -> u64 {
    let resident = |pid: &i32| status_field::<u64>(Path::new(&format!("/proc/{pid}")), "VmRSS:");
    pids.iter().filter_map(resident).sum()
}
