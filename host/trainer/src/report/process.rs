//! This process's memory and age, as the system tells them. Linux tells through `/proc`; elsewhere the
//! answer is `None`.

/// Memory in RAM now, in bytes (`VmRSS`).
pub fn resident_bytes() -> Option<u64> {
    status_bytes("/proc/self/status", "VmRSS:")
}

/// The most memory in RAM so far, in bytes (`VmHWM`).
pub fn peak_bytes() -> Option<u64> {
    status_bytes("/proc/self/status", "VmHWM:")
}

/// The most memory in RAM so far of another process, in bytes.
pub fn peak_bytes_of(process: u32) -> Option<u64> {
    status_bytes(&format!("/proc/{process}/status"), "VmHWM:")
}

/// The processor's name and the machine's memory in bytes.
pub fn machine() -> (Option<String>, Option<u64>) {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name);
    (name.map(|name| name.trim().to_string()), status_bytes("/proc/meminfo", "MemTotal:"))
}

/// The most memory that this process may take, in bytes: the machine's, or what its control group is given.
pub fn memory_limit() -> Option<u64> {
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    [status_bytes("/proc/meminfo", "MemTotal:"), group].into_iter().flatten().min()
}

/// Has every buffer of a mebibyte or more given back to the system when it is let go.
///
/// glibc otherwise learns from the first large buffer that is freed to keep the next ones for itself, up to 32 MiB for
/// each thread, so that a process would hold far more than its buffers. To be called once, at the start.
pub fn give_back_large_buffers() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt has no precondition; it sets a number that later allocations read.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 1 << 20);
    }
}

/// Seconds since the process was started, to a hundredth.
pub fn seconds_since_start() -> Option<f64> {
    // The command name, in parentheses, may itself hold spaces and parentheses; after the last one, fields go on with
    // the third, and the 22nd is the start in ticks since boot. User space always sees 100 ticks a second on Linux.
    const TICKS_PER_S: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let started_ticks: f64 = stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()?;
    let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
    let up_s: f64 = uptime.split_whitespace().next()?.parse().ok()?;
    Some((up_s - started_ticks / TICKS_PER_S).max(0.0))
}

/// A number of KiB in a file of `key: value` lines, as bytes.
fn status_bytes(file: &str, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(file).ok()?;
    let kib: u64 = status.lines().find_map(|l| l.strip_prefix(key))?.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn memory_grows_with_what_is_touched() {
        let before = resident_bytes().unwrap();
        // Other tests of this process take and give back memory meanwhile, less than half of this.
        let block = vec![1u8; 256 << 20];
        std::hint::black_box(&block);
        let after = resident_bytes().unwrap();
        assert!(after >= before + (128 << 20), "{before} → {after}");
        assert!(peak_bytes().unwrap() >= after);
        assert!(memory_limit().unwrap() > after);
    }

    #[test]
    fn the_process_is_young_and_ages() {
        let first = seconds_since_start().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(60));
        let second = seconds_since_start().unwrap();
        assert!(second > first && second < first + 30.0, "{first} → {second}");
    }
}
