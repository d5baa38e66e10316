//! Choosing the next token from logits, on the host: the same numbers choose the same token on every
//! backend.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{Rng, SeedableRng},
};

/// How to choose tokens.
///
/// Applied in transformers' order: temperature, then top-k, then top-p, then min-p.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SamplingParams {
    /// Logits are divided by this; 0 takes the most likely token always.
    pub temperature: f32,
    /// Only the `k` most likely tokens; 0 for all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1 for all
    /// (Holtzman et al. 2020).
    pub top_p: f32,
    /// Only tokens at least this fraction as likely as the most likely one; 0 for all
    /// (Nguyen et al. 2024).
    pub min_p: f32,
    /// Seed of the random numbers; `None` for one from the system.
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            seed: None,
        }
    }
}

impl SamplingParams {
    /// Whether the most likely token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Refuses what is no probability and no temperature.
    ///
    /// # Errors
    /// The parameter's name, its value and what it may be.
    pub fn validate(&self) -> Result<(), String> {
        let check = |name: &str, value: f32, range: std::ops::RangeInclusive<f32>| {
            if range.contains(&value) {
                return Ok(());
            }
            Err(format!(
                "{name} is {value}, expected {} to {}",
                range.start(),
                range.end()
            ))
        };
        check("temperature", self.temperature, 0.0..=100.0)?;
        check("top_p", self.top_p, 0.0..=1.0)?;
        check("min_p", self.min_p, 0.0..=1.0)
    }
}

/// A sampler of one sequence.
#[derive(Debug)]
pub struct Sampler {
    params: SamplingParams,
    rng: ChaCha8Rng,
    candidates: Vec<(f32, u32)>,
}

/// Candidates looked at first: nearly always enough for top-p, and far cheaper than sorting all.
const FIRST: usize = 256;

impl Sampler {
    /// A sampler; without a seed the system's randomness seeds it.
    pub fn new(params: SamplingParams) -> Self {
        Sampler {
            params,
            rng: match params.seed {
                Some(seed) => ChaCha8Rng::seed_from_u64(seed),
                None => ChaCha8Rng::seed_from_u64(entropy()),
            },
            candidates: Vec::new(),
        }
    }

    /// The next token for `logits [vocab]`, or `None` when none of them is a number: NaN is never
    /// chosen.
    pub fn sample(&mut self, logits: &[f32]) -> Option<u32> {
        let best = argmax(logits)?;
        if self.params.is_greedy() {
            return Some(best);
        }
        self.candidates.clear();
        self.candidates.extend(
            logits
                .iter()
                .enumerate()
                .filter(|(_, v)| !v.is_nan())
                .map(|(i, v)| (*v, i as u32)),
        );
        let kept = match self.params.top_k {
            0 => self.candidates.len(),
            k => k.min(self.candidates.len()),
        };
        keep_largest(&mut self.candidates, kept);
        let max = logits.get(best as usize).copied().unwrap_or_default();
        let mut total = 0.0f64;
        for c in &mut self.candidates {
            // The difference first: a small temperature must not overflow it.
            c.0 = ((c.0 - max) / self.params.temperature).exp();
            total += f64::from(c.0);
        }
        if self.params.top_p < 1.0 {
            total = self.keep_top_p(total);
        }
        if self.params.min_p > 0.0 {
            // The largest weight is exp(0) = 1.
            let floor = self.params.min_p;
            self.candidates.retain(|c| c.0 >= floor);
            total = self.candidates.iter().map(|c| f64::from(c.0)).sum();
        }
        // Rising ids: the walk below then does not depend on how the selection left them.
        self.candidates.sort_unstable_by_key(|c| c.1);
        let mut left = self.uniform() * total;
        for c in &self.candidates {
            left -= f64::from(c.0);
            if left < 0.0 {
                return Some(c.1);
            }
        }
        Some(self.candidates.last().map_or(best, |c| c.1))
    }

    /// Keeps the most likely candidates whose weights reach `top_p` of `total`, at least one; gives
    /// their weights' sum.
    fn keep_top_p(&mut self, total: f64) -> f64 {
        let goal = f64::from(self.params.top_p) * total;
        let mut first = FIRST.min(self.candidates.len());
        loop {
            let n = self.candidates.len();
            if first < n {
                self.candidates
                    .select_nth_unstable_by(first - 1, by_weight_then_id);
            }
            if let Some(head) = self.candidates.get_mut(..first) {
                head.sort_unstable_by(by_weight_then_id);
                let mut sum = 0.0;
                for (i, c) in head.iter().enumerate() {
                    sum += f64::from(c.0);
                    if sum >= goal {
                        self.candidates.truncate(i + 1);
                        return sum;
                    }
                }
                if first == n {
                    return sum;
                }
            }
            first = n;
        }
    }

    /// A number in `[0, 1)` of 53 random bits.
    fn uniform(&mut self) -> f64 {
        (self.rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn by_weight_then_id(a: &(f32, u32), b: &(f32, u32)) -> std::cmp::Ordering {
    b.0.total_cmp(&a.0).then(a.1.cmp(&b.1))
}

fn keep_largest(candidates: &mut Vec<(f32, u32)>, k: usize) {
    if k > 0 && k < candidates.len() {
        candidates.select_nth_unstable_by(k - 1, by_weight_then_id);
        candidates.truncate(k);
    }
}

/// Position of the largest value, the lowest among equals; `None` when all are NaN or minus infinity.
fn argmax(values: &[f32]) -> Option<u32> {
    let mut best = (f32::NEG_INFINITY, None);
    for (i, &v) in values.iter().enumerate() {
        if v > best.0 {
            best = (v, Some(i as u32));
        }
    }
    best.1
}

/// A seed from the randomness that std's hash maps take from the system.
fn entropy() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(params: SamplingParams, logits: &[f32], n: usize) -> Vec<usize> {
        let mut sampler = Sampler::new(params);
        let mut counts = vec![0; logits.len()];
        for _ in 0..n {
            counts[sampler.sample(logits).unwrap() as usize] += 1;
        }
        counts
    }

    fn with(f: impl FnOnce(&mut SamplingParams)) -> SamplingParams {
        let mut params = SamplingParams {
            temperature: 1.0,
            seed: Some(7),
            ..SamplingParams::default()
        };
        f(&mut params);
        params
    }

    const LOGITS: [f32; 5] = [0.0, 2.0, 1.0, f32::NAN, -1.0];

    #[test]
    fn frequencies_are_the_softmax() {
        let n = 20_000;
        let got = counts(with(|_| {}), &LOGITS, n);
        let exp: Vec<f64> = LOGITS
            .iter()
            .map(|v| if v.is_nan() { 0.0 } else { f64::from(*v).exp() })
            .collect();
        let total: f64 = exp.iter().sum();
        for (got, want) in got.iter().zip(exp) {
            let (got, want) = (*got as f64 / n as f64, want / total);
            assert!((got - want).abs() < 0.015, "{got} {want}");
        }
    }

    #[test]
    fn each_filter_drops_what_it_should() {
        let seen = |p| -> Vec<usize> {
            let c = counts(p, &LOGITS, 2000);
            (0..5).filter(|&i| c[i] > 0).collect()
        };
        assert_eq!(seen(with(|p| p.top_k = 2)), [1, 2]);
        // Probabilities: 0.61, 0.22, 0.08, 0.03 of 0.94; 0.8 is reached by two.
        assert_eq!(seen(with(|p| p.top_p = 0.8)), [1, 2]);
        assert_eq!(seen(with(|p| p.top_p = 0.0)), [1]);
        assert_eq!(seen(with(|p| p.min_p = 0.1)), [0, 1, 2]);
        assert_eq!(seen(with(|p| p.temperature = 0.0)), [1]);
        assert_eq!(seen(with(|_| {})), [0, 1, 2, 4]);
    }

    #[test]
    fn top_p_over_a_flat_vocabulary_keeps_its_share() {
        let logits = vec![1.0; 5000];
        let got = counts(with(|p| p.top_p = 0.5), &logits, 20_000);
        assert!(got[2500..].iter().all(|&c| c == 0));
        assert!(got[..2500].iter().filter(|&&c| c > 0).count() > 2400);
    }

    #[test]
    fn a_seed_means_the_same_every_time() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 101) as f32 / 10.0).collect();
        let run = |seed| {
            let mut s = Sampler::new(with(|p| p.seed = Some(seed)));
            (0..20).map(|_| s.sample(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(with(|p| p.temperature = f32::NAN).validate().is_err());
        assert!(with(|p| p.temperature = -1.0).validate().is_err());
        assert!(with(|p| p.top_p = 1.5).validate().is_err());
        assert!(with(|p| p.min_p = -0.1).validate().is_err());
        assert!(with(|_| {}).validate().is_ok());
    }

    #[test]
    fn tiny_temperatures_take_the_best_and_nan_is_never_taken() {
        for temperature in [1e-38, 1e-30, 1e-6] {
            let mut s = Sampler::new(with(|p| p.temperature = temperature));
            assert_eq!(s.sample(&[1.0, f32::NAN, 3.0, 2.0]), Some(2));
        }
        let mut s = Sampler::new(with(|p| p.temperature = 1.0));
        assert_eq!(s.sample(&[f32::NAN; 3]), None);
        assert_eq!(
            Sampler::new(SamplingParams::default()).sample(&[f32::NAN; 2]),
            None
        );
    }
}
