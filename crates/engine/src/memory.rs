//! What this process takes of the machine's memory.

/// The most memory this process has had resident at once, in bytes, as the system counts it
/// (mapped files included); `None` where the system does not say.
pub fn peak_resident_bytes() -> Option<u64> {
    #[cfg(unix)]
    {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: `usage` is a valid place for one rusage, and the call fills it when it gives 0.
        let usage = unsafe {
            if libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) != 0 {
                return None;
            }
            usage.assume_init()
        };
        let max = u64::try_from(usage.ru_maxrss).ok()?;
        // macOS counts bytes, others kilobytes.
        Some(if cfg!(target_os = "macos") {
            max
        } else {
            max * 1024
        })
    }
    #[cfg(not(unix))]
    None
}

/// Bytes of memory that the system could give to a process now; `None` where it does not say.
pub fn available_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // A container's limit counts where it is below the machine's.
    let limit = system.cgroup_limits().map(|limits| limits.free_memory);
    let free = system.available_memory();
    Some(limit.map_or(free, |limit| limit.min(free))).filter(|bytes| *bytes > 0)
}
