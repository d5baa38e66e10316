//! A step that was started and not looked at yet.

use biplane_backend::Tensor;

use super::{ModelInfo, SlotId, SpanOutput, Want};
use crate::{Error, Result};

/// Output of a step in flight.
pub(super) struct Pending<T> {
    pub logits: Option<T>,
    /// The most likely tokens of all logit rows, when every span wants just those.
    pub tokens: Option<T>,
    pub hidden: Option<T>,
    /// The spans in the order of their rows.
    pub spans: Vec<Wanted>,
}

/// A span of a step in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub slot: SlotId,
    pub want: Want,
    /// Rows that are given.
    pub rows: usize,
    /// Its place in the plan.
    pub place: usize,
}

impl<T: Tensor> Pending<T> {
    /// Waits; gives one output a span, in the plan's order.
    pub fn outputs(&self, info: &ModelInfo) -> Result<Vec<SpanOutput>> {
        let floats = |t: &Option<T>| t.as_ref().map_or(Ok(Vec::new()), Tensor::to_f32s);
        let tokens = self
            .tokens
            .as_ref()
            .map_or(Ok(Vec::new()), Tensor::to_u32s)?;
        let (logits, hidden) = (floats(&self.logits)?, floats(&self.hidden)?);
        let mut tokens = tokens.into_iter();
        let mut logits = Rows::new(&logits, info.vocab_size);
        let mut hidden = Rows::new(&hidden, info.hidden_size);
        let mut one = |&Wanted { want, rows, .. }: &Wanted| {
            Ok::<_, Error>(match want {
                Want::Nothing => SpanOutput::Nothing,
                Want::Argmax => SpanOutput::Token(match tokens.next() {
                    Some(token) => token,
                    None => argmax(logits.take(1)?),
                }),
                Want::LastLogits | Want::AllLogits => {
                    SpanOutput::Logits(logits.take(rows)?.to_vec())
                }
                Want::Hidden => SpanOutput::Hidden(hidden.take(rows)?.to_vec()),
            })
        };
        let mut placed = Vec::with_capacity(self.spans.len());
        for span in &self.spans {
            placed.push((span.place, one(span)?));
        }
        placed.sort_by_key(|(place, _)| *place);
        Ok(placed.into_iter().map(|(_, output)| output).collect())
    }
}

/// Rows that are handed out in order.
struct Rows<'a> {
    left: &'a [f32],
    width: usize,
}

impl<'a> Rows<'a> {
    fn new(left: &'a [f32], width: usize) -> Self {
        Rows { left, width }
    }

    fn take(&mut self, rows: usize) -> Result<&'a [f32]> {
        let n = rows * self.width;
        let (part, left) = self.left.split_at_checked(n).ok_or_else(|| {
            Error::Request(format!(
                "the model gave {} numbers for {rows} rows of {}",
                self.left.len(),
                self.width
            ))
        })?;
        self.left = left;
        Ok(part)
    }
}

/// Position of the largest value, the lowest among equals; NaN is never it.
fn argmax(values: &[f32]) -> u32 {
    let mut best = (f32::NEG_INFINITY, 0);
    for (i, v) in values.iter().enumerate() {
        if *v > best.0 {
            best = (*v, i as u32);
        }
    }
    best.1
}
