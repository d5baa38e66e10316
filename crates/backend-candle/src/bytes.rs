//! Element types, and tensors to and from bytes.

use biplane_backend::{DType, Error, Result, Shape};
use bytemuck::{AnyBitPattern, NoUninit};
use candle_core::{CpuStorage, Device, Storage, Tensor, WithDType};
use half::{bf16, f16};

use crate::{NAME, cpu, failed, memory};

// Bytes are little-endian by contract; here they are the machine's.
const _: () = assert!(cfg!(target_endian = "little"));

/// candle's name of an element type on a device.
pub(crate) fn candle_dtype(dtype: DType, device: &Device) -> candle_core::DType {
    match dtype {
        DType::F32 => candle_core::DType::F32,
        DType::F16 => candle_core::DType::F16,
        DType::BF16 => candle_core::DType::BF16,
        DType::U32 => candle_core::DType::U32,
        DType::I32 if device.is_cpu() => candle_core::DType::I32,
        // candle's kernels for GPUs do not know the narrow one.
        DType::I32 => candle_core::DType::I64,
        DType::U8 => candle_core::DType::U8,
    }
}

/// A tensor of little-endian row-major bytes, however aligned.
pub(crate) fn from_bytes(
    bytes: &[u8],
    dtype: DType,
    shape: Shape,
    device: &Device,
) -> Result<Tensor> {
    let op = "from_bytes";
    let expected = shape.numel().saturating_mul(dtype.size());
    if bytes.len() != expected {
        return Err(Error::Bytes {
            op,
            expected,
            got: bytes.len(),
        });
    }
    memory::check(shape, dtype, device)?;
    match dtype {
        DType::F32 => elements::<f32>(bytes, shape, device),
        DType::F16 => elements::<f16>(bytes, shape, device),
        DType::BF16 => elements::<bf16>(bytes, shape, device),
        DType::U32 => elements::<u32>(bytes, shape, device),
        DType::I32 if device.is_cpu() => elements::<i32>(bytes, shape, device),
        DType::I32 => each::<i32, i64>(bytes, shape, device),
        DType::U8 => elements::<u8>(bytes, shape, device),
    }
}

fn elements<T: AnyBitPattern + WithDType>(
    bytes: &[u8],
    shape: Shape,
    device: &Device,
) -> Result<Tensor> {
    each::<T, T>(bytes, shape, device)
}

fn each<T: AnyBitPattern, U: From<T> + WithDType>(
    bytes: &[u8],
    shape: Shape,
    device: &Device,
) -> Result<Tensor> {
    let size = size_of::<T>();
    let mut values = memory::reserve::<U>(bytes.len() / size)?;
    let read = bytes
        .chunks_exact(size)
        .map(bytemuck::pod_read_unaligned::<T>);
    values.extend(read.map(U::from));
    Tensor::from_vec(values, shape.as_slice(), device).map_err(failed("from_bytes"))
}

/// Zeros on the processor, of which `n` from the given element on are for use: [`cpu::zeros_in_large_pages`].
pub(crate) fn zeros_in_large_pages(n: usize, dtype: DType) -> Result<(Tensor, usize)> {
    match dtype {
        DType::F32 => in_large_pages::<f32>(n),
        DType::F16 => in_large_pages::<f16>(n),
        DType::BF16 => in_large_pages::<bf16>(n),
        DType::U32 => in_large_pages::<u32>(n),
        DType::I32 => in_large_pages::<i32>(n),
        DType::U8 => in_large_pages::<u8>(n),
    }
}

fn in_large_pages<T: AnyBitPattern + WithDType>(n: usize) -> Result<(Tensor, usize)> {
    let (zeros, start) = cpu::zeros_in_large_pages::<T>(n)?;
    let len = zeros.len();
    let all = Tensor::from_vec(zeros, len, &Device::Cpu).map_err(failed("zeros"))?;
    Ok((all, start))
}

/// Row-major little-endian bytes.
pub(crate) fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>> {
    let op = "to_bytes";
    if tensor.elem_count() == 0 {
        return Ok(Vec::new());
    }
    let tensor = tensor
        .to_device(&Device::Cpu)
        .and_then(|t| t.contiguous())
        .map_err(failed(op))?;
    let (storage, layout) = tensor.storage_and_layout();
    let start = layout.start_offset();
    let range = start..start + tensor.elem_count();
    let bytes = match &*storage {
        Storage::Cpu(CpuStorage::F32(v)) => copied(v.get(range)),
        Storage::Cpu(CpuStorage::F16(v)) => copied(v.get(range)),
        Storage::Cpu(CpuStorage::BF16(v)) => copied(v.get(range)),
        Storage::Cpu(CpuStorage::U32(v)) => copied(v.get(range)),
        Storage::Cpu(CpuStorage::I32(v)) => copied(v.get(range)),
        Storage::Cpu(CpuStorage::U8(v)) => copied(v.get(range)),
        // `I32` of a GPU.
        Storage::Cpu(CpuStorage::I64(v)) => {
            let narrow: Option<Vec<i32>> =
                v.get(range).map(|v| v.iter().map(|&v| v as i32).collect());
            copied(narrow.as_deref())
        }
        _ => None,
    };
    bytes.ok_or_else(|| Error::Backend {
        backend: NAME,
        op,
        message: format!("a {:?} tensor has no such bytes", tensor.dtype()),
    })
}

fn copied<T: NoUninit>(values: Option<&[T]>) -> Option<Vec<u8>> {
    Some(bytemuck::cast_slice(values?).to_vec())
}

#[cfg(test)]
mod tests {
    use biplane_backend::{Backend, Tensor as _};

    use super::*;
    use crate::CandleBackend;

    #[test]
    fn buffers_in_large_pages_are_zeros_of_their_own() {
        let backend = CandleBackend::new(biplane_backend::Device::Cpu).unwrap();
        for (dtype, cols) in [
            (DType::F32, 1),
            (DType::F16, 3 << 16),
            (DType::F16, 600_001),
            (DType::F32, (1 << 20) + 1),
            (DType::U8, (2 << 20) - 1),
            (DType::U8, 2 << 20),
        ] {
            for n in [0, 1, 3, 9] {
                let shape = Shape::from([2, cols]);
                let mut each = backend.zeros_each(n, shape, dtype).unwrap();
                let ones = vec![1; cols * dtype.size()];
                let ones = backend.from_bytes(&ones, dtype, [1, cols]).unwrap();
                for i in (0..n).step_by(2) {
                    let one = each.remove(i).write_slice(0, i / 2 % 2, &ones).unwrap();
                    each.insert(i, one);
                }
                for (i, one) in each.iter().enumerate() {
                    assert_eq!((one.shape(), one.dtype()), (shape, dtype));
                    let bytes = one.to_bytes().unwrap();
                    for (row, bytes) in bytes.chunks(cols * dtype.size()).enumerate() {
                        let want = u8::from(i % 2 == 0 && row == i / 2 % 2);
                        assert!(bytes.iter().all(|&b| b == want), "{dtype} {cols} {n} {i}");
                    }
                }
            }
        }
    }
}
