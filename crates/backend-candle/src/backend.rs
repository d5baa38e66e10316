//! Opening a device and bringing bytes to it.

use std::ops::Range;

use biplane_backend::{
    Backend, DType, Device, Error, KvFormat, KvSpec, KvType, MemoryStats, PackedMatrix, Result,
    Shape,
};
use candle_core::utils::{cuda_is_available, metal_is_available};

use crate::{
    CandleMatrix, CandleTensor, NAME, bytes, bytes::candle_dtype, cpu, cpu::Arithmetic, failed,
    memory,
};

/// candle on one device.
#[derive(Clone, Debug)]
pub struct CandleBackend {
    device: Device,
    inner: candle_core::Device,
    /// GPUs round where candle has kernels for blocks.
    arithmetic: Arithmetic,
}

impl CandleBackend {
    fn open(device: Device) -> Result<Self> {
        let opened = match device {
            Device::Auto => return Ok(Self::gpu().unwrap_or_else(Self::cpu)),
            Device::Gpu => {
                return Self::gpu().ok_or_else(|| Error::Unsupported {
                    backend: NAME,
                    what: "find a GPU here".into(),
                    instead: "build with `--features cuda` or `--features metal`, or use cpu"
                        .into(),
                });
            }
            Device::Cpu => return Ok(Self::cpu()),
            Device::Cuda(_) if !cuda_is_available() => return Err(not_built(device, "cuda")),
            Device::Metal if !metal_is_available() => return Err(not_built(device, "metal")),
            Device::Cuda(n) => candle_core::Device::new_cuda(n),
            Device::Metal => candle_core::Device::new_metal(0),
        };
        let inner = opened.map_err(|e| Error::Unsupported {
            backend: NAME,
            what: format!("open device {device} ({e})"),
            instead: "use another device, such as cpu".into(),
        })?;
        Ok(CandleBackend {
            device,
            inner,
            arithmetic: Arithmetic::Rounded,
        })
    }

    fn cpu() -> Self {
        CandleBackend {
            device: Device::Cpu,
            inner: candle_core::Device::Cpu,
            arithmetic: Arithmetic::usual(),
        }
    }

    /// The first GPU this build supports and the machine has.
    fn gpu() -> Option<Self> {
        [Device::Cuda(0), Device::Metal]
            .into_iter()
            .find_map(|device| match Self::open(device) {
                Ok(backend) => Some(backend),
                Err(e) => {
                    tracing::debug!("not using {device}: {e}");
                    None
                }
            })
    }
}

fn not_built(device: Device, feature: &str) -> Error {
    Error::Unsupported {
        backend: NAME,
        what: format!("use device {device} in this build"),
        instead: format!("build with `--features {feature}` or use cpu"),
    }
}

impl Backend for CandleBackend {
    type Tensor = CandleTensor;
    type Matrix = CandleMatrix;

    const NAME: &'static str = NAME;

    fn new(device: Device) -> Result<Self> {
        Self::open(device)
    }

    fn with_exact(mut self, exact: bool) -> Self {
        self.arithmetic = match (exact, self.inner.is_cpu()) {
            (true, _) => Arithmetic::Exact,
            (false, true) => Arithmetic::usual(),
            (false, false) => Arithmetic::Rounded,
        };
        self
    }

    fn device(&self) -> Device {
        self.device
    }

    fn zeros(&self, shape: impl Into<Shape>, dtype: DType) -> Result<CandleTensor> {
        let shape = shape.into();
        memory::check(shape, dtype, &self.inner)?;
        candle_core::Tensor::zeros(
            shape.as_slice(),
            candle_dtype(dtype, &self.inner),
            &self.inner,
        )
        .map(|t| CandleTensor::new(t, shape, dtype))
        .map_err(failed("zeros"))
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize().map_err(failed("synchronize"))
    }

    /// On the processor they lie in large pages, small ones in one piece.
    fn zeros_each(
        &self,
        n: usize,
        shape: impl Into<Shape>,
        dtype: DType,
    ) -> Result<Vec<CandleTensor>> {
        let shape = shape.into();
        let len = shape.numel();
        if !self.inner.is_cpu() || len == 0 {
            return (0..n).map(|_| self.zeros(shape, dtype)).collect();
        }
        let small = len.saturating_mul(dtype.size()) < cpu::LARGE_PAGE;
        let at_once = if small { n } else { 1 };
        let mut each = Vec::with_capacity(n);
        while each.len() < n {
            let all = Shape::from([at_once.saturating_mul(len)]);
            memory::check(all, dtype, &self.inner)?;
            let (all, start) = bytes::zeros_in_large_pages(all.numel(), dtype)?;
            for i in 0..at_once {
                let one = all
                    .narrow(0, start + i * len, len)
                    .and_then(|t| t.reshape(shape.as_slice()))
                    .map_err(failed("zeros"))?;
                each.push(CandleTensor::new(one, shape, dtype));
            }
        }
        Ok(each)
    }

    fn from_bytes(
        &self,
        bytes: &[u8],
        dtype: DType,
        shape: impl Into<Shape>,
    ) -> Result<CandleTensor> {
        let shape = shape.into();
        let tensor = bytes::from_bytes(bytes, dtype, shape, &self.inner)?;
        Ok(CandleTensor::new(tensor, shape, dtype))
    }

    /// A decode step's attention takes as long as its keys and values take to come from memory.
    fn kv_format(&self, wanted: KvType, activations: DType) -> Result<KvFormat> {
        let Some(bits) = wanted.bits() else {
            return Ok(KvFormat::Plain(
                match (self.inner.is_cpu(), self.arithmetic, activations) {
                    (true, Arithmetic::Rounded, DType::F32) => DType::F16,
                    _ => activations,
                },
            ));
        };
        if !self.inner.is_cpu() {
            return Err(Error::Unsupported {
                backend: NAME,
                what: format!("keep keys and values in {bits} bits on {}", self.device),
                instead: "leave them as they are (--kv-type auto), or use mlx or the cpu".into(),
            });
        }
        Ok(KvFormat::Quantized(KvSpec {
            bits,
            group_size: 32,
            scales: DType::F16,
        }))
    }

    fn load_matrix(&self, packed: &PackedMatrix<'_>, activations: DType) -> Result<CandleMatrix> {
        self.take_matrix(packed, activations, &|_| ())
    }

    fn take_matrix(
        &self,
        packed: &PackedMatrix<'_>,
        activations: DType,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<CandleMatrix> {
        CandleMatrix::load(packed, activations, &self.inner, self.arithmetic, taken)
    }

    /// Of the whole device, whoever uses it; candle keeps nothing of its own for reuse.
    fn memory(&self) -> MemoryStats {
        match memory::on_device(&self.inner) {
            Some((free, all)) => MemoryStats {
                active: all.saturating_sub(free),
                limit: Some(all),
                ..MemoryStats::default()
            },
            None => MemoryStats::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_is_not_built_in_names_its_feature() {
        assert_eq!(
            CandleBackend::new(Device::Cpu).unwrap().device(),
            Device::Cpu
        );
        assert_ne!(
            CandleBackend::new(Device::Auto).unwrap().device(),
            Device::Auto
        );
        if !cuda_is_available() {
            let error = CandleBackend::new(Device::Cuda(1)).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }));
            assert!(error.to_string().contains("--features cuda"), "{error}");
        }
    }

    #[test]
    fn wrong_bytes_and_absurd_shapes_are_errors() {
        let b = CandleBackend::new(Device::Cpu).unwrap();
        assert!(matches!(
            b.from_bytes(&[0; 7], DType::F32, [2]),
            Err(Error::Bytes {
                expected: 8,
                got: 7,
                ..
            })
        ));
        assert!(matches!(
            b.zeros([1 << 31, 1 << 31], DType::F32),
            Err(Error::OutOfMemory { .. })
        ));
    }
}
