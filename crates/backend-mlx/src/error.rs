//! MLX's exceptions as Biplane's errors.

use std::cell::Cell;

use biplane_backend::Error;
use mlx_rs::{
    Array,
    error::{AsSliceError, Exception},
    ops,
};

/// What users call this backend.
pub(crate) const NAME: &str = "mlx";

/// Names the operation that an MLX call failed in.
pub(crate) fn failed<E: Into<Failure>>(op: &'static str) -> impl FnOnce(E) -> Error {
    move |e| {
        let message = e.into().0;
        Error::Backend {
            backend: NAME,
            op,
            message: match is_lack_of_memory(&message) {
                true => without_memory(&message),
                false => message,
            },
        }
    }
}

/// Whether CUDA had no memory left, in MLX's words.
fn is_lack_of_memory(message: &str) -> bool {
    message.contains("out of memory")
}

/// On CUDA MLX does not give up what it keeps for reuse when an allocation fails: without it the next
/// attempt may succeed.
fn without_memory(message: &str) -> String {
    LACKED.set(true);
    // That it failed is said already.
    let _ = mlx_rs::memory::clear_cache();
    format!(
        "{message}; use a smaller quantization, shorter prompts, or less for keys and values (--kv-memory)"
    )
}

thread_local! {
    /// Whether an allocation failed since [`after_lack`].
    static LACKED: Cell<bool> = const { Cell::new(false) };
}

/// Makes a thread usable in which an allocation failed. Arrays that were dropped since are kept for reuse
/// again; and CUDA names the failure, to whoever asks, until it has named it to a call that takes it away.
/// MLX makes such a call after some of its kernels only, those of gathered matrices among them.
pub(crate) fn after_lack() {
    if !LACKED.replace(false) {
        return;
    }
    tracing::debug!("memory ran out: clearing up before the next step");
    let takes_it_away = || {
        let [rows, kinds, size] = [16, 4, 64];
        let which: Vec<u32> = (0..rows as u32).map(|row| row / 4).collect();
        let which = Array::from_slice(&which, &[rows]);
        let x = ops::ones::<f32>(&[rows, 1, size])?;
        let w = ops::ones::<f32>(&[kinds, size, size])?;
        ops::gather_mm(x, w, None, &which, true)?.eval()
    };
    for step in [takes_it_away(), mlx_rs::memory::clear_cache()] {
        if let Err(error) = step {
            tracing::debug!("{error}");
        }
    }
}

/// What MLX said.
pub(crate) struct Failure(String);

impl From<Exception> for Failure {
    fn from(e: Exception) -> Self {
        Failure(without_source(e.what()).to_owned())
    }
}

impl From<AsSliceError> for Failure {
    fn from(e: AsSliceError) -> Self {
        match e {
            AsSliceError::Exception(e) => e.into(),
            other => Failure(other.to_string()),
        }
    }
}

/// mlx-c appends ` at FILE:LINE` of its own source, which tells users nothing.
fn without_source(message: &str) -> &str {
    match message.rsplit_once(" at ") {
        Some((said, place)) if place.contains(".cpp:") => said,
        _ => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lack_of_memory_says_what_helps() {
        let failed = |message: &str| failed("eval")(Exception::custom(message)).to_string();
        let said = failed("cudaMallocAsync(&data, size, stream) failed: out of memory");
        assert!(said.contains("--kv-memory"), "{said}");
        let said = failed("[matmul] wrong shapes");
        assert!(!said.contains("--kv-memory"), "{said}");

        crate::device::open(biplane_backend::Device::Cpu).unwrap();
        assert!(LACKED.get());
        after_lack();
        assert!(!LACKED.get());
    }

    #[test]
    fn the_place_in_mlx_c_is_cut_off() {
        assert_eq!(
            without_source("[take] bad at axis 1 at /x/mlx/c/ops.cpp:12"),
            "[take] bad at axis 1"
        );
        assert_eq!(without_source("look at this"), "look at this");
    }
}
