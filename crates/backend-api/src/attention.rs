use crate::{DType, Error, QuantizedKv, Result, Shape, Tensor};

/// Which keys a query may see. Queries are the last positions of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionMask {
    /// All of them.
    None,
    /// Those at its own position and before.
    Causal,
    /// The last `w` of those: its own position and the `w - 1` before it.
    SlidingWindow(usize),
}

impl AttentionMask {
    /// The half-open range of keys that query number `q` of `q_len` sees among `kv_len`.
    pub fn visible(self, q: usize, q_len: usize, kv_len: usize) -> std::ops::Range<usize> {
        let end = (kv_len + q + 1).saturating_sub(q_len).min(kv_len);
        match self {
            AttentionMask::None => 0..kv_len,
            AttentionMask::Causal => 0..end,
            AttentionMask::SlidingWindow(w) => end.saturating_sub(w)..end,
        }
    }
}

/// The axes of attention's operands.
#[derive(Clone, Copy, Debug)]
pub struct AttentionDims {
    /// Query heads.
    pub heads: usize,
    /// Queries.
    pub q_len: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Key heads, a divisor of `heads`.
    pub kv_heads: usize,
    /// Keys, at least `q_len`.
    pub kv_len: usize,
}

/// What attention's operands must satisfy, on every backend; see [`Tensor::attention`].
///
/// # Errors
/// [`Error::DType`], [`Error::Rank`], [`Error::Shape`].
pub fn attention_dims<T: Tensor>(
    q: &T,
    k: &T,
    v: &T,
    mask: AttentionMask,
) -> Result<AttentionDims> {
    let op = "attention";
    crate::defaults::require_float(op, q)?;
    crate::defaults::same_float(op, k, v)?;
    attention_dims_of(q.shape(), k.shape(), v.shape(), mask)
}

/// As [`attention_dims`], for quantized keys and values.
///
/// # Errors
/// [`Error::DType`], [`Error::Rank`], [`Error::Shape`].
pub fn attention_quantized_dims<T: Tensor>(
    q: &T,
    k: &QuantizedKv<T>,
    v: &QuantizedKv<T>,
    mask: AttentionMask,
) -> Result<AttentionDims> {
    let op = "attention";
    crate::defaults::require_float(op, q)?;
    attention_dims_of(q.shape(), k.shape(op)?, v.shape(op)?, mask)
}

fn attention_dims_of(q: Shape, k: Shape, v: Shape, mask: AttentionMask) -> Result<AttentionDims> {
    let op = "attention";
    let [heads, q_len, head_dim] = q.dims(op)?;
    let [kv_heads, kv_len, k_dim] = k.dims(op)?;
    let fits = v == k
        && k_dim == head_dim
        && kv_heads > 0
        && heads.is_multiple_of(kv_heads)
        && q_len <= kv_len
        && head_dim > 0
        && mask != AttentionMask::SlidingWindow(0);
    if !fits {
        let rhs = if v == k { k } else { v };
        return Err(Error::Shape { op, lhs: q, rhs });
    }
    Ok(AttentionDims {
        heads,
        q_len,
        head_dim,
        kv_heads,
        kv_len,
    })
}

/// Attention out of primitives: a full score matrix, softmax in f32.
///
/// # Errors
/// As [`Tensor::attention`].
pub fn attention_default<T: Tensor>(
    q: &T,
    k: &T,
    v: &T,
    mask: AttentionMask,
    scale: f32,
) -> Result<T> {
    let n = attention_dims(q, k, v, mask)?;
    let group = n.heads / n.kv_heads;
    // The queries of one key head are neighbours, so grouping is a reshape and k, v are not repeated.
    let q4 = q
        .cast(DType::F32)?
        .reshape([n.kv_heads, group * n.q_len, n.head_dim])?;
    let scores = q4
        .matmul(&k.cast(DType::F32)?.swap_axes(1, 2)?)?
        .affine(f64::from(scale), 0.0)?
        .reshape([n.kv_heads, group, n.q_len, n.kv_len])?;
    let scores = match mask {
        AttentionMask::None => scores,
        _ => {
            let mut bias = vec![f32::NEG_INFINITY; n.q_len * n.kv_len];
            for (i, row) in bias.chunks_mut(n.kv_len.max(1)).enumerate() {
                row[mask.visible(i, n.q_len, n.kv_len)].fill(0.0);
            }
            let bias =
                q.from_bytes_like(bytemuck::cast_slice(&bias), DType::F32, [n.q_len, n.kv_len])?;
            scores.add(&bias)?
        }
    };
    scores
        .softmax()?
        .reshape([n.kv_heads, group * n.q_len, n.kv_len])?
        .matmul(&v.cast(DType::F32)?)?
        .reshape(Shape::from([n.heads, n.q_len, n.head_dim]))?
        .cast(q.dtype())
}

/// What the operands of attention for many sequences must satisfy; see [`Tensor::attention_each`].
/// Gives `[rows, heads, kv_heads, kv_len, head_dim]`.
///
/// # Errors
/// [`Error::DType`], [`Error::Rank`], [`Error::Shape`].
pub fn attention_each_dims<T: Tensor>(q: &T, k: &T, v: &T, mask: Option<&T>) -> Result<[usize; 5]> {
    let op = "attention_each";
    crate::defaults::require_float(op, q)?;
    crate::defaults::same_float(op, k, v)?;
    let [rows, heads, head_dim] = q.shape().dims(op)?;
    let [k_rows, kv_heads, kv_len, k_dim] = k.shape().dims(op)?;
    let fits = v.shape() == k.shape()
        && k_rows == rows
        && k_dim == head_dim
        && kv_heads > 0
        && heads.is_multiple_of(kv_heads)
        && kv_len > 0
        && head_dim > 0;
    if !fits {
        let rhs = if v.shape() == k.shape() { k } else { v };
        return Err(Error::Shape {
            op,
            lhs: q.shape(),
            rhs: rhs.shape(),
        });
    }
    if let Some(mask) = mask {
        crate::defaults::same_float(op, q, mask)?;
        if mask.shape() != Shape::from([rows, kv_len]) {
            return Err(Error::Shape {
                op,
                lhs: k.shape(),
                rhs: mask.shape(),
            });
        }
    }
    Ok([rows, heads, kv_heads, kv_len, head_dim])
}

/// Attention for many sequences out of primitives.
///
/// # Errors
/// As [`Tensor::attention_each`].
pub fn attention_each_default<T: Tensor>(
    q: &T,
    k: &T,
    v: &T,
    mask: Option<&T>,
    scale: f32,
) -> Result<T> {
    let [rows, heads, kv_heads, kv_len, d] = attention_each_dims(q, k, v, mask)?;
    let (each, group) = (rows * kv_heads, heads / kv_heads);
    let flat = |t: &T, len| t.cast(DType::F32)?.reshape([each, len, d]);
    let scores = flat(q, group)?
        .matmul(&flat(k, kv_len)?.swap_axes(1, 2)?)?
        .affine(f64::from(scale), 0.0)?
        .reshape([rows, heads, kv_len])?;
    let scores = match mask {
        Some(mask) => scores.add(&mask.cast(DType::F32)?.reshape([rows, 1, kv_len])?)?,
        None => scores,
    };
    scores
        .softmax()?
        .reshape([each, group, kv_len])?
        .matmul(&flat(v, kv_len)?)?
        .reshape([rows, heads, d])?
        .cast(q.dtype())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_the_last_positions() {
        assert_eq!(AttentionMask::None.visible(0, 2, 5), 0..5);
        assert_eq!(AttentionMask::Causal.visible(0, 2, 5), 0..4);
        assert_eq!(AttentionMask::Causal.visible(1, 2, 5), 0..5);
        assert_eq!(AttentionMask::SlidingWindow(2).visible(0, 2, 5), 2..4);
        assert_eq!(AttentionMask::SlidingWindow(9).visible(1, 2, 5), 0..5);
    }
}
