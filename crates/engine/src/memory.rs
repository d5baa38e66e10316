//! What this process takes of the machine's memory, and whether a model fits.

use biplane_models::{
    IsqType, ModelInfo,
    checkpoint::{Checkpoint, RawKind},
};

use crate::{Error, Result, backends::RunnerSpec};

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

/// Bytes in the unit that suits a reader: `300 MiB`, `1.50 GiB`.
pub fn readable(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit < 3 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit == 3) * 2;
    format!("{value:.digits$} {}", UNITS[unit])
}

/// Bytes of memory that the system could give to a process now; `None` where it does not say.
pub fn available_bytes() -> Option<u64> {
    let mut system = sysinfo::System::new();
    system.refresh_memory();
    // A container's limit counts where it is below the machine's. What it says is free leaves out the
    // files in the system's cache, which go when programs need memory.
    let limit = system
        .cgroup_limits()
        .map(|limits| limits.total_memory.saturating_sub(limits.rss));
    let free = system.available_memory();
    Some(limit.map_or(free, |limit| limit.min(free))).filter(|bytes| *bytes > 0)
}

/// Gives the system back what the allocator keeps of memory that was freed, where it keeps any.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it takes any number, and only pages without living allocations are given back.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Refuses, before anything is read, a model whose weights do not fit what is free; for devices that
/// share the processor's memory.
pub(crate) fn check_weights(spec: &RunnerSpec) -> Result<()> {
    let checkpoint = &*spec.opened.checkpoint;
    fits(
        "the weights".into(),
        weights(checkpoint, spec.isq.default),
        available_bytes(),
        "quantize them more coarsely (--isq Q4K), or free memory",
    )
}

/// Refuses a context that was asked for and whose KV cache does not fit; `budget` is what all caches may
/// take.
pub(crate) fn check_context(
    info: &ModelInfo,
    asked: Option<usize>,
    chunk: usize,
    budget: usize,
) -> Result<()> {
    let Some(context) = asked else { return Ok(()) };
    fits(
        format!("keys and values of {context} tokens"),
        info.kv_bytes(context, chunk) as u64,
        Some(budget as u64),
        "take a shorter context (--ctx), keep keys and values smaller (--kv-type q8), or allow more (--kv-memory)",
    )
}

/// Bytes of the weights, dense matrices quantized as asked with a scale for every 32 values.
pub(crate) fn weights(checkpoint: &dyn Checkpoint, isq: Option<IsqType>) -> u64 {
    let Some(bits) = isq.map(IsqType::bits) else {
        return checkpoint.size_in_bytes() as u64;
    };
    let size = |name: &&str| -> u64 {
        let Ok(Some(tensor)) = checkpoint.tensor(name) else {
            return 0;
        };
        let elements: u64 = tensor.shape.iter().map(|&n| n as u64).product();
        match tensor.kind {
            RawKind::Dense(dtype) if dtype.is_float() && tensor.shape.len() == 2 => {
                elements * (u64::from(bits) + 1) / 8
            }
            _ => tensor.bytes.len() as u64,
        }
    };
    checkpoint.names().iter().map(size).sum()
}

fn fits(what: String, needed: u64, available: Option<u64>, remedy: &'static str) -> Result<()> {
    match available {
        Some(available) if needed > available => Err(Error::Memory {
            what,
            needed,
            available,
            remedy,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_for_people() {
        assert_eq!(readable(999), "999 B");
        assert_eq!(readable(300 << 20), "300 MiB");
        assert_eq!(readable(3 << 29), "1.50 GiB");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_figures_and_remedies() {
        let fits = |needed, available| fits("the weights".into(), needed, available, "do this");
        assert!(fits(5, Some(5)).is_ok());
        assert!(fits(5, None).is_ok());
        let words = fits(3 << 30, Some(1 << 30)).unwrap_err().to_string();
        assert_eq!(
            words,
            "the weights take 3.00 GiB, 1.00 GiB are there for them; do this"
        );
    }

    #[test]
    fn quantizing_lessens_what_dense_weights_need() {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/llama/hf");
        let opened = biplane_models::checkpoint::open(dir.as_ref()).unwrap();
        let all = weights(&*opened.checkpoint, None);
        let quantized = weights(&*opened.checkpoint, Some(IsqType::Q4_0));
        assert_eq!(all, opened.checkpoint.size_in_bytes() as u64);
        assert!(quantized < all / 2, "{quantized} of {all}");
    }
}
