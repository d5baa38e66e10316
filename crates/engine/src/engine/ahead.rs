//! Running ahead: on a device that computes beside the processor the next decode step is started
//! before this one's tokens are looked at, so that the device never waits for the host. What was
//! computed of a sequence that turns out to have ended is taken back.

use biplane_models::Want;

use super::{
    guarded,
    scheduler::{Part, Scheduler},
    sequence::Sequence,
};
use crate::Result;

/// A decode step in flight that was started ahead: the sequences in it, in their order.
pub(super) struct Ahead {
    ids: Vec<u64>,
}

impl Sequence {
    /// Whether its next step can be started before this one's token is known: nothing is done on the
    /// host to choose it, and it is not the last.
    fn may_run_ahead(&self) -> bool {
        self.decodes(1) && !self.alone && self.want(1) == Want::Argmax && self.guessable() > 0
    }
}

impl Scheduler<'_> {
    /// Starts the step after the one of `parts`, which is in flight, where every running sequence is
    /// in it and can go on.
    pub fn run_ahead(&mut self, parts: &[Part]) -> Result<Option<Ahead>> {
        let all = self.guesser.is_none()
            && parts.len() == self.running.len()
            && parts.iter().all(|p| {
                p.tokens == 1 && self.running.get(p.index).is_some_and(|s| s.may_run_ahead())
            })
            && self.has_room_for_one_more();
        if !all || !self.launched(|runner| runner.launch_next())? {
            return Ok(None);
        }
        let ids = parts
            .iter()
            .filter_map(|p| self.running.get(p.index))
            .map(|s| s.id)
            .collect();
        Ok(Some(Ahead { ids }))
    }

    /// Whether the budget holds one more token of every running sequence.
    fn has_room_for_one_more(&self) -> bool {
        let slots = self.running.iter().filter_map(|s| s.slot);
        let bytes: usize = slots.map(|slot| self.runner.bytes(slot, 1)).sum();
        bytes + self.cache.bytes() <= self.budget
    }

    /// Ends a step that was started ahead, and starts the next one if that can be.
    pub fn step_ahead(&mut self, ahead: &Ahead) {
        let parts: Vec<Option<Part>> = ahead
            .ids
            .iter()
            .map(|id| {
                let index = self.running.iter().position(|s| s.id == *id)?;
                Some(Part {
                    index,
                    tokens: 1,
                    guessed: Vec::new(),
                })
            })
            .collect();
        let here: Vec<Part> = parts.iter().flatten().cloned().collect();
        let result = guarded(|| {
            let next = match here.len() == parts.len() && self.no_reader_is_waited_for() {
                true => self.run_ahead(&here)?,
                false => None,
            };
            Ok((next, self.collected()?))
        });
        self.counters.update(|m| m.steps += 1);
        match result {
            Ok((next, outputs)) => {
                let outputs: Vec<_> = parts
                    .iter()
                    .zip(outputs)
                    .filter_map(|(part, output)| part.is_some().then_some(output))
                    .collect();
                self.ahead = next;
                self.apply(&here, &outputs);
            }
            Err(error) => self.recover(&here, error),
        }
    }

    fn no_reader_is_waited_for(&self) -> bool {
        self.running.iter().all(|s| !s.waits_for_reader())
    }
}
