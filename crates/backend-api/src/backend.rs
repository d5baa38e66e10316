use std::{fmt::Debug, ops::Range};

use crate::{DType, KvFormat, KvSpec, KvType, PackedMatrix, Result, Shape, Tensor, WeightMatrix};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The fastest one the backend has here.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU that the backend has here; an error where it has none.
    Gpu,
    /// An NVIDIA GPU by number.
    Cuda(usize),
    /// Apple's GPU.
    Metal,
}

impl Device {
    /// Whether this is the processor.
    pub fn is_cpu(self) -> bool {
        self == Device::Cpu
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Gpu => f.write_str("gpu"),
            Device::Cuda(0) => f.write_str("cuda"),
            Device::Cuda(n) => write!(f, "cuda:{n}"),
            Device::Metal => f.write_str("metal"),
        }
    }
}

/// What a backend's allocator holds, in bytes; zero where it does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryStats {
    /// In use by live tensors.
    pub active: usize,
    /// Kept for reuse.
    pub cached: usize,
    /// The most that was in use at once.
    pub peak: usize,
    /// What may be in use at once on a device with memory of its own; none on one that shares the
    /// processor's.
    pub limit: Option<usize>,
}

/// A device and the way to bring bytes to it.
///
/// A backend is created, used and dropped on one thread: MLX's streams belong to the thread that
/// made them. Nothing here may panic or abort on wrong arguments: every one is a typed error.
// `from_bytes` makes tensors, not backends: the device is its context.
#[allow(clippy::wrong_self_convention)]
pub trait Backend: Clone + Debug + 'static {
    /// Its tensors.
    type Tensor: Tensor;
    /// Its weight matrices.
    type Matrix: WeightMatrix<Tensor = Self::Tensor>;

    /// The name users choose it by.
    const NAME: &'static str;

    /// Opens a device.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] when this build or machine does not have it.
    fn new(device: Device) -> Result<Self>;

    /// Whether matrices that are loaded from now on multiply in the activations' own type. A backend
    /// may otherwise round activations to 8 bits where weights are quantized, if that is faster; one
    /// that never does has nothing to change.
    #[must_use]
    fn with_exact(self, _exact: bool) -> Self {
        self
    }

    /// The device in use; never [`Device::Auto`].
    fn device(&self) -> Device;

    /// A tensor of zeros.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] for a shape that memory cannot hold.
    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<Self::Tensor>;

    /// A tensor of little-endian row-major bytes (copied).
    ///
    /// # Errors
    /// [`crate::Error::Bytes`] when the length is not what shape and type need,
    /// [`crate::Error::OutOfMemory`] for a shape that memory cannot hold.
    fn from_bytes(
        &self,
        bytes: &[u8],
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<Self::Tensor>;

    /// Brings a weight matrix to the device in the backend's best form for `activations`.
    ///
    /// Values are those of the checkpoint exactly, unless the backend has no such form and says so
    /// once in the log.
    ///
    /// # Errors
    /// [`crate::Error::Weight`] with the matrix's name for malformed bytes.
    fn load_matrix(&self, packed: &PackedMatrix<'_>, activations: DType) -> Result<Self::Matrix>;

    /// As [`Backend::load_matrix`], where the caller can free rows: `taken` may be told, from any thread,
    /// which ones have been read for the last time.
    ///
    /// # Errors
    /// As [`Backend::load_matrix`].
    fn take_matrix(
        &self,
        packed: &PackedMatrix<'_>,
        activations: DType,
        _taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<Self::Matrix> {
        self.load_matrix(packed, activations)
    }

    /// Computes pending work of the given tensors; a no-op where nothing is lazy.
    ///
    /// # Errors
    /// Whatever the pending operations fail with.
    fn eval(&self, _tensors: &[&Self::Tensor]) -> Result<()> {
        Ok(())
    }

    /// Starts computing without waiting; a no-op where nothing is lazy.
    ///
    /// # Errors
    /// Whatever the pending operations fail with.
    fn async_eval(&self, _tensors: &[&Self::Tensor]) -> Result<()> {
        Ok(())
    }

    /// Waits until all that this thread has started is done and put away; a no-op where nothing goes on
    /// beside the caller.
    ///
    /// # Errors
    /// What the backend reports.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    /// Whether started work goes on beside the caller, so that a next step may be started before this
    /// one's result is looked at.
    fn computes_beside(&self) -> bool {
        false
    }

    /// Whether one operation over many sequences costs much less than one for each: then the caches
    /// of sequences that decode together lie in one buffer, so that [`Tensor::attention_each`] serves
    /// all of them.
    fn prefers_batches(&self) -> bool {
        false
    }

    /// Numbers of sequences, in rising order, whose decode steps use kernels that are compiled when they are
    /// first met: a model has them compiled before it answers. None where nothing is compiled.
    fn compiles_for(&self) -> &'static [usize] {
        &[]
    }

    /// How keys and values are kept where activations have `activations`. For [`KvType::Auto`] that is
    /// an element type, a narrower one where that is faster and [`Backend::with_exact`] does not forbid
    /// it.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] for a type that the backend does not keep on this device.
    fn kv_format(&self, wanted: KvType, activations: DType) -> Result<KvFormat> {
        Ok(match wanted.bits() {
            None => KvFormat::Plain(activations),
            Some(bits) => KvFormat::Quantized(KvSpec {
                bits,
                group_size: 32,
                scales: DType::F16,
            }),
        })
    }

    /// What the allocator holds.
    fn memory(&self) -> MemoryStats {
        MemoryStats::default()
    }

    /// Gives cached buffers back to the system.
    ///
    /// # Errors
    /// Whatever the backend's allocator reports.
    fn release_cached(&self) -> Result<()> {
        Ok(())
    }

    /// `n` tensors of zeros that will be read one after the other, each written by itself. Overridden where
    /// memory is read faster when small ones lie in one piece, which then lives as long as any of them.
    ///
    /// # Errors
    /// As [`Backend::zeros`].
    fn zeros_each(
        &self,
        n: usize,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Vec<Self::Tensor>> {
        let shape = shape.into();
        (0..n).map(|_| self.zeros(shape, dtype)).collect()
    }

    /// A tensor of `f32` values.
    ///
    /// # Errors
    /// As [`Backend::from_bytes`].
    fn from_f32s(&self, values: &[f32], shape: impl Into<Shape>) -> Result<Self::Tensor> {
        self.from_bytes(bytemuck::cast_slice(values), DType::F32, shape)
    }

    /// A tensor of `u32` values.
    ///
    /// # Errors
    /// As [`Backend::from_bytes`].
    fn from_u32s(&self, values: &[u32], shape: impl Into<Shape>) -> Result<Self::Tensor> {
        self.from_bytes(bytemuck::cast_slice(values), DType::U32, shape)
    }
}
