use crate::cpu::{SharedOut, pool};

use super::codec::Codec;
use super::layout::{Bias, Format, Layout, Scaling, with_codec};

/// Tokens whose sums the innermost kernel keeps in registers at once.
pub(super) const TILE: usize = 3;
/// Most tokens that a decoded block of weights is used for before the next is decoded: their
/// activations, their outputs and the block fit the first-level cache together.
pub(super) const MAX_TOKENS: usize = 72;

/// How the tokens of a call are arranged for the kernels.
///
/// Tokens are cut into blocks of [`Self::tokens`]; for every token block, for every block of weights,
/// for every tile of [`TILE`] tokens there is `[k][token]` activations, multiplied with
/// [`Codec::x_scale`], then a starting value for every token, then the sum of its activations.
#[derive(Clone, Copy)]
pub(super) struct Arrangement {
    /// All tokens.
    pub rows: usize,
    /// Tokens of a token block (the last may have fewer); a multiple of [`TILE`] if there are
    /// several.
    pub tokens: usize,
    /// Floats of one token in one block: activations, starting value, sum.
    pub unit: usize,
    /// Blocks of a row.
    blocks: usize,
}

impl Arrangement {
    pub fn new(layout: &Layout, rows: usize) -> Arrangement {
        let token_blocks = rows.div_ceil(MAX_TOKENS).max(1);
        let even = rows.div_ceil(token_blocks);
        Arrangement {
            rows,
            tokens: if token_blocks == 1 {
                even
            } else {
                even.next_multiple_of(TILE)
            },
            unit: layout.block() + 2,
            blocks: layout.blocks(),
        }
    }

    /// Number of token blocks.
    pub fn token_blocks(&self) -> usize {
        self.rows.div_ceil(self.tokens)
    }

    /// Tokens of one token block.
    pub fn tokens_of(&self, token_block: usize) -> usize {
        self.tokens.min(self.rows - token_block * self.tokens)
    }

    /// Where a token block starts.
    pub fn start_of(&self, token_block: usize) -> usize {
        token_block * self.tokens * self.blocks * self.unit
    }

    /// Floats in all.
    pub fn len(&self) -> usize {
        self.rows * self.blocks * self.unit
    }
}

/// Arranges `x [rows, cols]` into `out`, [`Arrangement::len`] long.
pub(super) fn arrange(layout: &Layout, at: &Arrangement, x: &[f32], out: &mut [f32]) {
    assert!(x.len() == at.rows * layout.cols && out.len() == at.len());
    let zero = match layout.scaling {
        Some(Scaling {
            bias: Bias::ZeroPoint(zero),
            ..
        }) => f32::from(zero),
        _ => 0.0,
    };
    let shared = SharedOut(out.as_mut_ptr());
    let scale: [f32; 32] = with_codec!(layout.format, C => std::array::from_fn(C::x_scale));
    let tiles_of_block = at.tokens.div_ceil(TILE);
    let tile = |i: usize| {
        let (token_block, tile) = (i / tiles_of_block, i % tiles_of_block);
        let tokens = at.tokens_of(token_block);
        if tile * TILE >= tokens {
            return;
        }
        let width = TILE.min(tokens - tile * TILE);
        let first = token_block * at.tokens + tile * TILE;
        for block in 0..at.blocks {
            let start = at.start_of(token_block) + (block * tokens + tile * TILE) * at.unit;
            // SAFETY: within `out`, and every tile and block has a part of its own.
            let out = unsafe { shared.part(start, width * at.unit) };
            for t in 0..width {
                let row = &x[(first + t) * layout.cols..][..layout.cols];
                arrange_one(
                    row,
                    block,
                    &scale[..at.unit - 2],
                    zero,
                    &mut out[t..],
                    width,
                );
            }
        }
    };
    let tiles = at.token_blocks() * tiles_of_block;
    if at.rows > TILE {
        pool::parallel_for(tiles, tile);
    } else {
        (0..tiles).for_each(tile);
    }
}

/// One token's part of one block of as many elements as `scale` has; its numbers lie `width` apart.
#[inline(always)]
fn arrange_one(row: &[f32], block: usize, scale: &[f32], zero: f32, out: &mut [f32], width: usize) {
    let n = scale.len();
    let mut x = [0.0; 32];
    let start = (block * n).min(row.len());
    let here = &row[start..row.len().min(start + n)];
    x[..here.len()].copy_from_slice(here);
    let mut sums = [0.0f32; 8];
    for part in x.chunks_exact(8) {
        for (sum, x) in sums.iter_mut().zip(part) {
            *sum += x;
        }
    }
    let sum = sums.iter().sum::<f32>();
    for ((out, x), scale) in out.iter_mut().step_by(width).zip(x).zip(scale) {
        *out = x * scale;
    }
    // Not the product alone: an infinite sum must stay out of codes that count from 0.
    out[n * width] = if zero == 0.0 { 0.0 } else { -zero * sum };
    out[(n + 1) * width] = sum;
}
