//! Biplane's MLX backend, through mlx-rs: [`MlxBackend`], [`MlxTensor`], [`MlxMatrix`].
//!
//! Operations are lazy: they check their arguments, add a node to MLX's graph and return. The graph
//! is computed by [`Tensor::to_bytes`](biplane_backend::Tensor::to_bytes),
//! [`Backend::eval`] and [`Backend::async_eval`], on the thread that built it.
//!
//! An operation that fails while the graph is computed gives its error once, where it is waited for;
//! MLX then takes the failed tensors for computed. Drop what depends on them.
//!
//! MLX itself does not survive some wrong calls (it reads beyond a tensor in a gather, divides by
//! zero in a quantized product of no rows, writes through null when memory runs out), so nothing
//! reaches it unchecked: every result is made by `MlxTensor::make`, which refuses what cannot be
//! held and computes no tensor without elements.

mod alloc;
mod cuda;
mod device;
mod error;
mod fused;
mod kv;
mod layout;
mod matrix;
mod ops;
mod pack;
mod tensor;

pub use matrix::MlxMatrix;
pub use tensor::MlxTensor;

use biplane_backend::{
    Backend, DType, Device, KvFormat, KvSpec, KvType, MemoryStats, PackedMatrix, Result, Shape,
};
use mlx_rs::{Stream, error::Exception, memory, transforms};

use crate::error::{NAME, failed};

/// MLX on one device.
///
/// [`Backend::new`] makes the device the calling thread's default: use one device a thread.
#[derive(Clone, Debug)]
pub struct MlxBackend {
    device: Device,
}

impl Backend for MlxBackend {
    type Tensor = MlxTensor;
    type Matrix = MlxMatrix;

    const NAME: &'static str = NAME;

    fn new(device: Device) -> Result<Self> {
        Ok(MlxBackend {
            device: device::open(device)?,
        })
    }

    fn device(&self) -> Device {
        self.device
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<MlxTensor> {
        MlxTensor::zeros(shape.into(), dtype, self.device)
    }

    fn from_bytes(&self, bytes: &[u8], dtype: DType, shape: impl Into<Shape>) -> Result<MlxTensor> {
        error::after_lack();
        MlxTensor::from_bytes("from_bytes", bytes, dtype, shape.into(), self.device)
    }

    fn load_matrix(&self, packed: &PackedMatrix<'_>, activations: DType) -> Result<MlxMatrix> {
        pack::load(packed, activations, self.device)
    }

    fn eval(&self, tensors: &[&MlxTensor]) -> Result<()> {
        error::after_lack();
        cuda::finish_compiling();
        transforms::eval(tensors.iter().map(|t| t.array())).map_err(failed("eval"))
    }

    fn async_eval(&self, tensors: &[&MlxTensor]) -> Result<()> {
        error::after_lack();
        cuda::finish_compiling();
        transforms::async_eval(tensors.iter().map(|t| t.array())).map_err(failed("async_eval"))
    }

    fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is this thread's own and lives through the call.
        let status =
            unsafe { mlx_sys::mlx_synchronize(Stream::thread_local_or_default().as_ptr()) };
        match status {
            0 => Ok(()),
            _ => Err(failed("synchronize")(Exception::custom(
                "MLX could not wait for its stream",
            ))),
        }
    }

    fn computes_beside(&self) -> bool {
        true
    }

    fn prefers_batches(&self) -> bool {
        true
    }

    fn compiles_for(&self) -> &'static [usize] {
        match self.device {
            Device::Cuda(_) => cuda::KINDS_OF_STEPS,
            _ => &[],
        }
    }

    /// Scales in a half precision, the activations' where they have one: MLX computes in the wider type of
    /// its operands.
    fn kv_format(&self, wanted: KvType, activations: DType) -> Result<KvFormat> {
        Ok(match wanted.bits() {
            None => KvFormat::Plain(activations),
            Some(bits) => KvFormat::Quantized(KvSpec {
                bits,
                group_size: 32,
                scales: match activations {
                    DType::BF16 => DType::BF16,
                    _ => DType::F16,
                },
            }),
        })
    }

    /// Of the whole process, on every device.
    fn memory(&self) -> MemoryStats {
        MemoryStats {
            active: memory::active_memory().unwrap_or_default(),
            cached: memory::cache_memory().unwrap_or_default(),
            peak: memory::peak_memory().unwrap_or_default(),
            limit: matches!(self.device, Device::Cuda(_)).then(alloc::limit),
        }
    }

    fn release_cached(&self) -> Result<()> {
        memory::clear_cache().map_err(failed("release_cached"))
    }
}
