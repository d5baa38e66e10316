use serde::{Deserialize, Serialize};

use super::math;

/// What stands for the logarithm of no probability at all, as in OpenAI's API: JSON has no infinity.
const NEVER: f32 = -9999.0;

/// The logarithms of a token's probability and of those of the most likely tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token.
    pub token: u32,
    /// Its logarithm, at least -9999.
    pub logprob: f32,
    /// The most likely tokens, most likely first, the lower id among equals.
    pub top: Vec<(u32, f32)>,
}

/// Logarithms of probabilities by the model's own logits, before penalties, filters and temperature: what
/// OpenAI's API and vLLM report. `top` is how many of the most likely tokens to give; fewer where there
/// are no more numbers.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> TokenLogprobs {
    let Some((_, max)) = math::largest(logits) else {
        return TokenLogprobs {
            token,
            logprob: NEVER,
            top: Vec::new(),
        };
    };
    let total = math::sum_exp(logits, max).ln();
    let of = |logit: f32| {
        let logprob = (-f64::from(math::below(max, logit)) - total) as f32;
        // Also for NaN.
        logprob.max(NEVER)
    };
    let mut best = Vec::new();
    math::top_k(logits, top, &mut best);
    best.sort_unstable_by(math::larger_first);
    TokenLogprobs {
        token,
        logprob: logits.get(token as usize).map_or(NEVER, |&logit| of(logit)),
        top: best
            .into_iter()
            .map(|(logit, id)| (id, of(logit)))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_the_logarithm_of_the_softmax() {
        let logits: Vec<f32> = (0..777)
            .map(|i| ((i * 37) % 101) as f32 / 5.0 - 9.0)
            .collect();
        let total: f64 = logits.iter().map(|&v| f64::from(v).exp()).sum();
        let got = logprobs(&logits, 5, 20);
        let want = f64::from(logits[5]) - total.ln();
        assert!((f64::from(got.logprob) - want).abs() < 1e-5);
        assert_eq!(got.top.len(), 20);
        assert!(got.top.windows(2).all(|w| w[0].1 >= w[1].1));
        let all: f64 = logprobs(&logits, 0, 777)
            .top
            .iter()
            .map(|t| f64::from(t.1).exp())
            .sum();
        assert!((all - 1.0).abs() < 1e-5, "{all}");
    }

    #[test]
    fn every_one_is_a_number() {
        let logits = [f32::NAN, f32::NEG_INFINITY, 3.0, f32::MIN, f32::INFINITY];
        for token in 0..7 {
            let got = logprobs(&logits, token, 9);
            assert_eq!(got.logprob, if token == 4 { 0.0 } else { NEVER });
            assert_eq!(got.top[0], (4, 0.0));
            assert!(got.top.iter().all(|t| t.1.is_finite()));
        }
        assert_eq!(logprobs(&[f32::NAN; 3], 1, 2).logprob, NEVER);
        assert_eq!(logprobs(&[], 1, 2).top, []);
    }
}
