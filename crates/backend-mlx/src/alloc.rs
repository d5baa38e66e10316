//! What can be allocated: MLX on the CPU writes through a null pointer when memory runs out, and its
//! axes are `i32`, so both are checked before MLX is asked.

use std::sync::OnceLock;

use biplane_backend::{DType, Device, Error, Result, Shape};

use crate::error::NAME;

/// Below this nobody asks the system how much memory is left.
const SMALL: usize = 64 << 20;

/// A shape as MLX takes it.
pub(crate) struct Dims {
    dims: [i32; Shape::MAX_RANK],
    rank: usize,
}

impl Dims {
    /// Checks that a tensor of this shape and type can exist on this machine.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] beyond the machine's memory, [`Error::Unsupported`] for an axis beyond
    /// an `i32`.
    pub(crate) fn new(shape: Shape, dtype: DType) -> Result<Self> {
        let bytes = byte_len(shape, dtype)?;
        if bytes > limit() {
            return Err(out_of_memory(bytes));
        }
        let mut dims = [1; Shape::MAX_RANK];
        for (to, &len) in dims.iter_mut().zip(shape.as_slice()) {
            *to = i32::try_from(len).map_err(|_| Error::Unsupported {
                backend: NAME,
                what: format!("hold an axis of {len} elements"),
                instead: format!("keep every axis below {}", i32::MAX),
            })?;
        }
        Ok(Dims {
            dims,
            rank: shape.rank(),
        })
    }

    pub(crate) fn as_slice(&self) -> &[i32] {
        &self.dims[..self.rank]
    }
}

/// Bytes of a tensor.
///
/// # Errors
/// [`Error::OutOfMemory`] when no allocation can have that length.
pub(crate) fn byte_len(shape: Shape, dtype: DType) -> Result<usize> {
    // A shape without elements needs nothing, however long its other axes are.
    if shape.as_slice().contains(&0) {
        return Ok(0);
    }
    shape
        .as_slice()
        .iter()
        .try_fold(dtype.size(), |bytes, &len| bytes.checked_mul(len))
        .filter(|&bytes| isize::try_from(bytes).is_ok())
        .ok_or(out_of_memory(usize::MAX))
}

/// Checks that a large buffer can be had now.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn reserve(bytes: usize, device: Device) -> Result<()> {
    if bytes < SMALL || bytes <= available(device) {
        return Ok(());
    }
    Err(out_of_memory(bytes))
}

pub(crate) fn out_of_memory(bytes: usize) -> Error {
    Error::OutOfMemory {
        backend: NAME,
        bytes,
    }
}

/// The most MLX means to use on this machine.
pub(crate) fn limit() -> usize {
    static LIMIT: OnceLock<usize> = OnceLock::new();
    *LIMIT.get_or_init(|| match mlx_rs::memory::memory_limit() {
        Ok(limit) if limit > 0 => limit,
        _ => isize::MAX as usize,
    })
}

fn available(device: Device) -> usize {
    let used = mlx_rs::memory::active_memory().unwrap_or_default();
    let ours = limit().saturating_sub(used);
    match host_available() {
        Some(host) if device.is_cpu() => ours.min(host),
        _ => ours,
    }
}

/// Memory that programs can still have (Linux): free, or held by caches that can go.
fn host_available() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(shape: impl Into<Shape>, dtype: DType) -> Result<Dims> {
        Dims::new(shape.into(), dtype)
    }

    #[test]
    fn impossible_shapes_are_refused() {
        crate::device::open(Device::Cpu).unwrap();
        for shape in [
            Shape::from([1 << 20, 1 << 20, 1 << 5]),
            Shape::from([usize::MAX, 2]),
            Shape::from([1 << 62]),
        ] {
            assert!(matches!(
                dims(shape, DType::F32),
                Err(Error::OutOfMemory { backend: "mlx", .. })
            ));
        }
        assert!(matches!(
            dims([1 << 31], DType::U8),
            Err(Error::Unsupported { .. })
        ));
        assert_eq!(dims([3, 0], DType::F32).unwrap().as_slice(), [3, 0]);
        assert!(dims([], DType::F32).unwrap().as_slice().is_empty());
        assert!(reserve(1, Device::Cpu).is_ok());
        assert!(matches!(
            reserve(isize::MAX as usize, Device::Cpu),
            Err(Error::OutOfMemory { .. })
        ));
    }
}
