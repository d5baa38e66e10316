use std::time::Instant;

use biplane_models::{ModelInfo, ModelRunner, SlotId, Want};
use serde::{Deserialize, Serialize};

use super::{
    logits, rows,
    stats::{Distribution, max_difference},
};
use crate::{
    BackendKind, Error, ModelBuilder, Result,
    tokenizer::{Specials, Tokenizer},
};

/// What to compare.
#[derive(Clone, Debug)]
pub struct VerifySettings {
    /// The two backends; the first is the reference.
    pub backends: [BackendKind; 2],
    /// Texts to continue greedily.
    pub prompts: Vec<String>,
    /// Tokens to generate after each.
    pub generate: usize,
    /// A text whose every token is predicted.
    pub text: String,
    /// What is still agreement.
    pub tolerances: Tolerances,
}

/// Limits of agreement.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Tolerances {
    /// Difference of the mean negative log-likelihood over the text, in nats.
    pub nll: f64,
    /// Least fraction of the text's tokens after which both find the same token most likely.
    pub top1: f64,
}

impl Default for Tolerances {
    /// Rounding passes; wrong values of a layer do not.
    fn default() -> Self {
        Tolerances {
            nll: 5e-3,
            top1: 0.98,
        }
    }
}

/// Short prompts of several kinds: prose, code, other scripts, numbers.
pub const PROMPTS: [&str; 4] = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Les élèves étudient à l'école, 日本語 🙂 and",
    "1, 2, 4, 8, 16,",
];

impl Default for VerifySettings {
    fn default() -> Self {
        VerifySettings {
            backends: [BackendKind::Candle, BackendKind::Mlx],
            prompts: PROMPTS.map(str::to_owned).to_vec(),
            generate: 32,
            text: include_str!("passage.txt").trim().to_owned(),
            tolerances: Tolerances::default(),
        }
    }
}

/// How two backends agree on a model.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct VerifyReport {
    /// The backends, the reference first.
    pub backends: [String; 2],
    /// The devices they computed on.
    pub devices: [String; 2],
    /// Element types of activations.
    pub dtypes: [String; 2],
    /// The prompts.
    pub prompts: Vec<PromptReport>,
    /// The text.
    pub text: TextReport,
    /// The limits.
    pub tolerances: Tolerances,
    /// Whether they were kept.
    pub agree: bool,
}

/// Greedy continuations of one prompt.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PromptReport {
    /// The prompt.
    pub prompt: String,
    /// Its tokens.
    pub prompt_tokens: usize,
    /// Tokens that both generated alike.
    pub same_tokens: usize,
    /// The largest difference of a logit along them.
    pub max_logit_difference: f32,
    /// Mean Kullback-Leibler divergence along them, in nats.
    pub kl: f64,
    /// Where they part.
    pub divergence: Option<Divergence>,
    /// The common text.
    pub generated: String,
}

/// Where two greedy continuations part.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Divergence {
    /// Number of the generated token, from 0.
    pub at: usize,
    /// What each backend generates there.
    pub tokens: [String; 2],
    /// The lead of each backend's token over its second in logits: small where it is a tie.
    pub gaps: [f32; 2],
}

/// Predictions of a text's tokens.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct TextReport {
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Fraction where both find the same token most likely.
    pub top1_agreement: f64,
    /// The largest lead, in the reference's logits, of a token that the other does not find best.
    pub worst_disagreement: f32,
    /// The largest difference of a logit.
    pub max_logit_difference: f32,
    /// Mean Kullback-Leibler divergence, in nats.
    pub kl: f64,
    /// Mean negative log-likelihoods, in nats.
    pub nll: [f64; 2],
    /// Their exponentials.
    pub perplexity: [f64; 2],
    /// Seconds each took.
    pub seconds: [f64; 2],
}

/// Runs one checkpoint on two backends and compares what they compute, in exact arithmetic
/// ([`ModelBuilder::with_exact`]).
///
/// # Errors
/// What loading and running report.
pub fn verify(builder: ModelBuilder, settings: &VerifySettings) -> Result<VerifyReport> {
    let (runners, tokenizer) = builder.with_exact(true).build_runners(&settings.backends)?;
    let Ok([a, b]) = <[_; 2]>::try_from(runners) else {
        return Err(Error::Stopped("two models were not loaded".into()));
    };
    let mut pair = Pair {
        runners: [a, b],
        tokenizer: &tokenizer,
    };
    let prompts = settings
        .prompts
        .iter()
        .map(|prompt| pair.prompt(prompt, settings.generate))
        .collect::<Result<_>>()?;
    let text = pair.text(&settings.text)?;
    let limits = settings.tolerances;
    let agree = (text.nll[0] - text.nll[1]).abs() <= limits.nll
        && text.top1_agreement >= limits.top1
        && text.kl.is_finite();
    let each = |f: &dyn Fn(&ModelInfo) -> String| {
        let [a, b] = &pair.runners;
        [f(a.info()), f(b.info())]
    };
    Ok(VerifyReport {
        backends: each(&|i| i.backend.to_owned()),
        devices: each(&|i| i.device.to_string()),
        dtypes: each(&|i| i.dtype.to_string()),
        prompts,
        text,
        tolerances: limits,
        agree,
    })
}

/// One checkpoint on two backends.
struct Pair<'a> {
    runners: [Box<dyn ModelRunner>; 2],
    tokenizer: &'a Tokenizer,
}

impl Pair<'_> {
    /// Runs `f` with a sequence on each backend.
    fn with_slots<T>(&mut self, f: impl FnOnce(&mut Self, [SlotId; 2]) -> Result<T>) -> Result<T> {
        let slots = [self.runners[0].open()?, self.runners[1].open()?];
        let result = f(self, slots);
        for (runner, slot) in self.runners.iter_mut().zip(slots) {
            runner.close(slot);
        }
        result
    }

    fn step(&mut self, slots: [SlotId; 2], tokens: &[u32], want: Want) -> Result<[Vec<f32>; 2]> {
        let [a, b] = &mut self.runners;
        Ok([
            logits(&mut **a, slots[0], tokens, want)?,
            logits(&mut **b, slots[1], tokens, want)?,
        ])
    }

    fn prompt(&mut self, prompt: &str, generate: usize) -> Result<PromptReport> {
        let ids = self.tokenizer.encode_with_bos(prompt, Specials::Plain)?;
        if ids.is_empty() {
            return Err(Error::Request(format!(
                "the prompt {prompt:?} has no tokens"
            )));
        }
        self.with_slots(|pair, slots| {
            let mut report = PromptReport {
                prompt: prompt.to_owned(),
                prompt_tokens: ids.len(),
                same_tokens: 0,
                max_logit_difference: 0.0,
                kl: 0.0,
                divergence: None,
                generated: String::new(),
            };
            let (mut next, mut generated, mut kl) = (ids.clone(), Vec::new(), Vec::new());
            while generated.len() < generate {
                let [a, b] = pair.step(slots, &next, Want::LastLogits)?;
                let worst = max_difference(&a, &b);
                report.max_logit_difference = report.max_logit_difference.max(worst);
                let (a, b) = (Distribution::new(&a), Distribution::new(&b));
                kl.push(a.divergence(&b));
                let ((x, gap_a), (y, gap_b)) = (a.best(), b.best());
                if x != y {
                    report.divergence = Some(Divergence {
                        at: generated.len(),
                        tokens: [x, y].map(|id| pair.tokenizer.decode(&[id], false)),
                        gaps: [gap_a, gap_b],
                    });
                    break;
                }
                generated.push(x);
                if pair.tokenizer.eos() == Some(x) {
                    break;
                }
                next = vec![x];
            }
            report.same_tokens = generated.len();
            report.generated = pair.tokenizer.decode(&generated, false);
            report.kl = kl.iter().sum::<f64>() / kl.len().max(1) as f64;
            Ok(report)
        })
    }

    fn text(&mut self, text: &str) -> Result<TextReport> {
        let mut ids = self.tokenizer.encode_with_bos(text, Specials::Plain)?;
        let [a, b] = &self.runners;
        let context = a.info().context_length.min(b.info().context_length);
        if ids.len() > context {
            tracing::warn!(
                "of the text's {} tokens the first {context} are compared",
                ids.len()
            );
            ids.truncate(context);
        }
        let (step, vocab) = (rows(&**a), a.info().vocab_size);
        let predicted = ids.len().saturating_sub(1);
        if predicted == 0 {
            return Err(Error::Request(
                "the text has less than two tokens: nothing can be predicted".into(),
            ));
        }
        self.with_slots(|pair, slots| {
            let (mut same, mut kl, mut nll, mut seconds) = (0usize, 0.0, [0.0; 2], [0.0; 2]);
            let (mut worst, mut disagreement) = (0f32, 0f32);
            for (i, part) in ids[..predicted].chunks(step).enumerate() {
                let mut both = [Vec::new(), Vec::new()];
                for side in 0..2 {
                    let start = Instant::now();
                    let runner = &mut *pair.runners[side];
                    both[side] = logits(runner, slots[side], part, Want::AllLogits)?;
                    seconds[side] += start.elapsed().as_secs_f64();
                }
                let [a, b] = &both;
                worst = worst.max(max_difference(a, b));
                let rows = a.chunks_exact(vocab).zip(b.chunks_exact(vocab));
                for ((a, b), &next) in rows.zip(&ids[i * step + 1..]) {
                    let (a, b) = (Distribution::new(a), Distribution::new(b));
                    nll[0] -= a.log_probability(next as usize);
                    nll[1] -= b.log_probability(next as usize);
                    kl += a.divergence(&b);
                    let ((x, gap), (y, _)) = (a.best(), b.best());
                    if x == y {
                        same += 1;
                    } else {
                        disagreement = disagreement.max(gap);
                    }
                }
            }
            let n = predicted as f64;
            let nll = nll.map(|sum| sum / n);
            Ok(TextReport {
                tokens: predicted,
                top1_agreement: same as f64 / n,
                worst_disagreement: disagreement,
                max_logit_difference: worst,
                kl: kl / n,
                nll,
                perplexity: nll.map(f64::exp),
                seconds,
            })
        })
    }
}
