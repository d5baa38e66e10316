//! Holds the backend to the conformance suite on the processor.

use biplane_backend::{Backend, Device, conformance_tests, testing::Expect};
use biplane_candle::CandleBackend;

conformance_tests!(
    CandleBackend::new(Device::Cpu).unwrap().with_exact(true),
    Expect {
        exact: |_, _| true,
        batch_invariant: true,
        ..Expect::default()
    }
);

/// With activations rounded to 8 bits: half a step of 127 of a block's largest.
mod rounded {
    use super::*;

    conformance_tests!(
        CandleBackend::new(Device::Cpu).unwrap(),
        Expect {
            exact: |_, _| true,
            batch_invariant: true,
            matmul: |m, dtype| match m.spec() {
                Some(_) => 2e-2,
                None => (Expect::default().matmul)(m, dtype),
            },
            ..Expect::default()
        }
    );
}
