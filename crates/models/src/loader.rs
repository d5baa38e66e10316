//! What loading has in common over all of a model's tensors: the source, the names, the totals.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
};

use biplane_backend::{Backend, DType};

use crate::{
    Error, Result,
    checkpoint::{Checkpoint, RawKind, RawTensor},
    quantization::Quantization,
};

/// Where a GGUF file keeps a tensor, and what undoes the change its converter made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GgufTensor {
    /// The name in the file.
    pub name: String,
    /// What to undo.
    pub fix: GgufFix,
}

/// Changes that GGUF converters make to a model's tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufFix {
    /// None.
    Same,
    /// The two rotary halves of each head's rows were interleaved (Llama's q and k).
    Interleaved {
        /// Number of heads among the rows.
        heads: usize,
    },
}

impl GgufTensor {
    /// A tensor kept as it is under another name.
    pub fn same(name: impl Into<String>) -> Self {
        GgufTensor {
            name: name.into(),
            fix: GgufFix::Same,
        }
    }
}

/// How the checkpoint spells the names that a model asks for.
pub(crate) enum Naming<'a> {
    HuggingFace,
    Gguf(&'a dyn Fn(&str) -> Option<GgufTensor>),
}

/// What loading has in common over all of a model's tensors.
pub(crate) struct Loader<'a, B: Backend> {
    pub backend: &'a B,
    pub source: &'a dyn Checkpoint,
    pub naming: Naming<'a>,
    pub quantization: Quantization,
    /// Element type of activations, norms and biases.
    pub dtype: DType,
    /// Told the bytes of the checkpoint read so far.
    pub progress: &'a dyn Fn(usize),
    pub used: RefCell<HashSet<String>>,
    read: Cell<usize>,
    held: Cell<usize>,
    parameters: Cell<usize>,
}

impl<'a, B: Backend> Loader<'a, B> {
    pub fn new(
        backend: &'a B,
        source: &'a dyn Checkpoint,
        naming: Naming<'a>,
        quantization: Quantization,
        dtype: DType,
        progress: &'a dyn Fn(usize),
    ) -> Self {
        Loader {
            backend,
            source,
            naming,
            quantization,
            dtype,
            progress,
            used: RefCell::default(),
            read: Cell::new(0),
            held: Cell::new(0),
            parameters: Cell::new(0),
        }
    }

    /// Bytes of weights on the device, and the number of parameters.
    pub fn totals(&self) -> (usize, usize) {
        (self.held.get(), self.parameters.get())
    }

    pub fn raw(&self, name: &str) -> Result<Option<RawTensor<'a>>> {
        let raw = self.source.tensor(name)?;
        if let Some(raw) = &raw {
            self.used.borrow_mut().insert(name.to_owned());
            self.read.set(self.read.get() + raw.bytes.len());
        }
        Ok(raw)
    }

    pub fn taken(&self, name: &str, held: usize, parameters: usize) {
        self.source.release(name);
        self.held.set(self.held.get() + held);
        self.parameters.set(self.parameters.get() + parameters);
        (self.progress)(self.read.get());
    }

    pub fn unfit(&self, raw: &RawTensor<'_>, expected: String) -> Error {
        Error::Tensor {
            path: self.source.path().to_owned(),
            name: raw.name.to_owned(),
            expected,
            got: format!("{} {:?}", kind_name(raw.kind), raw.shape),
        }
    }
}

fn kind_name(kind: RawKind) -> &'static str {
    match kind {
        RawKind::Dense(dtype) => dtype.name(),
        RawKind::Ggml(kind) => kind.name(),
    }
}
