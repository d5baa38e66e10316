//! Holds the backend to the conformance suite on the processor, or on the GPU where `BIPLANE_TEST_DEVICE` is
//! `gpu`.

use biplane_backend::{
    Backend, DType, Device, PackedLayout, PackedMatrix, conformance_tests, testing::Expect,
};
use biplane_candle::CandleBackend;

fn device() -> Device {
    match std::env::var("BIPLANE_TEST_DEVICE").as_deref() {
        Ok("gpu") => Device::Gpu,
        _ => Device::Cpu,
    }
}

/// On a GPU dense values are narrowed to the activations' type.
fn exact(m: &PackedMatrix<'_>, activations: DType) -> bool {
    match (device(), m.layout) {
        (Device::Cpu, _) => true,
        (_, PackedLayout::Dense { .. }) => (Expect::default().exact)(m, activations),
        _ => activations == DType::F32,
    }
}

conformance_tests!(
    CandleBackend::new(device()).unwrap().with_exact(true),
    Expect {
        exact,
        batch_invariant: device() == Device::Cpu,
        ..Expect::default()
    }
);

/// With activations rounded to 8 bits: half a step of 127 of a block's largest.
mod rounded {
    use super::*;

    conformance_tests!(
        CandleBackend::new(device()).unwrap(),
        Expect {
            // Blocks are kept; groups are where they become blocks.
            exact: |m, activations| matches!(m.layout, PackedLayout::Ggml { .. })
                || super::exact(m, activations),
            batch_invariant: device() == Device::Cpu,
            matmul: |m, dtype| match (device(), m.spec()) {
                (Device::Cpu, Some(_)) => 2e-2,
                (_, Some(_)) => 2e-2 + (Expect::default().matmul)(m, dtype),
                (_, None) => (Expect::default().matmul)(m, dtype),
            },
            ..Expect::default()
        }
    );
}
