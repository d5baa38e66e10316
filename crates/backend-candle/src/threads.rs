//! How many threads compute on the processor.

use crate::cpu::{pool, simd::Isa};

/// The instruction set that the processor's kernels use, and those that they could use here.
pub fn instruction_sets() -> (&'static str, Vec<&'static str>) {
    let available = Isa::available().iter().map(|isa| isa.name());
    (Isa::get().name(), available.collect())
}

/// Threads that compute on the processor.
pub fn threads() -> usize {
    pool::threads()
}

/// Sets how many threads compute on the processor: those of our kernels, and those of candle's own
/// matrix product if it has not run yet (its pool is made once).
pub fn set_threads(n: usize) {
    let n = n.max(1);
    pool::set_threads(n);
    if rayon::ThreadPoolBuilder::new()
        .num_threads(n)
        .build_global()
        .is_err()
    {
        tracing::debug!("candle's own thread pool is running already and keeps its size");
    }
}
