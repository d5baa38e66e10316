//! A token's attention as one operation.

use biplane_backend::{AttentionMask, Decode, Result, Shape, Tensor, defaults::DecodeDims};
use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor as Inner};
use half::{f16, slice::HalfFloatSliceExt};

use super::{Floats, KeptFloats, output, row_major};
use crate::{
    CandleTensor,
    cpu::{self, AttentionShape, Strided, with_room},
    failed,
};

/// Whether our kernels serve, as they do for one row with all operands in the processor's memory.
fn serves(
    qkv: &CandleTensor,
    caches: [&CandleTensor; 2],
    with: &Decode<'_, CandleTensor>,
    n: DecodeDims,
) -> bool {
    let kept = |t: &CandleTensor| {
        let ours = t.is_cpu_f32() || t.dtype() == biplane_backend::DType::F16 && !t.is_on_gpu();
        t.shape().rank() == 3 && ours && t.inner.is_contiguous()
    };
    let weight = |t: &CandleTensor| t.is_cpu_f32() && t.shape() == Shape::from([n.head_dim]);
    let (cos, sin) = (&with.rope.cos, &with.rope.sin);
    qkv.is_cpu_f32()
        && caches.into_iter().all(kept)
        && with
            .norms
            .is_none_or(|(norms, _)| norms.into_iter().all(weight))
        && with.rope.rotary_dim() <= n.head_dim
        && cos.is_cpu_f32()
        && sin.is_cpu_f32()
        && cos.shape().numel() == with.rope.rotary_dim() / 2
        && sin.shape() == cos.shape()
}

/// One row's token, whose key and value are written to the caches in place; `None` where our kernels do
/// not serve.
pub(crate) fn decode_attention(
    qkv: &CandleTensor,
    (keys, values): (&CandleTensor, &CandleTensor),
    with: &Decode<'_, CandleTensor>,
    n: DecodeDims,
) -> Result<Option<CandleTensor>> {
    let op = "decode_attention";
    if !serves(qkv, [keys, values], with, n) {
        return Ok(None);
    }
    let d = n.head_dim;
    let (cos, sin) = (
        row_major(op, &with.rope.cos)?,
        row_major(op, &with.rope.sin)?,
    );
    let (cos, sin) = (Floats::all(op, &cos)?, Floats::all(op, &sin)?);
    let qkv = row_major(op, qkv)?;
    let qkv = Floats::all(op, &qkv)?;
    let (heads, value) = qkv.split_at((n.heads + n.kv_heads) * d);
    // Queries and keys with their norms and turns.
    let turned = |turned: &mut [f32]| -> Result<CandleTensor> {
        match with.norms {
            None => turn(heads, d, &cos, &sin, with.rope.interleaved, turned),
            Some((norms, eps)) => {
                let [q, k] = norms.map(|weight| row_major(op, weight));
                let (q, k) = (q?, k?);
                let (q, k) = (Floats::all(op, &q)?, Floats::all(op, &k)?);
                with_room(heads.len(), |normed| {
                    let (q_heads, k_heads) = heads.split_at(n.heads * d);
                    let (q_normed, k_normed) = normed.split_at_mut(n.heads * d);
                    cpu::rms_norm(q_heads, &q, eps, q_normed);
                    cpu::rms_norm(k_heads, &k, eps, k_normed);
                    turn(normed, d, &cos, &sin, with.rope.interleaved, turned);
                });
            }
        }
        let (queries, key) = turned.split_at(n.heads * d);
        write(&keys.inner, with.end, key)?;
        write(&values.inner, with.end, value)?;
        attend(queries, [&keys.inner, &values.inner], with, n)
    };
    with_room(heads.len(), turned).map(Some)
}

/// Turns the heads of one token.
fn turn(x: &[f32], d: usize, cos: &[f32], sin: &[f32], interleaved: bool, out: &mut [f32]) {
    let heads = Strided {
        data: x,
        head_stride: d,
        token_stride: x.len(),
    };
    let freqs = cos.len();
    cpu::rope(heads, 1, x.len() / d, d, cos, sin, freqs, interleaved, out);
}

/// `[heads · d]` queries over what the caches hold from [`Decode::seen`] to [`Decode::end`].
fn attend(
    queries: &[f32],
    [keys, values]: [&Inner; 2],
    with: &Decode<'_, CandleTensor>,
    n: DecodeDims,
) -> Result<CandleTensor> {
    let op = "decode_attention";
    let queries = Strided {
        data: queries,
        head_stride: n.head_dim,
        token_stride: queries.len(),
    };
    let shape = AttentionShape {
        heads: n.heads,
        kv_heads: n.kv_heads,
        q_len: 1,
        kv_len: with.end + 1 - with.seen,
        head_dim: n.head_dim,
    };
    let (k, v) = (KeptFloats::of(op, keys)?, KeptFloats::of(op, values)?);
    let (k, v) = (k.strided(keys), v.strided(values));
    let (k, v) = (k.after(with.seen), v.after(with.seen));
    output(op, Shape::from([1, n.heads * n.head_dim]), |out| {
        cpu::attention(queries, k, v, shape, AttentionMask::None, with.scale, out);
    })
}

/// A token's heads, written to a cache `[kv_heads, capacity, d]`.
struct Write<'a> {
    token: usize,
    heads: &'a [f32],
}

fn write(cache: &Inner, token: usize, heads: &[f32]) -> Result<()> {
    cache
        .inplace_op1(&Write { token, heads })
        .map_err(failed("decode_attention"))
}

impl InplaceOp1 for Write<'_> {
    fn name(&self) -> &'static str {
        "write_token"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let (_, capacity, d) = layout.shape().dims3()?;
        let start = layout.start_offset() + self.token * d;
        let heads = self.heads.chunks_exact(d).enumerate();
        let place = |head: usize| start + head * capacity * d..start + head * capacity * d + d;
        let missing = || candle_core::Error::Msg("the cache is shorter than its shape".into());
        match storage {
            CpuStorage::F32(cache) => {
                for (i, head) in heads {
                    let to = cache.get_mut(place(i)).ok_or_else(missing)?;
                    to.copy_from_slice(head);
                }
            }
            CpuStorage::F16(cache) => {
                for (i, head) in heads {
                    let to: &mut [f16] = cache.get_mut(place(i)).ok_or_else(missing)?;
                    to.convert_from_f32_slice(head);
                }
            }
            _ => return Err(candle_core::Error::Msg("a cache of another type".into())),
        }
        Ok(())
    }
}
