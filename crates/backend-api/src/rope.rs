use crate::{Backend, DType, Error, Result, Tensor};

/// The angles of one step's rotary position embedding: made once per step, used by every layer.
#[derive(Clone, Debug)]
pub struct RopeAngles<T> {
    /// Position of every token, `U32 [tokens]`.
    pub positions: T,
    /// Reciprocals of the inverse frequencies, `F32 [freqs]`: what MLX takes. A head turns its first
    /// `2 · freqs` elements.
    pub periods: T,
    /// Cosines, `F32 [tokens, freqs]`.
    pub cos: T,
    /// Sines, `F32 [tokens, freqs]`.
    pub sin: T,
    /// Pairs are neighbours (2i, 2i+1), GPT-J's way; else halves (i, i + freqs), GPT-NeoX's way.
    pub interleaved: bool,
    tokens: usize,
    freqs: usize,
}

impl<T: Tensor> RopeAngles<T> {
    /// Angles of `positions` under inverse frequencies `inv_freqs`.
    ///
    /// The angle is the `f32` product, as in the reference implementations, so that long positions
    /// round alike.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub fn new<B: Backend<Tensor = T>>(
        backend: &B,
        positions: &[u32],
        inv_freqs: &[f32],
        interleaved: bool,
    ) -> Result<Self> {
        let (n, f) = (positions.len(), inv_freqs.len());
        let mut cos = Vec::with_capacity(n * f);
        let mut sin = Vec::with_capacity(n * f);
        for &p in positions {
            for &w in inv_freqs {
                let (s, c) = (p as f32 * w).sin_cos();
                cos.push(c);
                sin.push(s);
            }
        }
        let periods: Vec<f32> = inv_freqs.iter().map(|w| w.recip()).collect();
        Ok(RopeAngles {
            positions: backend.from_u32s(positions, [n])?,
            periods: backend.from_f32s(&periods, [f])?,
            cos: backend.from_f32s(&cos, [n, f])?,
            sin: backend.from_f32s(&sin, [n, f])?,
            interleaved,
            tokens: n,
            freqs: f,
        })
    }

    /// The angles of `len` of these tokens from the `start`th on, as views.
    ///
    /// # Errors
    /// As [`Tensor::narrow`].
    pub fn narrow(&self, start: usize, len: usize) -> Result<Self> {
        let rows = |t: &T| t.narrow(0, start, len);
        Ok(RopeAngles {
            positions: rows(&self.positions)?,
            periods: self.periods.clone(),
            cos: rows(&self.cos)?,
            sin: rows(&self.sin)?,
            interleaved: self.interleaved,
            tokens: len,
            freqs: self.freqs,
        })
    }

    /// The same angles on tensors made from these.
    #[cfg(feature = "testing")]
    pub(crate) fn map<U>(&self, f: impl Fn(&T) -> U) -> RopeAngles<U> {
        RopeAngles {
            positions: f(&self.positions),
            periods: f(&self.periods),
            cos: f(&self.cos),
            sin: f(&self.sin),
            interleaved: self.interleaved,
            tokens: self.tokens,
            freqs: self.freqs,
        }
    }

    /// Elements of a head that turn: `2 · freqs`.
    pub fn rotary_dim(&self) -> usize {
        2 * self.freqs
    }

    /// Checks `x [tokens, heads, head_dim]` against these angles; gives its axes.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::Shape`], [`Error::DType`].
    pub fn check(&self, x: &T) -> Result<[usize; 3]> {
        crate::defaults::require_float("rope", x)?;
        let dims @ [n, _, d] = x.shape().dims("rope")?;
        if n != self.tokens || self.rotary_dim() > d {
            return Err(Error::Shape {
                op: "rope",
                lhs: x.shape(),
                rhs: self.cos.shape(),
            });
        }
        Ok(dims)
    }
}

/// RoPE out of primitives, in f32.
///
/// # Errors
/// As [`Tensor::rope`].
pub fn rope_default<T: Tensor>(x: &T, angles: &RopeAngles<T>) -> Result<T> {
    let [n, heads, d] = angles.check(x)?;
    let f = angles.freqs;
    let dtype = x.dtype();
    let wide = x.cast(DType::F32)?;
    let cos = angles.cos.reshape([n, 1, f])?;
    let sin = angles.sin.reshape([n, 1, f])?;
    let turned = wide.narrow(2, 0, 2 * f)?;
    let (a, b) = if angles.interleaved {
        let pairs = turned.reshape([n, heads * f, 2])?;
        (
            pairs.narrow(2, 0, 1)?.reshape([n, heads, f])?,
            pairs.narrow(2, 1, 1)?.reshape([n, heads, f])?,
        )
    } else {
        (turned.narrow(2, 0, f)?, turned.narrow(2, f, f)?)
    };
    let first = a.mul(&cos)?.sub(&b.mul(&sin)?)?;
    let second = b.mul(&cos)?.add(&a.mul(&sin)?)?;
    let turned = if angles.interleaved {
        T::concat(
            &[
                &first.reshape([n, heads, f, 1])?,
                &second.reshape([n, heads, f, 1])?,
            ],
            3,
        )?
        .reshape([n, heads, 2 * f])?
    } else {
        T::concat(&[&first, &second], 2)?
    };
    let turned = if 2 * f == d {
        turned
    } else {
        T::concat(&[&turned, &wide.narrow(2, 2 * f, d - 2 * f)?], 2)?
    };
    turned.cast(dtype)
}

/// How a checkpoint stretches RoPE beyond the context it was trained with.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    #[default]
    None,
    /// All frequencies divided by `factor` (Chen et al. 2023).
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Llama 3.1's: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f32,
        /// Wavelengths above `original_context / low_freq_factor` are low.
        low_freq_factor: f32,
        /// Wavelengths below `original_context / high_freq_factor` are high.
        high_freq_factor: f32,
        /// The context the model was trained with.
        original_context: f32,
    },
    /// A divisor for each frequency, as GGUF stores it (`rope_freqs.weight`).
    PerFrequency(Vec<f32>),
}

/// Inverse frequencies `1 / theta^(2i / rotary_dim)` for `i` in `0 .. rotary_dim / 2`, scaled.
///
/// # Errors
/// [`Error::Weight`] for an odd `rotary_dim`, a scaling that is no finite positive number, or a list
/// of another length.
pub fn rope_inv_freqs(rotary_dim: usize, theta: f32, scaling: &RopeScaling) -> Result<Vec<f32>> {
    let bad = |reason: String| Error::Weight {
        name: "rope".into(),
        reason,
    };
    let positive = |what: &str, v: f32| {
        if v.is_finite() && v > 0.0 {
            Ok(v)
        } else {
            Err(bad(format!("{what} is {v}, expected a positive number")))
        }
    };
    if rotary_dim == 0 || !rotary_dim.is_multiple_of(2) {
        return Err(bad(format!(
            "{rotary_dim} elements of a head are to turn, expected an even number"
        )));
    }
    positive("theta", theta)?;
    let mut freqs: Vec<f32> = (0..rotary_dim / 2)
        .map(|i| 1.0 / theta.powf((2 * i) as f32 / rotary_dim as f32))
        .collect();
    match scaling {
        RopeScaling::None => {}
        RopeScaling::Linear { factor } => {
            let factor = positive("factor", *factor)?;
            freqs.iter_mut().for_each(|f| *f /= factor);
        }
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let factor = positive("factor", *factor)?;
            let low = positive("low_freq_factor", *low_freq_factor)?;
            let high = positive("high_freq_factor", *high_freq_factor)?;
            let context = positive("original_max_position_embeddings", *original_context)?;
            if high <= low {
                return Err(bad(format!(
                    "high_freq_factor {high} must be larger than low_freq_factor {low}"
                )));
            }
            for f in &mut freqs {
                let wavelength = 2.0 * std::f32::consts::PI / *f;
                if wavelength > context / low {
                    *f /= factor;
                } else if wavelength >= context / high {
                    let smooth = (context / wavelength - low) / (high - low);
                    *f = (1.0 - smooth) * *f / factor + smooth * *f;
                }
            }
        }
        RopeScaling::PerFrequency(divisors) => {
            if divisors.len() != freqs.len() {
                return Err(bad(format!(
                    "{} divisors for {} frequencies",
                    divisors.len(),
                    freqs.len()
                )));
            }
            for (f, &d) in freqs.iter_mut().zip(divisors) {
                *f /= positive("a divisor", d)?;
            }
        }
    }
    Ok(freqs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama3_keeps_high_and_divides_low_frequencies() {
        let plain = rope_inv_freqs(64, 10000.0, &RopeScaling::None).unwrap();
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 128.0,
        };
        let scaled = rope_inv_freqs(64, 10000.0, &scaling).unwrap();
        assert_eq!(plain[0], scaled[0]);
        assert_eq!(plain[31] / 8.0, scaled[31]);
        assert!(scaled.windows(2).all(|w| w[0] > w[1]));
        assert!(
            scaled
                .iter()
                .zip(&plain)
                .any(|(s, p)| *s < *p && *s > p / 8.0)
        );
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(rope_inv_freqs(63, 1e4, &RopeScaling::None).is_err());
        assert!(rope_inv_freqs(0, 1e4, &RopeScaling::None).is_err());
        assert!(rope_inv_freqs(64, f32::NAN, &RopeScaling::None).is_err());
        assert!(rope_inv_freqs(64, 1e4, &RopeScaling::Linear { factor: 0.0 }).is_err());
        assert!(rope_inv_freqs(64, 1e4, &RopeScaling::PerFrequency(vec![1.0; 3])).is_err());
    }
}
