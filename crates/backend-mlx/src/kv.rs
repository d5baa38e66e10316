//! Quantized keys and values: MLX's affine groups, whose words of codes are kept as bytes.

use biplane_backend::defaults::{self, attention_quantized_dims, quantize_kv_shape, require_float};
use biplane_backend::{AttentionMask, DType, Device, KvSpec, QuantizedKv, Result, Shape, Tensor};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype, ops as mlx};

use crate::MlxTensor;

/// Groups that MLX's kernels take.
fn serves(spec: KvSpec) -> bool {
    matches!(spec.group_size, 32 | 64 | 128) && matches!(spec.bits, 4 | 8)
}

pub(crate) fn quantize(x: &MlxTensor, spec: KvSpec) -> Result<QuantizedKv<MlxTensor>> {
    let op = "quantize_kv";
    let shape = quantize_kv_shape(x, spec)?;
    if !serves(spec) || shape.numel() == 0 || shape.rank() < 2 {
        return defaults::quantize_kv(x, spec);
    }
    let (last, head_dim) = (shape.rank() - 1, shape.last(op)?);
    let groups = shape.with_dim(op, last, head_dim / spec.group_size)?;
    let mut rest = None;
    let bytes = shape.with_dim(op, last, spec.code_bytes(head_dim))?;
    let codes = x.derive(op, bytes, DType::U8, |_| {
        let (words, scales, biases) =
            mlx::quantize(x.array(), spec.group_size as i32, i32::from(spec.bits))?;
        rest = Some((scales, biases));
        words.view_dtype(Dtype::Uint8)
    })?;
    let lost = || Exception::custom("no scales");
    let (scales, biases) = rest.ok_or_else(lost).map_err(crate::error::failed(op))?;
    let kept = |array: Array| {
        x.derive(op, groups, x.dtype(), |_| Ok(array))?
            .cast(spec.scales)
    };
    Ok(QuantizedKv {
        codes,
        scales: kept(scales)?,
        biases: kept(biases)?,
        spec,
    })
}

pub(crate) fn dequantize(kept: &QuantizedKv<MlxTensor>, dtype: DType) -> Result<MlxTensor> {
    let op = "dequantize_kv";
    let shape = kept.shape(op)?;
    if !serves(kept.spec) || shape.numel() == 0 || shape.rank() < 2 || !dtype.is_float() {
        return defaults::dequantize_kv(kept, dtype);
    }
    // Values have the type of the scales.
    let (scales, biases) = (kept.scales.cast(dtype)?, kept.biases.cast(dtype)?);
    kept.codes.derive(op, shape, dtype, |_| {
        mlx::dequantize(
            words(kept)?,
            scales.array(),
            biases.array(),
            kept.spec.group_size as i32,
            i32::from(kept.spec.bits),
        )
    })
}

fn words(kept: &QuantizedKv<MlxTensor>) -> Result<Array, Exception> {
    kept.codes.array().view_dtype(Dtype::Uint32)
}

pub(crate) fn attention(
    q: &MlxTensor,
    k: &QuantizedKv<MlxTensor>,
    v: &QuantizedKv<MlxTensor>,
    mask: AttentionMask,
    scale: f32,
) -> Result<MlxTensor> {
    let n = attention_quantized_dims(q, k, v, mask)?;
    let by_products = q.device() == Device::Metal && n.q_len == 1 && serves(k.spec);
    // A lone query sees the last keys only.
    let (mask, seen) = match mask {
        AttentionMask::SlidingWindow(w) if by_products => (AttentionMask::None, n.kv_len.min(w)),
        mask => (mask, n.kv_len),
    };
    if !by_products || v.spec != k.spec {
        return defaults::attention_quantized(q, k, v, mask, scale);
    }
    let last = |kept: &QuantizedKv<MlxTensor>| -> Result<_> {
        let part = |t: &MlxTensor| t.narrow(1, n.kv_len - seen, seen);
        Ok(QuantizedKv {
            codes: part(&kept.codes)?,
            scales: part(&kept.scales)?,
            biases: part(&kept.biases)?,
            spec: kept.spec,
        })
    };
    let sizes = [1, n.kv_heads, n.heads / n.kv_heads, n.head_dim];
    products(q, &last(k)?, &last(v)?, None, scale, sizes)
}

pub(crate) fn attention_each(
    q: &MlxTensor,
    k: &QuantizedKv<MlxTensor>,
    v: &QuantizedKv<MlxTensor>,
    mask: Option<&MlxTensor>,
    scale: f32,
) -> Result<MlxTensor> {
    let op = "attention_each";
    require_float(op, q)?;
    let keys = k.shape(op)?;
    let fits = q.device() == Device::Metal && serves(k.spec) && v.spec == k.spec;
    let sizes = match (q.shape().as_slice(), keys.as_slice()) {
        (&[rows, heads, d], &[k_rows, kv_heads, kv_len, k_d])
            if fits
                && (rows, d) == (k_rows, k_d)
                && rows * kv_len * kv_heads > 0
                && heads.is_multiple_of(kv_heads)
                && v.shape(op)? == keys
                && mask.is_none_or(|m| m.shape() == Shape::from([rows, kv_len])) =>
        {
            [rows, kv_heads, heads / kv_heads, d]
        }
        // Which says what is wrong, too.
        _ => return defaults::attention_each_quantized(q, k, v, mask, scale),
    };
    products(q, k, v, mask, scale, sizes)
}

/// Attention of one query a row, by products with codes: nothing is widened in memory. `sizes` are rows,
/// key heads, queries of a key head, elements of a head.
fn products(
    q: &MlxTensor,
    k: &QuantizedKv<MlxTensor>,
    v: &QuantizedKv<MlxTensor>,
    mask: Option<&MlxTensor>,
    scale: f32,
    sizes: [usize; 4],
) -> Result<MlxTensor> {
    let each = sizes.map(|n| n as i32);
    let product = |x: &Array, kept: &QuantizedKv<MlxTensor>, transposed: bool| {
        // `[rows, kv_heads, len, ..]`, also of a lone row.
        let whole = |array: Array| match array.ndim() {
            3 => array.expand_dims(0),
            _ => Ok(array),
        };
        let biases = whole(kept.biases.array().clone())?;
        mlx::quantized_matmul(
            x,
            whole(words(kept)?)?,
            whole(kept.scales.array().clone())?,
            &biases,
            transposed,
            kept.spec.group_size as i32,
            i32::from(kept.spec.bits),
        )
    };
    q.derive("attention", q.shape(), q.dtype(), |dims| {
        let scale = Array::from_f32(scale).as_dtype(q.array().dtype())?;
        let queries = q.array().multiply(scale)?.reshape(&each)?;
        let mut scores = product(&queries, k, true)?;
        if let Some(mask) = mask {
            scores = scores.add(mask.array().expand_dims_axes(&[1, 2])?)?;
        }
        let weights = mlx::softmax_axis(&scores, -1, true)?;
        product(&weights, v, false)?
            .reshape(dims)?
            .as_dtype(q.array().dtype())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MlxBackend;
    use biplane_backend::Backend;

    /// The form for Metal, run here on the CPU.
    #[test]
    fn products_with_codes_are_attention_over_their_values() {
        let backend = MlxBackend::new(Device::Cpu).unwrap();
        let tensor = |shape: &[usize]| {
            let n = shape.iter().product::<usize>();
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 12.9898).sin()).collect();
            backend
                .from_f32s(&values, Shape::new(shape).unwrap())
                .unwrap()
        };
        for bits in [4, 8] {
            let spec = KvSpec {
                bits,
                group_size: 32,
                scales: DType::F16,
            };
            let (rows, kv_heads, group, len, d) = (3, 2, 4, 9, 64);
            let q = tensor(&[rows, kv_heads * group, d]);
            // Views of a longer cache.
            let kept = |from| {
                let x = tensor(&[rows, kv_heads, len + 5, d]);
                let all = quantize(&x, spec).unwrap();
                let part = |t: &MlxTensor| t.narrow(2, from, len).unwrap();
                QuantizedKv {
                    codes: part(&all.codes),
                    scales: part(&all.scales),
                    biases: part(&all.biases),
                    spec,
                }
            };
            let (k, v) = (kept(0), kept(3));
            let hide = |i: usize| {
                if i % len < i / len {
                    f32::NEG_INFINITY
                } else {
                    0.0
                }
            };
            let mask: Vec<f32> = (0..rows * len).map(hide).collect();
            let mask = backend.from_f32s(&mask, [rows, len]).unwrap();
            let sizes = [rows, kv_heads, group, d];
            for mask in [None, Some(&mask)] {
                let got = products(&q, &k, &v, mask, 0.3, sizes).unwrap();
                let want = defaults::attention_each_quantized(&q, &k, &v, mask, 0.3).unwrap();
                let (got, want) = (got.to_f32s().unwrap(), want.to_f32s().unwrap());
                for (got, want) in got.iter().zip(want) {
                    assert!((got - want).abs() < 1e-4, "{bits} bits: {got}, {want}");
                }
            }
        }
    }
}
