//! Holds the backend to the conformance suite on the processor.

use biplane_backend::{Backend, Device, PackedLayout, conformance_tests, testing::Expect};
use biplane_candle::CandleBackend;

// Matrices are exact, but a quantized one is multiplied with activations rounded to 8 bits a group.
conformance_tests!(
    CandleBackend::new(Device::Cpu).unwrap(),
    Expect {
        exact: |_, _| true,
        matmul: |m, activations| match m.layout {
            PackedLayout::Dense { .. } => (Expect::default().matmul)(m, activations),
            _ => 1e-2,
        },
        batch_invariant: true,
        ..Expect::default()
    }
);
