//! Refuses tensors that memory cannot hold before candle is asked, which would abort.

use std::{alloc::Layout, sync::OnceLock};

use biplane_backend::{DType, Error, Result, Shape};
use bytemuck::AnyBitPattern;
use candle_core::Device;

use crate::NAME;

/// Below this an allocation is not looked at: 64 MiB.
const SMALL: usize = 64 << 20;

fn out_of_memory(bytes: usize) -> Error {
    Error::OutOfMemory {
        backend: NAME,
        bytes,
    }
}

/// Bytes of `shape`, or an error where the address space or the machine has not that many.
pub(crate) fn check(shape: Shape, dtype: DType, device: &Device) -> Result<usize> {
    // An axis of length 0 counts as 1: candle multiplies strides without checking.
    let most = shape
        .as_slice()
        .iter()
        .try_fold(dtype.size(), |n, &d| n.checked_mul(d.max(1)))
        .filter(|&n| n <= isize::MAX as usize)
        .ok_or_else(|| out_of_memory(usize::MAX))?;
    let bytes = if shape.as_slice().contains(&0) {
        0
    } else {
        most
    };
    if bytes > SMALL && device.is_cpu() {
        if bytes > physical() {
            return Err(out_of_memory(bytes));
        }
        reserve::<u8>(bytes)?;
    } else if bytes > SMALL
        && let Some((_, all)) = on_device(device)
        && bytes > all
    {
        return Err(out_of_memory(bytes));
    }
    Ok(bytes)
}

/// Bytes that are free on a GPU with memory of its own, and all it has.
#[cfg(feature = "cuda")]
pub(crate) fn on_device(device: &Device) -> Option<(usize, usize)> {
    match device {
        Device::Cuda(device) => device.cuda_stream().context().mem_get_info().ok(),
        _ => None,
    }
}

#[cfg(not(feature = "cuda"))]
pub(crate) fn on_device(_: &Device) -> Option<(usize, usize)> {
    None
}

/// An empty vector with room for `n` elements.
pub(crate) fn reserve<T>(n: usize) -> Result<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n)
        .map_err(|_| out_of_memory(n.saturating_mul(size_of::<T>())))?;
    Ok(v)
}

/// Zeros, which take no memory before they are written where the system gives them so.
pub(crate) fn zeros<T: AnyBitPattern>(n: usize) -> Result<Vec<T>> {
    let bytes = n.saturating_mul(size_of::<T>());
    let layout = Layout::array::<T>(n).map_err(|_| out_of_memory(bytes))?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout has a size; all bits zero are a value; the vector gives the memory back by the
    // same layout.
    unsafe {
        let start = std::alloc::alloc_zeroed(layout).cast::<T>();
        match start.is_null() {
            true => Err(out_of_memory(bytes)),
            false => Ok(Vec::from_raw_parts(start, n, n)),
        }
    }
}

/// Bytes of memory the machine has: systems that overcommit grant more than that.
fn physical() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        // SAFETY: `sysconf` only reads its argument and the system's configuration.
        let (pages, size) = unsafe {
            (
                libc::sysconf(libc::_SC_PHYS_PAGES),
                libc::sysconf(libc::_SC_PAGESIZE),
            )
        };
        match (usize::try_from(pages), usize::try_from(size)) {
            (Ok(pages), Ok(size)) if pages > 0 => pages.saturating_mul(size),
            _ => usize::MAX,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absurd_shapes_are_refused() {
        let check = |shape: Shape| check(shape, DType::F32, &Device::Cpu);
        assert_eq!(check([3, 4].into()).unwrap(), 48);
        assert_eq!(check([3, 0].into()).unwrap(), 0);
        assert_eq!(check([].into()).unwrap(), 4);
        for shape in [
            Shape::from([usize::MAX]),
            Shape::from([1 << 40]),
            Shape::from([1 << 31, 1 << 31, 1 << 31]),
            Shape::from([usize::MAX, usize::MAX, 0]),
        ] {
            assert!(matches!(check(shape), Err(Error::OutOfMemory { .. })));
        }
    }
}
