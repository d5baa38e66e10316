//! Steps whose results nobody needs, for backends that compile at the first step of a kind.

use biplane_backend::Backend;

use super::{ModelRunner, Runner, SlotId, SpanPlan, StepPlan, Want};
use crate::Result;

/// Tokens of the longest prompt: more than decode steps have.
const PROMPT: usize = 40;

impl<B: Backend> Runner<B> {
    /// Runs a step of each kind that the backend compiles for, of at most `most` sequences.
    pub(super) fn compile(&mut self, most: usize) -> Result<()> {
        let kinds = self.backend.compiles_for();
        for &rows in kinds.iter().filter(|rows| **rows <= most) {
            // Decoding together is masked where sequences differ in length.
            for lens in [[2, 2], [2, 3]] {
                let alone = [PROMPT.min(self.info.context_length / 2).max(1); 2];
                self.try_out(rows, if rows == 1 { alone } else { lens })?;
                if rows == 1 {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Prompts of the given lengths in turn, and a few tokens after them.
    fn try_out(&mut self, rows: usize, lens: [usize; 2]) -> Result<()> {
        let slots: Vec<SlotId> = (0..rows).map(|_| self.open()).collect::<Result<_>>()?;
        let result = self.try_steps(&slots, lens);
        slots.into_iter().for_each(|slot| self.close(slot));
        result
    }

    fn try_steps(&mut self, slots: &[SlotId], lens: [usize; 2]) -> Result<()> {
        let plan = |lens: [usize; 2], want| {
            let spans = slots.iter().enumerate().map(|(i, &slot)| SpanPlan {
                slot,
                tokens: vec![0; lens[i % 2]],
                want,
            });
            StepPlan {
                spans: spans.collect(),
            }
        };
        self.step(&plan(lens, Want::Argmax))?;
        self.launch(&plan([1, 1], Want::Argmax))?;
        if self.launch_next()? {
            self.collect()?;
        }
        self.collect()?;
        self.step(&plan([1, 1], Want::LastLogits))?;
        Ok(())
    }
}
