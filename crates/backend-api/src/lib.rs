//! What a backend of Biplane is: two traits with few required methods, [`Backend`] and [`Tensor`],
//! one for weight matrices at rest on a device, [`WeightMatrix`], and the byte formats they are
//! loaded from ([`PackedMatrix`]).
//!
//! Models are written once against these traits. A backend implements about twenty primitives;
//! every fused operation (RMSNorm, RoPE, attention, …) has a default made of primitives that a
//! backend overrides where it is faster. The feature `testing` brings the conformance suite that
//! holds every override to its default and every backend to the same results and errors.
//!
//! Shapes are written as lists, outermost first: `[heads, tokens, head_dim]`. All tensors are
//! row-major from the outside; how a backend stores them is its own affair.

mod attention;
mod backend;
mod decode;
pub mod defaults;
mod dtype;
mod error;
mod kept;
mod matrix;
mod ops;
pub mod repack;
mod rope;
mod self_check;
mod shape;
mod tensor;

#[cfg(feature = "testing")]
pub mod testing;

pub use attention::AttentionMask;
pub use backend::{Backend, Device, MemoryStats};
pub use decode::Decode;
pub use dtype::DType;
pub use error::{Error, Result};
pub use kept::{Kept, KvFormat, KvSpec, KvType, QuantizedKv};
pub use matrix::{AffineSpec, Around, Gate, GgmlKind, PackedLayout, PackedMatrix, WeightMatrix};
pub use ops::{BinaryOp, ReduceOp, UnaryOp};
pub use rope::{RopeAngles, RopeScaling, rope_inv_freqs};
pub use self_check::{SelfCheck, self_check};
pub use shape::Shape;
pub use tensor::Tensor;
