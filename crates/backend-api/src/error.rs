use crate::{DType, Shape};

/// Result of a backend operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in a backend. Every wrong argument is one of these, on every backend.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Two shapes do not fit each other.
    #[error("{op}: shapes {lhs} and {rhs} do not fit")]
    Shape {
        /// The operation.
        op: &'static str,
        /// The first operand's shape.
        lhs: Shape,
        /// The second operand's or the wanted shape.
        rhs: Shape,
    },
    /// A tensor has another number of axes than the operation takes.
    #[error("{op}: expected {expected} axes, got {got}")]
    Rank {
        /// The operation.
        op: &'static str,
        /// The number of axes it takes.
        expected: usize,
        /// The number of axes given.
        got: usize,
    },
    /// There is no such axis.
    #[error("{op}: axis {axis} of a tensor with {rank} axes")]
    Axis {
        /// The operation.
        op: &'static str,
        /// The axis asked for.
        axis: usize,
        /// The tensor's number of axes.
        rank: usize,
    },
    /// An index or a range reaches beyond an axis.
    #[error("{op}: index {index} is beyond {limit}")]
    OutOfRange {
        /// The operation.
        op: &'static str,
        /// The index, or the end of the range.
        index: usize,
        /// The length of the axis.
        limit: usize,
    },
    /// An element type the operation does not take.
    #[error("{op}: element type {got}, expected {expected}")]
    DType {
        /// The operation.
        op: &'static str,
        /// The type given.
        got: DType,
        /// What it takes.
        expected: &'static str,
    },
    /// A byte buffer's length is not what the shape needs.
    #[error("{op}: expected {expected} bytes, got {got}")]
    Bytes {
        /// The operation.
        op: &'static str,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        got: usize,
    },
    /// A weight cannot be used as it is.
    #[error("weight {name}: {reason}")]
    Weight {
        /// The weight's name.
        name: String,
        /// Why not.
        reason: String,
    },
    /// This backend cannot do that.
    #[error("{backend} cannot {what}; {instead}")]
    Unsupported {
        /// The backend's name.
        backend: &'static str,
        /// What was asked.
        what: String,
        /// What to do instead.
        instead: String,
    },
    /// No memory of that size can be had.
    #[error(
        "{backend}: cannot allocate {bytes} bytes; use a smaller quantization, a shorter context or a smaller model"
    )]
    OutOfMemory {
        /// The backend's name.
        backend: &'static str,
        /// Bytes asked for.
        bytes: usize,
    },
    /// The library beneath reported an error.
    #[error("{backend}: {op}: {message}")]
    Backend {
        /// The backend's name.
        backend: &'static str,
        /// The operation.
        op: &'static str,
        /// What the library said.
        message: String,
    },
}
