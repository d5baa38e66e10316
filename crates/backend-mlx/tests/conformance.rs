//! The conformance suite on MLX's CPU device, or on the GPU where `BIPLANE_TEST_DEVICE` is `gpu`.

use biplane_backend::testing::Expect;
use biplane_backend::{Backend, Device, conformance_tests};
use biplane_mlx::MlxBackend;

fn device() -> Device {
    match std::env::var("BIPLANE_TEST_DEVICE").as_deref() {
        Ok("gpu") => Device::Gpu,
        _ => Device::Cpu,
    }
}

conformance_tests!(
    MlxBackend::new(device()).unwrap(),
    Expect {
        // MLX has no groups of 16; scales and biases are f32 on the CPU.
        exact: |m, activations| match m.spec() {
            Some(spec) => spec.group_size >= 32 && device() == Device::Cpu,
            None => (Expect::default().exact)(m, activations),
        },
        ..Expect::default()
    }
);
