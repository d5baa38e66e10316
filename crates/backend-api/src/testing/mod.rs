//! The conformance suite: what every backend must do, checked against references in `f64`.
//!
//! A backend's test file is
//!
//! ```ignore
//! use biplane_backend::{Backend, Device, conformance_tests};
//!
//! conformance_tests!(MyBackend::new(Device::Cpu).unwrap());
//! ```
//!
//! Every primitive runs over shapes, element types and views that are not contiguous in memory;
//! every fused operation is compared with a reference and with its default on [`Plain`], a wrapper
//! that hides the backend's overrides; every wrong argument must give the documented error. A check
//! that fails panics with the operation, shapes and values.

// A test suite reports by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod attention;
mod casts;
mod errors;
#[cfg(test)]
mod faulty;
mod fused;
pub mod host;
mod kept;
mod layout;
mod math;
mod matrices;
mod matrix_data;
mod nd;
mod plain;
mod step;
#[cfg(test)]
mod tests;

pub use attention::{attentions, attentions_of_rows, rotations};
pub use casts::{casts, round_trips};
pub use errors::{absurd_shapes, wrong_arguments, wrong_fused_arguments};
pub use fused::{gated_products, largest_elements, norms, softmaxes};
pub use kept::{attentions_over_codes, quantized_rows, wrong_codes};
pub use layout::{joins, reshapes, slices, stretches, writes};
pub use math::{binaries, matmuls, reductions, row_lookups, selections, unaries};
pub use matrices::{
    dense_matrices, ggml_matrices, joined_matrices, malformed_matrices, mlx_matrices,
    wrong_matrix_arguments,
};
pub use plain::Plain;
pub use step::{decoded_tokens, surrounded_products};

use crate::{Backend, DType, PackedLayout, PackedMatrix};

/// What a backend is held to where the traits leave it a choice.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    /// Whether a matrix loaded for the given activations keeps the checkpoint's values: then
    /// `dequantize(F32)` must give them bit for bit (a zero may have either sign). Default: all but
    /// dense elements narrowed to the activations' type.
    pub exact: fn(&PackedMatrix<'_>, DType) -> bool,
    /// Largest error of the other matrices' values, relative to the largest value of the row.
    pub requantized: f64,
    /// Largest error of `matmul_t`, relative to the sum of the products' magnitudes. Default: four
    /// rounding steps of the activations' type, in `f32` 1e-5.
    pub matmul: fn(&PackedMatrix<'_>, DType) -> f64,
    /// Whether a row of `matmul_t` has the same bits however many rows are computed with it.
    pub batch_invariant: bool,
    /// Whether numbers below the normal range survive casts.
    pub subnormals: bool,
}

impl Default for Expect {
    fn default() -> Self {
        Expect {
            exact: |m, activations| match m.layout {
                PackedLayout::Dense { dtype, .. } => {
                    activations == DType::F32 || dtype == activations
                }
                _ => true,
            },
            requantized: 1.5e-2,
            matmul: |_, activations| tolerance(activations),
            batch_invariant: false,
            subnormals: true,
        }
    }
}

/// The floating-point types.
const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

/// The error allowed for a value of about 1: some rounding steps of the type.
fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 4.0 / 1024.0,
        DType::BF16 => 4.0 / 128.0,
        _ => 1e-5,
    }
}

/// Runs the whole suite with default expectations.
pub fn run<B: Backend>(backend: &B) {
    run_with(backend, &Expect::default());
}

/// Runs the whole suite.
pub fn run_with<B: Backend>(backend: &B, expect: &Expect) {
    crate::conformance_tests!(@groups run backend, expect);
}

/// Expands to one `#[test]` for every group of the conformance suite; takes an expression that
/// opens the backend and, optionally, one that gives the [`Expect`].
#[macro_export]
macro_rules! conformance_tests {
    (@groups $mode:ident $backend:expr, $expect:expr) => {
        $crate::conformance_tests! { @$mode $backend, $expect;
            round_trips casts
            reshapes stretches slices joins writes
            unaries binaries selections matmuls reductions row_lookups
            norms softmaxes gated_products largest_elements
            rotations attentions attentions_of_rows
            quantized_rows attentions_over_codes wrong_codes
            dense_matrices mlx_matrices ggml_matrices malformed_matrices joined_matrices
            surrounded_products decoded_tokens
            wrong_matrix_arguments
            wrong_arguments wrong_fused_arguments absurd_shapes
        }
    };
    (@run $backend:expr, $expect:expr; $($group:ident)*) => {
        $( $crate::testing::$group($backend, $expect); )*
    };
    (@test $backend:expr, $expect:expr; $($group:ident)*) => {
        $(
            #[test]
            fn $group() {
                $crate::testing::$group(&$backend, &$expect);
            }
        )*
    };
    ($backend:expr $(,)?) => {
        $crate::conformance_tests!($backend, $crate::testing::Expect::default());
    };
    ($backend:expr, $expect:expr $(,)?) => {
        $crate::conformance_tests!(@groups test $backend, $expect);
    };
}
