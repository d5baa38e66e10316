//! The conformance suite on MLX's CPU device.

use biplane_backend::testing::Expect;
use biplane_backend::{Backend, Device, conformance_tests};
use biplane_mlx::MlxBackend;

conformance_tests!(
    MlxBackend::new(Device::Cpu).unwrap(),
    Expect {
        // MLX has no groups of 16; dense weights are f32 on the CPU.
        exact: |m, _| m.spec().is_none_or(|spec| spec.group_size >= 32),
        ..Expect::default()
    }
);
