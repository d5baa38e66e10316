use crate::{AttentionMask, Error, Result, RopeAngles, Shape, Tensor};

/// How the next token of some sequences attends; see [`Tensor::decode_attention`].
#[derive(Clone, Copy, Debug)]
pub struct Decode<'a, T> {
    /// Weights `[d]` of the RMSNorm of query and of key heads, and its epsilon.
    pub norms: Option<([&'a T; 2], f32)>,
    /// Angles of the rows' positions.
    pub rope: &'a RopeAngles<T>,
    /// The first key that is seen.
    pub seen: usize,
    /// Where the token's key and value go: the last key that is seen.
    pub end: usize,
    /// `[rows, end + 1 - seen]`, added to the scores; only for caches of rank 4.
    pub mask: Option<&'a T>,
    /// A factor of the scores.
    pub scale: f32,
}

/// The axes of [`Tensor::decode_attention`]'s operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecodeDims {
    /// Sequences.
    pub rows: usize,
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

/// What the operands of [`Tensor::decode_attention`] must satisfy.
///
/// # Errors
/// [`Error::DType`], [`Error::Rank`], [`Error::Shape`], [`Error::OutOfRange`].
pub fn decode_dims<T: Tensor>(
    qkv: &T,
    (keys, values): (&T, &T),
    with: &Decode<'_, T>,
) -> Result<DecodeDims> {
    let op = "decode_attention";
    crate::defaults::require_float(op, qkv)?;
    crate::defaults::same_float(op, keys, values)?;
    let [rows, width] = qkv.shape().dims(op)?;
    let [k_rows, kv_heads, capacity, head_dim] = match keys.shape().as_slice() {
        [kv_heads, capacity, d] => [1, *kv_heads, *capacity, *d],
        _ => keys.shape().dims(op)?,
    };
    let key_width = kv_heads * head_dim;
    let queries = width.checked_sub(2 * key_width);
    let fits = values.shape() == keys.shape()
        && k_rows == rows
        && key_width > 0
        && queries.is_some_and(|n| n > 0 && n.is_multiple_of(key_width))
        && (with.mask.is_none() || keys.shape().rank() == 4);
    let (Some(queries), true) = (queries, fits) else {
        return Err(Error::Shape {
            op,
            lhs: qkv.shape(),
            rhs: keys.shape(),
        });
    };
    if with.end >= capacity || with.seen > with.end {
        return Err(Error::OutOfRange {
            op,
            index: with.end.max(with.seen),
            limit: capacity,
        });
    }
    let mask_shape = Shape::from([rows, with.end + 1 - with.seen]);
    if let Some(mask) = with.mask.filter(|m| m.shape() != mask_shape) {
        return Err(Error::Shape {
            op,
            lhs: mask_shape,
            rhs: mask.shape(),
        });
    }
    Ok(DecodeDims {
        rows,
        heads: queries / head_dim,
        kv_heads,
        head_dim,
    })
}

/// A token's attention out of the operations that it consists of.
///
/// # Errors
/// As [`Tensor::decode_attention`].
pub fn decode_attention_default<T: Tensor>(
    qkv: &T,
    (keys, values): (T, T),
    with: &Decode<'_, T>,
) -> Result<(T, (T, T))> {
    let n = decode_dims(qkv, (&keys, &values), with)?;
    let (rows, d) = (n.rows, n.head_dim);
    let (q_width, k_width) = (n.heads * d, n.kv_heads * d);
    let heads = |start, heads| qkv.narrow(1, start, heads * d)?.reshape([rows, heads, d]);
    let (mut q, mut k) = (heads(0, n.heads)?, heads(q_width, n.kv_heads)?);
    let v = heads(q_width + k_width, n.kv_heads)?;
    if let Some(([q_weight, k_weight], eps)) = with.norms {
        (q, k) = (q.rms_norm(q_weight, eps)?, k.rms_norm(k_weight, eps)?);
    }
    let (q, k) = (q.rope(with.rope)?, k.rope(with.rope)?);
    let one_row = keys.shape().rank() == 3;
    let axis = keys.shape().rank() - 2;
    let new = match one_row {
        true => Shape::from([n.kv_heads, 1, d]),
        false => Shape::from([rows, n.kv_heads, 1, d]),
    };
    let (k, v) = (k.cast(keys.dtype())?, v.cast(values.dtype())?);
    let keys = keys.write_slice(axis, with.end, &k.reshape(new)?)?;
    let values = values.write_slice(axis, with.end, &v.reshape(new)?)?;
    let len = with.end + 1 - with.seen;
    let (seen_keys, seen_values) = (
        keys.narrow(axis, with.seen, len)?,
        values.narrow(axis, with.seen, len)?,
    );
    let y = match one_row {
        true => q.reshape([n.heads, 1, d])?.attention(
            &seen_keys,
            &seen_values,
            AttentionMask::None,
            with.scale,
        )?,
        false => q.attention_each(&seen_keys, &seen_values, with.mask, with.scale)?,
    };
    Ok((y.reshape([rows, q_width])?, (keys, values)))
}
