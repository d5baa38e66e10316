//! Holds the backend to the conformance suite on the processor.

use biplane_backend::{Backend, Device, conformance_tests, testing::Expect};
use biplane_candle::CandleBackend;

conformance_tests!(
    CandleBackend::new(Device::Cpu).unwrap(),
    Expect {
        exact: |_, _| true,
        batch_invariant: true,
        ..Expect::default()
    }
);
