//! RoPE angles that stay on the device.

use biplane_backend::{Backend, Result, RopeAngles};

/// Neighbouring positions whose angles are made at once.
const BLOCK: u32 = 256;
/// Blocks that are kept: sequences that take turns have one each.
const BLOCKS: usize = 8;
/// Most tokens whose angles are taken of a block. A prompt's are not needed twice.
const FEW: u32 = 16;

/// The last blocks of angles. A step of a few tokens takes views of one: bringing a few numbers to a GPU costs more
/// than all it computes with them.
pub(crate) struct AngleBlocks<B: Backend> {
    blocks: Vec<Block<B>>,
}

struct Block<B: Backend> {
    start: u32,
    inv_freqs: Vec<f32>,
    angles: RopeAngles<B::Tensor>,
}

impl<B: Backend> Default for AngleBlocks<B> {
    fn default() -> Self {
        AngleBlocks { blocks: Vec::new() }
    }
}

impl<B: Backend> AngleBlocks<B> {
    /// As [`RopeAngles::new`].
    pub fn angles(
        &mut self,
        backend: &B,
        positions: &[u32],
        inv_freqs: &[f32],
        interleaved: bool,
    ) -> Result<RopeAngles<B::Tensor>> {
        let Some((start, first, len)) = in_a_block(positions) else {
            return RopeAngles::new(backend, positions, inv_freqs, interleaved);
        };
        let known = self.blocks.iter().position(|block| {
            block.start == start
                && block.angles.interleaved == interleaved
                && block.inv_freqs == inv_freqs
        });
        let block = match known {
            Some(at) => self.blocks.remove(at),
            None => {
                let all: Vec<u32> = (start..start + BLOCK).collect();
                Block {
                    start,
                    inv_freqs: inv_freqs.to_vec(),
                    angles: RopeAngles::new(backend, &all, inv_freqs, interleaved)?,
                }
            }
        };
        let angles = block.angles.narrow(first, len);
        if self.blocks.len() == BLOCKS {
            self.blocks.remove(0);
        }
        self.blocks.push(block);
        angles
    }
}

/// Of a few neighbouring positions, the block's start, the first one's place in it, and how many they are.
fn in_a_block(positions: &[u32]) -> Option<(u32, usize, usize)> {
    let (&first, &last) = (positions.first()?, positions.last()?);
    let start = first / BLOCK * BLOCK;
    let neighbours = positions
        .windows(2)
        .all(|two| two[0].checked_add(1) == Some(two[1]));
    let few = neighbours && last - first < FEW && last - start < BLOCK;
    (few && start.checked_add(BLOCK).is_some()).then_some((
        start,
        (first - start) as usize,
        positions.len(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_few_neighbours_of_a_block_share_one() {
        assert_eq!(in_a_block(&[0]), Some((0, 0, 1)));
        assert_eq!(in_a_block(&[700, 701]), Some((512, 188, 2)));
        assert_eq!(in_a_block(&[255, 256]), None);
        assert_eq!(in_a_block(&[3, 5]), None);
        assert_eq!(in_a_block(&[5, 4]), None);
        assert_eq!(in_a_block(&(0..17).collect::<Vec<_>>()), None);
        assert_eq!(in_a_block(&[]), None);
        assert_eq!(in_a_block(&[u32::MAX]), None);
    }
}
