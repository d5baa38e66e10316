//! How good a model is, and whether the backends agree on it: perplexity and verification.

mod perplexity;
mod stats;
mod verify;

pub use perplexity::{Perplexity, PerplexitySettings, perplexity};
pub use verify::{PromptReport, TextReport, Tolerances, VerifyReport, VerifySettings, verify};

use biplane_models::{ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want};

use crate::{Error, Result};

/// Most logits a step may give: they come to the host in f32.
const LOGITS: usize = 1 << 24;

/// Tokens whose logits fit a step.
fn rows(runner: &dyn ModelRunner) -> usize {
    (LOGITS / runner.info().vocab_size.max(1)).clamp(1, 256)
}

/// The logits of a step of one span.
fn logits(
    runner: &mut dyn ModelRunner,
    slot: SlotId,
    tokens: &[u32],
    want: Want,
) -> Result<Vec<f32>> {
    let span = SpanPlan {
        slot,
        tokens: tokens.to_vec(),
        want,
    };
    match runner.step(&StepPlan { spans: vec![span] })?.pop() {
        Some(SpanOutput::Logits(logits)) => Ok(logits),
        _ => Err(Error::Stopped("a step gave no logits".into())),
    }
}
