//! Operations that move elements and compute none.

use std::ops::Range;

use biplane_backend::{DType, Error, Result, Shape, Tensor};
use mlx_rs::error::Exception;
use mlx_rs::ops as mlx;
use mlx_rs::ops::indexing::{ArrayIndex, ArrayIndexOp, TryIndexOp};
use mlx_rs::{Array, Stream};

use crate::MlxTensor;
use crate::error::failed;

pub(crate) fn reshape(x: &MlxTensor, shape: Shape) -> Result<MlxTensor> {
    if shape == x.shape() {
        return Ok(x.clone());
    }
    // Saturated counts would make any two impossible shapes equal.
    if shape.numel() != x.shape().numel() || shape.numel() == usize::MAX {
        return Err(Error::Shape {
            op: "reshape",
            lhs: x.shape(),
            rhs: shape,
        });
    }
    let out = x.derive("reshape", shape, x.dtype(), |dims| x.array().reshape(dims))?;
    Ok(out.with_id_limit(x.id_limit()))
}

pub(crate) fn swap_axes(x: &MlxTensor, a: usize, b: usize) -> Result<MlxTensor> {
    let shape = x.shape().swapped("swap_axes", a, b)?;
    let out = x.derive("swap_axes", shape, x.dtype(), |_| {
        x.array().swap_axes(a as i32, b as i32)
    })?;
    Ok(out.with_id_limit(x.id_limit()))
}

pub(crate) fn broadcast_to(x: &MlxTensor, shape: Shape) -> Result<MlxTensor> {
    let op = "broadcast_to";
    if x.shape().broadcast(op, &shape)? != shape {
        return Err(Error::Shape {
            op,
            lhs: x.shape(),
            rhs: shape,
        });
    }
    let out = x.derive(op, shape, x.dtype(), |dims| {
        mlx::broadcast_to(x.array(), dims)
    })?;
    Ok(out.with_id_limit(x.id_limit()))
}

pub(crate) fn concat(tensors: &[&MlxTensor], axis: usize) -> Result<MlxTensor> {
    let op = "concat";
    let Some((first, rest)) = tensors.split_first() else {
        return Err(Error::OutOfRange {
            op,
            index: 0,
            limit: 0,
        });
    };
    let mut len = first.shape().dim(op, axis)?;
    let mut id_limit = first.id_limit();
    for t in rest {
        if t.dtype() != first.dtype() {
            return Err(Error::DType {
                op,
                got: t.dtype(),
                expected: first.dtype().name(),
            });
        }
        let mismatch = Error::Shape {
            op,
            lhs: first.shape(),
            rhs: t.shape(),
        };
        let Ok(dim) = t.shape().dim(op, axis) else {
            return Err(mismatch);
        };
        if t.shape().with_dim(op, axis, 0)? != first.shape().with_dim(op, axis, 0)? {
            return Err(mismatch);
        }
        len = len.saturating_add(dim);
        id_limit = id_limit.zip(t.id_limit()).map(|(a, b)| a.max(b));
    }
    let shape = first.shape().with_dim(op, axis, len)?;
    let arrays: Vec<_> = tensors
        .iter()
        .filter(|t| t.shape().numel() > 0)
        .map(|t| t.array())
        .collect();
    let out = first.derive(op, shape, first.dtype(), |_| {
        mlx::concatenate(&arrays, axis as i32)
    })?;
    Ok(out.with_id_limit(id_limit))
}

/// The elements `start .. end` of an axis, all of the axes before it.
fn range(axis: usize, start: usize, end: usize) -> Vec<ArrayIndexOp<'static>> {
    let mut index = vec![(..).index_op(); axis];
    // Both fit: they do not exceed a length that is an `i32`.
    index.push((start as i32..end as i32).index_op());
    index
}

/// Checks a range of an axis; gives its end.
fn range_end(
    op: &'static str,
    shape: Shape,
    axis: usize,
    start: usize,
    len: usize,
) -> Result<usize> {
    let limit = shape.dim(op, axis)?;
    match start.checked_add(len) {
        Some(end) if end <= limit => Ok(end),
        end => Err(Error::OutOfRange {
            op,
            index: end.unwrap_or(usize::MAX),
            limit,
        }),
    }
}

pub(crate) fn narrow(x: &MlxTensor, axis: usize, start: usize, len: usize) -> Result<MlxTensor> {
    let op = "narrow";
    let end = range_end(op, x.shape(), axis, start, len)?;
    if len == x.shape().dim(op, axis)? {
        return Ok(x.clone());
    }
    let shape = x.shape().with_dim(op, axis, len)?;
    let out = x.derive(op, shape, x.dtype(), |_| {
        x.array().try_index(&range(axis, start, end)[..])
    })?;
    Ok(out.with_id_limit(x.id_limit()))
}

pub(crate) fn write_slice(
    x: MlxTensor,
    axis: usize,
    start: usize,
    src: &MlxTensor,
) -> Result<MlxTensor> {
    let op = "write_slice";
    let limit = x.shape().dim(op, axis)?;
    if src.dtype() != x.dtype() {
        return Err(Error::DType {
            op,
            got: src.dtype(),
            expected: x.dtype().name(),
        });
    }
    let same_elsewhere = src.shape().rank() == x.shape().rank()
        && src.shape().with_dim(op, axis, limit)? == x.shape();
    if !same_elsewhere {
        return Err(Error::Shape {
            op,
            lhs: x.shape(),
            rhs: src.shape(),
        });
    }
    let len = src.shape().dim(op, axis)?;
    let end = range_end(op, x.shape(), axis, start, len)?;
    if src.shape().numel() == 0 {
        return Ok(x);
    }
    let id_limit = x.id_limit().zip(src.id_limit()).map(|(a, b)| a.max(b));
    let (shape, dtype, device) = (x.shape(), x.dtype(), x.device());
    // The last handle of the old array goes before anything is computed, so MLX writes in place.
    let old = x.into_array();
    let new = match len == limit && limit > 1 {
        // In two parts: of one that covers all, MLX makes another handle of the source, and what is
        // written in place later would show there.
        true => {
            let first = src.narrow(axis, 0, limit - 1)?;
            let last = src.narrow(axis, limit - 1, 1)?;
            slice_update(&old, first.array(), axis, 0..limit - 1)
                .and_then(|new| slice_update(&new, last.array(), axis, limit - 1..limit))
        }
        false => slice_update(&old, src.array(), axis, start..end),
    }
    .map_err(failed(op))?;
    drop(old);
    Ok(MlxTensor::make(op, shape, dtype, device, |_| Ok(new))?.with_id_limit(id_limit))
}

/// One node of the graph: mlx-rs's way makes several.
fn slice_update(
    old: &Array,
    src: &Array,
    axis: usize,
    range: Range<usize>,
) -> Result<Array, Exception> {
    let rank = old.ndim();
    let (mut starts, mut stops) = ([0; Shape::MAX_RANK], [0; Shape::MAX_RANK]);
    let strides = [1; Shape::MAX_RANK];
    stops[..rank].copy_from_slice(old.shape());
    // Both fit: they do not exceed a length that is an `i32`.
    (starts[axis], stops[axis]) = (range.start as i32, range.end as i32);
    // SAFETY: all pointers live beyond the call and point to `rank` numbers; `new` is a handle of its
    // own.
    unsafe {
        let mut new = mlx_sys::mlx_array_new();
        let status = mlx_sys::mlx_slice_update(
            &mut new,
            old.as_ptr(),
            src.as_ptr(),
            starts.as_ptr(),
            rank,
            stops.as_ptr(),
            rank,
            strides.as_ptr(),
            rank,
            Stream::thread_local_or_default().as_ptr(),
        );
        let new = Array::from_ptr(new);
        match status {
            0 => Ok(new),
            _ => Err(Exception::custom("MLX refused to write a slice")),
        }
    }
}

pub(crate) fn take_rows(x: &MlxTensor, ids: &MlxTensor) -> Result<MlxTensor> {
    let op = "take_rows";
    let [rows, cols] = x.shape().dims(op)?;
    let n = check_ids(op, ids, rows)?;
    let out = x.derive(op, [n, cols].into(), x.dtype(), |_| {
        x.array().take_axis(ids.array(), 0)
    })?;
    Ok(out.with_id_limit(x.id_limit()))
}

/// Checks that `ids` is a `U32` vector of numbers below `rows`; gives its length. Waits for the
/// device only where no bound of the numbers is known.
pub(crate) fn check_ids(op: &'static str, ids: &MlxTensor, rows: usize) -> Result<usize> {
    if ids.dtype() != DType::U32 {
        return Err(Error::DType {
            op,
            got: ids.dtype(),
            expected: "u32",
        });
    }
    let [n] = ids.shape().dims(op)?;
    if ids.id_limit().is_some_and(|limit| limit as usize <= rows) {
        return Ok(n);
    }
    match ids.to_u32s()?.into_iter().find(|&id| id as usize >= rows) {
        None => Ok(n),
        Some(id) => Err(Error::OutOfRange {
            op,
            index: id as usize,
            limit: rows,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MlxBackend;
    use biplane_backend::{Backend, Device, ReduceOp};

    fn backend() -> MlxBackend {
        MlxBackend::new(Device::Cpu).unwrap()
    }

    fn ids(values: &[u32]) -> MlxTensor {
        backend().from_u32s(values, [values.len()]).unwrap()
    }

    #[test]
    fn bounds_of_ids_are_known_without_computing() {
        let a = ids(&[3, 1]);
        assert_eq!(a.id_limit(), Some(4));
        assert_eq!(ids(&[]).id_limit(), Some(0));
        assert_eq!(ids(&[u32::MAX]).id_limit(), None);
        let b = MlxTensor::concat(&[&a, &ids(&[9])], 0).unwrap();
        assert_eq!(b.narrow(0, 0, 1).unwrap().id_limit(), Some(10));
        let c = b.reshape([1, 3]).unwrap().swap_axes(0, 1).unwrap();
        assert_eq!(c.broadcast_to([3, 4]).unwrap().id_limit(), Some(10));
        let written = a.clone().write_slice(0, 1, &ids(&[7])).unwrap();
        assert_eq!(written.id_limit(), Some(8));
        assert_eq!(a.cast(DType::F32).unwrap().id_limit(), None);
        let x = backend().from_f32s(&[1.0, 2.0], [1, 2]).unwrap();
        let largest = x.reduce(ReduceOp::ArgMax, 1).unwrap();
        assert_eq!(largest.id_limit(), Some(2));
        assert_eq!(x.id_limit(), None);
    }

    #[test]
    fn rows_out_of_range_are_found_with_and_without_a_bound() {
        let x = backend().from_f32s(&[0.0, 1.0, 2.0, 3.0], [2, 2]).unwrap();
        let known = ids(&[1, 2]);
        let unknown = known.cast(DType::F32).unwrap().cast(DType::U32).unwrap();
        assert_eq!(unknown.id_limit(), None);
        for bad in [known.clone(), unknown.clone()] {
            assert!(matches!(
                take_rows(&x, &bad),
                Err(Error::OutOfRange {
                    op: "take_rows",
                    index: 2,
                    limit: 2
                })
            ));
        }
        // The bound of a part may be too wide: the part itself is in range.
        for good in [known.narrow(0, 0, 1), unknown.narrow(0, 0, 1)] {
            let rows = take_rows(&x, &good.unwrap()).unwrap();
            assert_eq!(rows.to_f32s().unwrap(), [2.0, 3.0]);
        }
    }

    #[test]
    fn slices_are_written_in_place() {
        const LEN: usize = 32 << 20;
        let backend = backend();
        let mut cache = backend.zeros([4, LEN / 16], DType::F32).unwrap();
        backend.eval(&[&cache]).unwrap();
        let row = backend.from_f32s(&[1.0; 4 * 8], [4, 8]).unwrap();
        let address = |t: &MlxTensor| t.array().as_slice::<f32>().as_ptr();
        let before = address(&cache);
        for step in 0..3 {
            cache = cache.write_slice(1, step * 8, &row).unwrap();
            backend.eval(&[&cache]).unwrap();
            assert_eq!(address(&cache), before);
        }
        let written = cache.narrow(1, 20, 8).unwrap().to_f32s().unwrap();
        assert_eq!(written[..8], [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn no_tensor_exceeds_the_machine() {
        let x = backend().from_f32s(&[1.0], [1]).unwrap();
        for shape in [[1 << 20, 1 << 20, 1 << 5], [usize::MAX, usize::MAX, 1]] {
            assert!(matches!(
                x.broadcast_to(shape),
                Err(Error::OutOfMemory { .. })
            ));
            assert!(matches!(
                backend().zeros(shape, DType::U8),
                Err(Error::OutOfMemory { .. })
            ));
        }
        let long = x.broadcast_to([1 << 20, 1]).unwrap();
        let wide = x.broadcast_to([1, 1 << 20]).unwrap();
        assert!(matches!(long.matmul(&wide), Err(Error::OutOfMemory { .. })));
        assert!(matches!(
            backend().zeros([1 << 31], DType::U8),
            Err(Error::Unsupported { .. })
        ));
    }
}
