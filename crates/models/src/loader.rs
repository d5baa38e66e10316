//! What loading has in common over all of a model's tensors: the source, the device, the totals.

use std::cell::Cell;

use biplane_backend::{Backend, DType, WeightMatrix};

use crate::{Result, isq::IsqPlan, source::Source, stored::Stored};

/// What loading has in common over all of a model's tensors.
pub(crate) struct Loader<'a, B: Backend> {
    pub backend: &'a B,
    pub source: Source<'a>,
    /// Element type of activations, norms and biases.
    pub dtype: DType,
    /// What to quantize on the way.
    pub isq: &'a IsqPlan,
    /// Told the bytes of the checkpoint read so far.
    pub progress: &'a dyn Fn(usize),
    read: Cell<usize>,
    held: Cell<usize>,
    parameters: Cell<usize>,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(
        backend: &'a B,
        source: Source<'a>,
        dtype: DType,
        isq: &'a IsqPlan,
        progress: &'a dyn Fn(usize),
    ) -> Self {
        Loader {
            backend,
            source,
            dtype,
            isq,
            progress,
            read: Cell::new(0),
            held: Cell::new(0),
            parameters: Cell::new(0),
        }
    }

    /// Bytes of weights on the device, and the number of parameters.
    pub fn totals(&self) -> (usize, usize) {
        (self.held.get(), self.parameters.get())
    }

    /// Brings a matrix to the device, quantized on the way where `base` is to be.
    pub fn load(&self, base: &str, stored: &Stored<'_>) -> Result<B::Matrix> {
        let packed = stored.packed();
        let matrix = match self.isq.quantize(base, &packed)? {
            Some(quantized) => self
                .backend
                .load_matrix(&quantized.packed(packed.name, packed.shape), self.dtype)?,
            None => {
                let checkpoint = self.source.checkpoint;
                let taken = |rows| {
                    for bytes in packed.bytes_of_rows(rows) {
                        checkpoint.release_bytes(bytes);
                    }
                };
                self.backend.take_matrix(&packed, self.dtype, &taken)?
            }
        };
        self.count(matrix.size_in_bytes(), packed.shape[0] * packed.shape[1]);
        Ok(matrix)
    }

    /// So many bytes and parameters more are on the device.
    pub fn count(&self, held: usize, parameters: usize) {
        self.held.set(self.held.get() + held);
        self.parameters.set(self.parameters.get() + parameters);
    }

    /// A tensor's pages are not needed any more.
    pub fn taken(&self, name: &str, bytes: usize) {
        self.source.checkpoint.release(name);
        self.read.set(self.read.get() + bytes);
        (self.progress)(self.read.get());
    }
}
