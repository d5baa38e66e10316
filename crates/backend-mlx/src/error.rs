//! MLX's exceptions as Biplane's errors.

use biplane_backend::Error;
use mlx_rs::error::{AsSliceError, Exception};

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
    // That it failed is said already.
    let _ = mlx_rs::memory::clear_cache();
    format!(
        "{message}; use a smaller quantization, shorter prompts, or less for keys and values (--kv-memory)"
    )
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
