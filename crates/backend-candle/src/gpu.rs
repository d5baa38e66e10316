//! What candle has fused for GPUs. The same calls work on the processor, where tests run them.

use biplane_backend::{DType, Result, RopeAngles, Tensor};
use candle_core::Tensor as Inner;

use crate::{CandleTensor, failed};

/// RMSNorm with a weight of the same element type; candle's kernels sum in `f32`.
pub(crate) fn rms_norm(x: &CandleTensor, weight: &CandleTensor, eps: f32) -> Result<CandleTensor> {
    let run = || candle_nn::ops::rms_norm(&x.inner.contiguous()?, &weight.inner.contiguous()?, eps);
    let inner = run().map_err(failed("rms_norm"))?;
    Ok(CandleTensor::new(inner, x.shape(), x.dtype()))
}

/// Softmax over the last axis; candle's kernels sum in `f32`.
pub(crate) fn softmax(x: &CandleTensor) -> Result<CandleTensor> {
    let run = || candle_nn::ops::softmax_last_dim(&x.inner.contiguous()?);
    let inner = run().map_err(failed("softmax"))?;
    Ok(CandleTensor::new(inner, x.shape(), x.dtype()))
}

/// RoPE of whole heads in halves. Angles stay in `f32`: candle wants `x` in their element type.
pub(crate) fn rope(
    x: &CandleTensor,
    angles: &RopeAngles<CandleTensor>,
    [tokens, heads, head_dim]: [usize; 3],
) -> Result<CandleTensor> {
    let wide = x.cast(DType::F32)?;
    let run = || {
        let x = wide
            .inner
            .contiguous()?
            .reshape((1, tokens, heads, head_dim))?;
        candle_nn::rotary_emb::rope_thd(&x, &angles.cos.inner, &angles.sin.inner)?
            .reshape((tokens, heads, head_dim))
    };
    let inner = run().map_err(failed("rope"))?;
    CandleTensor::new(inner, x.shape(), DType::F32).cast(x.dtype())
}

/// Positions of the largest elements of an axis, the lowest among equals: candle's kernels give any
/// of them. An axis with a NaN gives its last position.
pub(crate) fn first_max(x: &Inner, axis: usize) -> candle_core::Result<Inner> {
    let len = x.dim(axis)? as u32;
    let mut dims = vec![1; x.rank()];
    dims[axis] = x.dim(axis)?;
    let at = Inner::arange(0, len, x.device())?
        .reshape(dims)?
        .broadcast_as(x.shape())?
        .contiguous()?;
    let last = Inner::full(len - 1, x.shape(), x.device())?.contiguous()?;
    x.contiguous()?
        .broadcast_eq(&x.max_keepdim(axis)?)?
        .where_cond(&at, &last)?
        .min_keepdim(axis)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CandleBackend;
    use biplane_backend::{Backend, Device, RopeAngles, defaults};

    fn wave(backend: &CandleBackend, shape: [usize; 3]) -> CandleTensor {
        let n = shape.iter().product::<usize>();
        let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
        backend.from_f32s(&values, shape).unwrap()
    }

    fn assert_close(a: &CandleTensor, b: &CandleTensor) {
        assert_eq!((a.shape(), a.dtype()), (b.shape(), b.dtype()));
        for (a, b) in a.to_f32s().unwrap().iter().zip(b.to_f32s().unwrap()) {
            assert!((a - b).abs() < 1e-5, "{a} {b}");
        }
    }

    #[test]
    fn candles_fused_operations_equal_the_defaults() {
        let backend = CandleBackend::new(Device::Cpu).unwrap();
        // A view, as models pass them.
        let x = wave(&backend, [3, 5, 16]).swap_axes(0, 1).unwrap();
        let weight = wave(&backend, [1, 1, 16]).reshape([16]).unwrap();
        assert_close(
            &rms_norm(&x, &weight, 1e-5).unwrap(),
            &defaults::rms_norm(&x, &weight, 1e-5).unwrap(),
        );
        assert_close(&softmax(&x).unwrap(), &defaults::softmax(&x).unwrap());
        let freqs: Vec<f32> = (0..8).map(|i| 0.5f32.powi(i)).collect();
        let angles = RopeAngles::new(&backend, &[9, 3, 0, 1, 700], &freqs, false).unwrap();
        assert_close(
            &rope(&x, &angles, [5, 3, 16]).unwrap(),
            &defaults::rope(&x, &angles).unwrap(),
        );
    }

    #[test]
    fn the_first_of_equal_maxima_is_found_along_any_axis() {
        let backend = CandleBackend::new(Device::Cpu).unwrap();
        let x = backend
            .from_f32s(&[1.0, 7.0, 7.0, 2.0, 7.0, 2.0], [2, 3])
            .unwrap();
        let at = |axis| {
            let at = first_max(&x.inner, axis).unwrap();
            at.flatten_all().unwrap().to_vec1::<u32>().unwrap()
        };
        assert_eq!(at(1), [1, 1]);
        assert_eq!(at(0), [1, 0, 0]);
    }
}
