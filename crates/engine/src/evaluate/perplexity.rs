use biplane_models::{ModelRunner, Want};
use serde::{Deserialize, Serialize};

use super::{logits, rows, stats::Distribution};
use crate::{Error, ModelBuilder, Result};

/// How to measure perplexity.
#[derive(Clone, Copy, Debug)]
pub struct PerplexitySettings {
    /// Tokens of each window of the text; the model sees no further back.
    pub window: usize,
}

impl Default for PerplexitySettings {
    fn default() -> Self {
        PerplexitySettings { window: 1024 }
    }
}

/// How well a model predicts a text.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Perplexity {
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// Mean negative log-likelihood of a token, in nats.
    pub nll: f64,
    /// Standard error of that mean.
    pub standard_error: f64,
    /// Tokens that were predicted.
    pub tokens: usize,
    /// Tokens of a window.
    pub window: usize,
}

/// The perplexity of a model on a text: cut into windows of the same length, each predicted from its
/// own second token on; a beginning-of-sequence token, where the model wants one, starts every window.
///
/// # Errors
/// What loading and running report; [`Error::Request`] for a text of less than two tokens or a window
/// that does not fit the context.
pub fn perplexity(
    builder: ModelBuilder,
    text: &str,
    settings: &PerplexitySettings,
) -> Result<Perplexity> {
    let (mut runners, tokenizer) = builder.build_runners(&[])?;
    let ids = tokenizer.encode(text, crate::tokenizer::Specials::Plain)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    let Some(runner) = runners.first_mut() else {
        return Err(Error::Stopped("no model was loaded".into()));
    };
    of_tokens(&mut **runner, &ids, bos, settings)
}

fn of_tokens(
    runner: &mut dyn ModelRunner,
    ids: &[u32],
    bos: Option<u32>,
    settings: &PerplexitySettings,
) -> Result<Perplexity> {
    let window = settings.window.min(runner.info().context_length);
    let own = window.saturating_sub(usize::from(bos.is_some()));
    if own < 2 {
        return Err(Error::Request(format!(
            "a window of {window} tokens leaves nothing to predict; use a larger one"
        )));
    }
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0usize);
    for part in ids.chunks(own) {
        let tokens: Vec<u32> = bos.into_iter().chain(part.iter().copied()).collect();
        for nll in window_nll(runner, &tokens)? {
            sum += nll;
            squares += nll * nll;
            count += 1;
        }
    }
    if count == 0 {
        return Err(Error::Request(
            "the text has less than two tokens: nothing can be predicted".into(),
        ));
    }
    let n = count as f64;
    let mean = sum / n;
    let variance = (squares / n - mean * mean).max(0.0);
    Ok(Perplexity {
        perplexity: mean.exp(),
        nll: mean,
        standard_error: (variance / n).sqrt(),
        tokens: count,
        window,
    })
}

/// The negative log-likelihoods of a window's tokens after the first.
fn window_nll(runner: &mut dyn ModelRunner, tokens: &[u32]) -> Result<Vec<f64>> {
    let vocab = runner.info().vocab_size;
    let step = rows(runner);
    let slot = runner.open()?;
    let mut all = Vec::with_capacity(tokens.len());
    // The last token's logits predict nothing that is known.
    let known = tokens.len().saturating_sub(1);
    for (i, part) in tokens[..known].chunks(step).enumerate() {
        let logits = match logits(runner, slot, part, Want::AllLogits) {
            Ok(logits) => logits,
            Err(error) => {
                runner.close(slot);
                return Err(error);
            }
        };
        let next = &tokens[i * step + 1..];
        for (row, &next) in logits.chunks_exact(vocab).zip(next) {
            all.push(-Distribution::new(row).log_probability(next as usize));
        }
    }
    runner.close(slot);
    Ok(all)
}
