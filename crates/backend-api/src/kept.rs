//! Keys and values as caches keep them: in an element type, or quantized.

mod format;
mod quantize;

use crate::{AttentionMask, Backend, DType, Error, Result, Shape, Tensor};

pub use format::{KvFormat, KvSpec, KvType};
pub use quantize::{
    attention_each_quantized_default, attention_quantized_default, dequantize_kv_default,
    quantize_kv_default, quantize_kv_shape,
};

/// Quantized keys or values `[.., head_dim]`; see [`KvSpec`]. The leading axes of the parts are the same.
#[derive(Clone, Debug)]
pub struct QuantizedKv<T> {
    /// `U8 [.., head_dim · bits / 8]`; of two codes in a byte the first is in the lower bits.
    pub codes: T,
    /// `[.., head_dim / group_size]`
    pub scales: T,
    /// `[.., head_dim / group_size]`
    pub biases: T,
    /// The form.
    pub spec: KvSpec,
}

impl<T: Tensor> QuantizedKv<T> {
    /// `[.., head_dim]`, once the parts are known to fit each other.
    ///
    /// # Errors
    /// [`Error::DType`], [`Error::Rank`], [`Error::Shape`].
    pub fn shape(&self, op: &'static str) -> Result<Shape> {
        let KvSpec {
            bits,
            group_size,
            scales,
        } = self.spec;
        for (part, expected) in [
            (&self.codes, DType::U8),
            (&self.scales, scales),
            (&self.biases, scales),
        ] {
            if part.dtype() != expected {
                return Err(Error::DType {
                    op,
                    got: part.dtype(),
                    expected: expected.name(),
                });
            }
        }
        let codes = self.codes.shape();
        let head_dim = codes.last(op)? * 8 / usize::from(bits.max(1));
        let groups = codes.with_dim(op, codes.rank() - 1, head_dim / group_size.max(1))?;
        for rhs in [self.scales.shape(), self.biases.shape()] {
            if rhs != groups || !head_dim.is_multiple_of(group_size.max(1)) {
                return Err(Error::Shape {
                    op,
                    lhs: codes,
                    rhs,
                });
            }
        }
        codes.with_dim(op, codes.rank() - 1, head_dim)
    }

    fn parts(&self) -> [&T; 3] {
        [&self.codes, &self.scales, &self.biases]
    }
}

/// Keys or values `[.., head_dim]` in a cache's format.
#[derive(Clone, Debug)]
pub enum Kept<T> {
    /// In an element type.
    Plain(T),
    /// In codes.
    Quantized(QuantizedKv<T>),
}

impl<P> Kept<P> {
    /// What a format consists of.
    fn build(
        leading: &[usize],
        head_dim: usize,
        format: KvFormat,
        mut part: impl FnMut(Shape, DType) -> Result<P>,
    ) -> Result<Self> {
        let shape = |last| Shape::new(&[leading, &[last]].concat());
        Ok(match format {
            KvFormat::Plain(dtype) => Kept::Plain(part(shape(head_dim)?, dtype)?),
            KvFormat::Quantized(spec) => {
                let groups = shape(head_dim / spec.group_size.max(1))?;
                Kept::Quantized(QuantizedKv {
                    codes: part(shape(spec.code_bytes(head_dim))?, DType::U8)?,
                    scales: part(groups, spec.scales)?,
                    biases: part(groups, spec.scales)?,
                    spec,
                })
            }
        })
    }
}

impl<T: Tensor> Kept<T> {
    /// `x [.., head_dim]` in a format.
    ///
    /// # Errors
    /// As [`Tensor::cast`] and [`Tensor::quantize_kv`].
    pub fn of(x: &T, format: KvFormat) -> Result<Self> {
        Ok(match format {
            KvFormat::Plain(dtype) => Kept::Plain(x.cast(dtype)?),
            KvFormat::Quantized(spec) => Kept::Quantized(x.quantize_kv(spec)?),
        })
    }

    /// Zeros `[leading.., head_dim]`.
    ///
    /// # Errors
    /// As [`Backend::zeros`].
    pub fn zeros<B: Backend<Tensor = T>>(
        backend: &B,
        leading: &[usize],
        head_dim: usize,
        format: KvFormat,
    ) -> Result<Self> {
        Kept::build(leading, head_dim, format, |shape, dtype| {
            backend.zeros(shape, dtype)
        })
    }

    /// `n` times [`Kept::zeros`], to be read one after the other.
    ///
    /// # Errors
    /// As [`Backend::zeros_each`].
    pub fn zeros_each<B: Backend<Tensor = T>>(
        backend: &B,
        n: usize,
        leading: &[usize],
        head_dim: usize,
        format: KvFormat,
    ) -> Result<Vec<Self>> {
        let each = Kept::build(leading, head_dim, format, |shape, dtype| {
            backend.zeros_each(n, shape, dtype)
        })?;
        Ok(match each {
            Kept::Plain(each) => each.into_iter().map(Kept::Plain).collect(),
            Kept::Quantized(QuantizedKv {
                codes,
                scales,
                biases,
                spec,
            }) => (codes.into_iter().zip(scales).zip(biases))
                .map(|((codes, scales), biases)| {
                    Kept::Quantized(QuantizedKv {
                        codes,
                        scales,
                        biases,
                        spec,
                    })
                })
                .collect(),
        })
    }

    /// What [`Kept::to_bytes`] gave.
    ///
    /// # Errors
    /// As [`Backend::from_bytes`].
    pub fn from_bytes<B: Backend<Tensor = T>>(
        backend: &B,
        bytes: &[u8],
        leading: &[usize],
        head_dim: usize,
        format: KvFormat,
    ) -> Result<Self> {
        let (all, mut rest) = (bytes.len(), bytes);
        Kept::build(leading, head_dim, format, |shape, dtype| {
            let size = shape.numel().saturating_mul(dtype.size());
            let (part, after) = rest.split_at_checked(size).ok_or(Error::Bytes {
                op: "kv cache",
                expected: size,
                got: all,
            })?;
            rest = after;
            backend.from_bytes(part, dtype, shape)
        })
    }

    /// How these are kept.
    pub fn format(&self) -> KvFormat {
        match self {
            Kept::Plain(x) => KvFormat::Plain(x.dtype()),
            Kept::Quantized(q) => KvFormat::Quantized(q.spec),
        }
    }

    /// The tensors it is made of.
    pub fn parts(&self) -> impl Iterator<Item = &T> {
        let (plain, quantized) = match self {
            Kept::Plain(x) => (Some(x), None),
            Kept::Quantized(q) => (None, Some(q.parts())),
        };
        plain.into_iter().chain(quantized.into_iter().flatten())
    }

    /// All parts as bytes of the host, one after the other.
    ///
    /// # Errors
    /// As [`Tensor::to_bytes`].
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for part in self.parts() {
            bytes.extend(part.to_bytes()?);
        }
        Ok(bytes)
    }

    /// The length of an axis before the last.
    ///
    /// # Errors
    /// [`Error::Axis`].
    pub fn dim(&self, axis: usize) -> Result<usize> {
        match self {
            Kept::Plain(x) => x.shape().dim("kv cache", axis),
            Kept::Quantized(q) => q.codes.shape().dim("kv cache", axis),
        }
    }

    /// The elements `start .. start + len` of an axis before the last.
    ///
    /// # Errors
    /// As [`Tensor::narrow`].
    pub fn narrow(&self, axis: usize, start: usize, len: usize) -> Result<Self> {
        self.each(|t| t.narrow(axis, start, len))
    }

    /// Two axes before the last exchanged.
    ///
    /// # Errors
    /// As [`Tensor::swap_axes`].
    pub fn swap_axes(&self, a: usize, b: usize) -> Result<Self> {
        self.each(|t| t.swap_axes(a, b))
    }

    /// The same elements with other axes before the last.
    ///
    /// # Errors
    /// As [`Tensor::reshape`].
    pub fn reshape_leading(&self, leading: &[usize]) -> Result<Self> {
        self.each(|t| {
            let last = t.shape().last("reshape")?;
            t.reshape(Shape::new(&[leading, &[last]].concat())?)
        })
    }

    /// Some of the first axis, by number: `ids` a `U32` vector.
    ///
    /// # Errors
    /// As [`Tensor::take_rows`].
    pub fn take_first(&self, ids: &T) -> Result<Self> {
        self.each(|t| {
            let shape = t.shape();
            let n = shape.dim("take_rows", 0)?;
            let cols = shape.with_dim("take_rows", 0, 1)?.numel();
            let shape = shape.with_dim("take_rows", 0, ids.shape().numel())?;
            t.reshape([n, cols])?.take_rows(ids)?.reshape(shape)
        })
    }

    /// Writes `src` over the elements `start ..` of an axis before the last; see
    /// [`Tensor::write_slice`].
    ///
    /// # Errors
    /// As [`Tensor::write_slice`]; [`Error::DType`] for another format.
    pub fn write_slice(self, axis: usize, start: usize, src: &Self) -> Result<Self> {
        Ok(match (self, src) {
            (Kept::Plain(x), Kept::Plain(src)) => Kept::Plain(x.write_slice(axis, start, src)?),
            (Kept::Quantized(q), Kept::Quantized(src)) if q.spec == src.spec => {
                Kept::Quantized(QuantizedKv {
                    codes: q.codes.write_slice(axis, start, &src.codes)?,
                    scales: q.scales.write_slice(axis, start, &src.scales)?,
                    biases: q.biases.write_slice(axis, start, &src.biases)?,
                    spec: q.spec,
                })
            }
            (_, src) => return Err(src.unlike()),
        })
    }

    /// Joins some of one format along an axis before the last.
    ///
    /// # Errors
    /// As [`Tensor::concat`]; [`Error::DType`] for different formats.
    pub fn concat(kept: &[&Self], axis: usize) -> Result<Self> {
        if let Some(Kept::Quantized(first)) = kept.first() {
            let mut all = Vec::with_capacity(kept.len());
            for one in kept {
                match one {
                    Kept::Quantized(q) if q.spec == first.spec => all.push(q.parts()),
                    other => return Err(other.unlike()),
                }
            }
            let part = |i: usize| {
                T::concat(
                    &all.iter()
                        .filter_map(|p| p.get(i).copied())
                        .collect::<Vec<_>>(),
                    axis,
                )
            };
            return Ok(Kept::Quantized(QuantizedKv {
                codes: part(0)?,
                scales: part(1)?,
                biases: part(2)?,
                spec: first.spec,
            }));
        }
        let plain = |one: &&Self| match one {
            Kept::Plain(_) => Ok(()),
            other => Err(other.unlike()),
        };
        kept.iter().try_for_each(plain)?;
        let parts: Vec<&T> = kept.iter().flat_map(|one| one.parts()).collect();
        T::concat(&parts, axis).map(Kept::Plain)
    }

    /// [`Tensor::attention`] over these keys and `values`.
    ///
    /// # Errors
    /// As [`Tensor::attention`]; [`Error::DType`] for different formats.
    pub fn attention(&self, q: &T, values: &Self, mask: AttentionMask, scale: f32) -> Result<T> {
        match (self, values) {
            (Kept::Plain(k), Kept::Plain(v)) => q.attention(k, v, mask, scale),
            (Kept::Quantized(k), Kept::Quantized(v)) => q.attention_quantized(k, v, mask, scale),
            (_, v) => Err(v.unlike()),
        }
    }

    /// [`Tensor::attention_each`] over these keys and `values`.
    ///
    /// # Errors
    /// As [`Tensor::attention_each`]; [`Error::DType`] for different formats.
    pub fn attention_each(&self, q: &T, values: &Self, mask: Option<&T>, scale: f32) -> Result<T> {
        match (self, values) {
            (Kept::Plain(k), Kept::Plain(v)) => q.attention_each(k, v, mask, scale),
            (Kept::Quantized(k), Kept::Quantized(v)) => {
                q.attention_each_quantized(k, v, mask, scale)
            }
            (_, v) => Err(v.unlike()),
        }
    }

    fn each(&self, f: impl Fn(&T) -> Result<T>) -> Result<Self> {
        Ok(match self {
            Kept::Plain(x) => Kept::Plain(f(x)?),
            Kept::Quantized(q) => Kept::Quantized(QuantizedKv {
                codes: f(&q.codes)?,
                scales: f(&q.scales)?,
                biases: f(&q.biases)?,
                spec: q.spec,
            }),
        })
    }

    fn unlike(&self) -> Error {
        Error::DType {
            op: "kv cache",
            got: match self {
                Kept::Plain(x) => x.dtype(),
                Kept::Quantized(q) => q.codes.dtype(),
            },
            expected: "keys and values of one format",
        }
    }
}
