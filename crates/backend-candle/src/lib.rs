//! Biplane's candle backend: the processor, NVIDIA GPUs (feature `cuda`), Apple's GPU (feature
//! `metal`).
//!
//! Primitives are candle's tensor operations, with every argument checked beforehand so that errors
//! are the same as on any backend. On the processor, weight matrices and the fused operations are
//! our own kernels in `f32`; on a GPU they are candle's where it has them, else made of primitives.

mod backend;
mod bytes;
mod cpu;
mod fused;
mod gpu;
mod gpu_matrix;
mod matrix;
mod memory;
mod primitives;
mod tensor;
mod threads;

pub use backend::CandleBackend;
pub use matrix::CandleMatrix;
pub use tensor::CandleTensor;
pub use threads::{instruction_sets, set_threads, threads};

/// The backend's name in errors and on the command line.
const NAME: &str = "candle";

/// Turns candle's error into ours, naming the operation.
fn failed(op: &'static str) -> impl FnOnce(candle_core::Error) -> biplane_backend::Error {
    move |e| biplane_backend::Error::Backend {
        backend: NAME,
        op,
        message: e.to_string(),
    }
}
