//! Sums over logits, in f64.

/// A row of logits with the logarithm of its softmax's denominator.
pub(super) struct Distribution<'a> {
    logits: &'a [f32],
    log_sum: f64,
}

impl<'a> Distribution<'a> {
    pub fn new(logits: &'a [f32]) -> Self {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|v| f64::from(v - max).exp()).sum();
        Distribution {
            logits,
            log_sum: f64::from(max) + sum.ln(),
        }
    }

    pub fn log_probability(&self, id: usize) -> f64 {
        self.logits
            .get(id)
            .map_or(f64::NAN, |&v| f64::from(v) - self.log_sum)
    }

    /// Kullback-Leibler divergence of `other` from this, in nats.
    pub fn divergence(&self, other: &Distribution<'_>) -> f64 {
        let pairs = self.logits.iter().zip(other.logits);
        pairs
            .map(|(&p, &q)| {
                let p = f64::from(p) - self.log_sum;
                match p.exp() {
                    0.0 => 0.0,
                    weight => weight * (p - (f64::from(q) - other.log_sum)),
                }
            })
            .sum::<f64>()
            // Rounding may leave a little less than nothing.
            .max(0.0)
    }

    /// The most likely token, the lowest among equals, and its lead over the next in logits.
    pub fn best(&self) -> (u32, f32) {
        let (mut best, mut top, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
        for (i, &v) in self.logits.iter().enumerate() {
            if v > top {
                (best, second, top) = (i, top, v);
            } else if v > second {
                second = v;
            }
        }
        (best as u32, top - second)
    }
}

/// The largest difference; NaN where one has a NaN that the other has not.
pub(super) fn max_difference(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |worst, (a, b)| {
        let d = (a - b).abs();
        if d > worst || d.is_nan() { d } else { worst }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_zero_for_shifted_logits_and_known_for_a_coin() {
        let a = Distribution::new(&[1.0, 2.0, 3.0]);
        let b = Distribution::new(&[11.0, 12.0, 13.0]);
        assert!(a.divergence(&b) < 1e-12);
        let (fair, biased) = ([0.0, 0.0], [0.0, 3f32.ln()]);
        let got = Distribution::new(&fair).divergence(&Distribution::new(&biased));
        let want = 0.5 * (0.5f64 / 0.25).ln() + 0.5 * (0.5f64 / 0.75).ln();
        assert!((got - want).abs() < 1e-6, "{got} {want}");
        let impossible = [0.0, f32::NEG_INFINITY];
        assert!(Distribution::new(&impossible).divergence(&Distribution::new(&fair)) > 0.69);
    }

    #[test]
    fn the_best_token_and_its_lead() {
        assert_eq!(Distribution::new(&[1.0, 4.0, 3.5]).best(), (1, 0.5));
        assert_eq!(Distribution::new(&[4.0, 4.0]).best(), (0, 0.0));
        assert!(max_difference(&[1.0, f32::NAN], &[1.0, 1.0]).is_nan());
        assert_eq!(max_difference(&[1.0, -2.0], &[1.5, -2.0]), 0.5);
    }
}
