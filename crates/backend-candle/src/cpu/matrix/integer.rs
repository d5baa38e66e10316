//! The multiplication in integers: codes times activations rounded to 8 bits.
//!
//! For every row and token, block by block: the sum of `code·q` over the block, exact in 32 bits
//! (starting at `-zero · Σq` where codes count from a zero point), then
//! `acc = (scale·scale_x) · sum + acc`, and `acc = bias · (scale_x·Σq) + acc` where biases are stored,
//! each a multiply-add that rounds once. So every machine, batch and number of threads gives the same
//! bits.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::cpu::math::store_part;
use crate::cpu::simd::{Isa, Kernel, Simd, launch, prefetch};

use super::codec::{PANEL, Quads, unroll8, vecs};
use super::job::Columns;
use super::kernels::load_scale;
use super::layout::{Bias, Layout, Scaling};
use super::rounded::{EXTRA, Rounding};

/// Most tokens that codes are taken out of their words for directly; for more, a panel's codes are
/// made bytes first.
const DIRECT: usize = 2;

/// Words of a panel to ask the memory for before they are needed.
const AHEAD: usize = 320;
/// The same where scales of many groups come first: the processor, which sees two places read, asks for
/// less by itself.
const AHEAD_OF_RUNS: usize = 1920;
/// Words of a cache line.
const LINE: usize = 16;

/// One panel times some tokens.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub layout: &'a Layout,
    pub panel: usize,
    /// The panel's words.
    pub words: &'a [u32],
    /// Those that lie apart.
    pub low: &'a [u32],
    pub at: &'a Rounding,
    /// All rounded activations.
    pub x: &'a [u32],
    /// The tokens to multiply with.
    pub first: usize,
    pub tokens: usize,
    /// `[rows, out]`; the product's part is the panel's columns of its tokens' rows.
    pub out: Columns,
}

impl Product<'_> {
    /// That all words and activations are there.
    pub fn check(&self) {
        assert!(self.words.len() == self.layout.panel_words() && self.x.len() == self.at.len());
        assert!(self.low.len() == self.layout.apart_words());
        assert!(self.first + self.tokens <= self.at.rows);
    }
}

thread_local! {
    /// Room for a panel of bytes, kept from call to call.
    static BYTES: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Multiplies.
pub(super) fn multiply<C: Quads>(isa: Isa, p: Product<'_>) {
    p.check();
    if p.tokens <= DIRECT {
        launch(isa, Tokens::<C, false>(p, PhantomData));
        return;
    }
    let bytes = p.layout.as_bytes();
    let mut room = BYTES.take();
    if room.len() < bytes.panel_words() {
        room.resize(bytes.panel_words(), 0);
    }
    let words = &mut room[..bytes.panel_words()];
    launch(
        isa,
        ToBytes::<C> {
            from: p.layout,
            words: p.words,
            low: p.low,
            to: &bytes,
            bytes: words,
            codec: PhantomData,
        },
    );
    let p = Product {
        layout: &bytes,
        words,
        low: &[],
        ..p
    };
    match (C::QUADS, C::WIDE) {
        (4, false) => launch(isa, Tokens::<Bytes<16, false>, true>(p, PhantomData)),
        (4, true) => launch(isa, Tokens::<Bytes<16, true>, true>(p, PhantomData)),
        (_, false) => launch(isa, Tokens::<Bytes<32, false>, true>(p, PhantomData)),
        (_, true) => launch(isa, Tokens::<Bytes<32, true>, true>(p, PhantomData)),
    }
    BYTES.set(room);
}

/// A byte a code; whether any is 64 or more is known of where they come from.
struct Bytes<const BLOCK: usize, const WIDE: bool>;

impl<const BLOCK: usize, const WIDE: bool> Quads for Bytes<BLOCK, WIDE> {
    const QUADS: usize = BLOCK / 4;
    const BLOCK_WORDS: usize = BLOCK / 4 * PANEL;
    const WIDE: bool = WIDE;
    #[inline(always)]
    unsafe fn quad<V: Simd>(block: *const u32, _: *const u32, q: usize, v: usize) -> V::I {
        // SAFETY: the caller's contract.
        unsafe { V::load_words(block.add(q * PANEL + v * V::LANES)) }
    }
}

/// A panel's codes as bytes and its scales as `f32`, in the layout `to`.
struct ToBytes<'a, C> {
    from: &'a Layout,
    words: &'a [u32],
    low: &'a [u32],
    to: &'a Layout,
    bytes: &'a mut [u32],
    codec: PhantomData<C>,
}

impl<C: Quads> Kernel for ToBytes<'_, C> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let (from, to) = (self.from, self.to);
        let Some(scaling) = from.scaling else { return };
        let headers = from.header_words() / from.scale_words();
        let mut low = self.low.as_ptr();
        let runs = self.words[..from.runs_words()].chunks_exact(from.run_words());
        let all = self
            .bytes
            .chunks_exact_mut(to.run_words() * from.run_groups());
        for (run, bytes) in runs.zip(all) {
            let (header, groups) = run.split_at(from.header_words());
            let groups = groups.chunks_exact(from.group_words());
            let all = bytes.chunks_exact_mut(to.run_words());
            for (g, (group, bytes)) in groups.zip(all).enumerate() {
                let (to_header, to_blocks) = bytes.split_at_mut(to.header_words());
                let blocks = group.chunks_exact(C::BLOCK_WORDS);
                // SAFETY: the layouts say how many words there are.
                unsafe {
                    for i in 0..headers {
                        let scales = header.as_ptr().add(i * from.scale_words());
                        for v in 0..vecs::<V>() {
                            let scale = load_scale::<V>(scaling.ty, scales, g, v);
                            let at = i * PANEL + v * V::LANES;
                            V::store(to_header.as_mut_ptr().add(at).cast(), scale);
                        }
                    }
                    for (block, to) in blocks.zip(to_blocks.chunks_exact_mut(C::QUADS * PANEL)) {
                        unroll8!(Q => {
                            if Q < C::QUADS {
                                for v in 0..vecs::<V>() {
                                    let quad = C::quad::<V>(block.as_ptr(), low, Q, v);
                                    let at = to.as_mut_ptr().add(Q * PANEL + v * V::LANES);
                                    V::store(at.cast(), V::from_bits(quad));
                                }
                            }
                        });
                        low = low.wrapping_add(C::LOW_WORDS);
                    }
                }
            }
        }
    }
}

/// A panel times tokens, some of either at once; for no more than [`DIRECT`] unless `MANY`.
struct Tokens<'a, C, const MANY: bool>(Product<'a>, PhantomData<C>);

impl<C: Quads, const MANY: bool> Kernel for Tokens<'_, C, MANY> {
    const BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let p = &self.0;
        let mut token = 0;
        // SAFETY: same instructions; vectors and tokens are the product's.
        unsafe {
            while token < p.tokens {
                token += if V::LANES == 16 {
                    match p.tokens - token {
                        1 => strip::<V, C, 2, 1>(p, token),
                        n if n < 4 || !MANY => strip::<V, C, 2, 2>(p, token),
                        4 | 5 | 8 => strip::<V, C, 2, 4>(p, token),
                        _ => strip::<V, C, 2, 6>(p, token),
                    }
                } else {
                    match p.tokens - token {
                        1 => strip::<V, C, 4, 1>(p, token),
                        _ => strip::<V, C, 2, 2>(p, token),
                    }
                };
            }
        }
    }
}

/// A panel, `R` vectors at once, times `T` tokens; gives `T`.
#[inline(always)]
unsafe fn strip<V: Simd, C: Quads, const R: usize, const T: usize>(
    p: &Product<'_>,
    token: usize,
) -> usize {
    for first in (0..vecs::<V>()).step_by(R) {
        // SAFETY: the caller's contract.
        unsafe { tile::<V, C, R, T>(p, first, token) };
    }
    T
}

/// `R` vectors of a panel from `first` on times `T` tokens from `token` on.
// Plain loops: what a closure calls would not have the instructions.
#[allow(clippy::needless_range_loop)]
#[inline(always)]
pub(super) unsafe fn tile<V: Simd, C: Quads, const R: usize, const T: usize>(
    p: &Product<'_>,
    first: usize,
    token: usize,
) {
    let layout = p.layout;
    let Some(Scaling { ty, bias }) = layout.scaling else {
        return;
    };
    let stored = bias == Bias::Stored;
    let row_words = p.at.row_words();
    // SAFETY: [`Product::check`] has seen that all words and activations are there.
    unsafe {
        let x = p.x.as_ptr().add((p.first + token) * row_words);
        let mut x = [x; T];
        for t in 1..T {
            x[t] = x[t].wrapping_add(t * row_words);
        }
        let mut acc = [[V::splat(0.0); T]; R];
        let mut word = p.words.as_ptr();
        let mut low = p.low.as_ptr();
        // What the memory is asked for next: every line once, those of scales too.
        let asks = T <= DIRECT && first == 0;
        let ahead = match layout.run_groups() {
            1 => AHEAD,
            _ => AHEAD_OF_RUNS,
        };
        let (mut asked, mut low_asked) = (word.wrapping_add(ahead), low.wrapping_add(AHEAD));
        let mut at = 0;
        let (scale_words, header_words) = (layout.scale_words(), layout.header_words());
        let group_blocks = layout.group_blocks();
        let run_groups = layout.run_groups();
        let mut run = word;
        let mut g = run_groups;
        for _ in 0..layout.groups() {
            if g == run_groups {
                (run, g) = (word, 0);
                word = word.add(header_words);
                if asks {
                    for line in (0..header_words).step_by(LINE) {
                        prefetch(asked.wrapping_add(line));
                    }
                    asked = asked.wrapping_add(header_words);
                }
            }
            let group = g;
            g += 1;
            let mut scales = [V::splat(0.0); R];
            for r in 0..R {
                scales[r] = load_scale::<V>(ty, run, group, first + r);
            }
            for _ in 0..group_blocks {
                if asks {
                    for line in (0..C::BLOCK_WORDS).step_by(LINE) {
                        prefetch(asked.wrapping_add(line));
                    }
                    asked = asked.wrapping_add(C::BLOCK_WORDS);
                    for line in (0..C::LOW_WORDS).step_by(LINE) {
                        prefetch(low_asked.wrapping_add(line));
                    }
                    low_asked = low_asked.wrapping_add(C::LOW_WORDS);
                }
                let mut sums = [[V::splat_word(0); T]; R];
                if !stored {
                    for t in 0..T {
                        let start = V::splat_word(*x[t].add(at + C::QUADS + 1));
                        for r in 0..R {
                            sums[r][t] = start;
                        }
                    }
                }
                unroll8!(Q => {
                    if Q < C::QUADS {
                        let mut codes = [V::splat_word(0); R];
                        for r in 0..R {
                            codes[r] = C::quad::<V>(word, low, Q, first + r);
                        }
                        for t in 0..T {
                            let x = V::splat_word(*x[t].add(at + Q));
                            for r in 0..R {
                                sums[r][t] = match C::WIDE {
                                    true => V::dot4::<true>(sums[r][t], codes[r], x),
                                    false => V::dot4::<false>(sums[r][t], codes[r], x),
                                };
                            }
                        }
                    }
                });
                for t in 0..T {
                    let scale = V::splat(f32::from_bits(*x[t].add(at + C::QUADS)));
                    for r in 0..R {
                        let sum = V::to_float(sums[r][t]);
                        acc[r][t] = V::fma_once(V::mul(scales[r], scale), sum, acc[r][t]);
                    }
                }
                // A branch for each token would part the tokens' dot products, and so leave their sums no
                // registers; biases come from the cache when their time has come for the same reason.
                if stored {
                    let mut biases = [V::splat(0.0); R];
                    for r in 0..R {
                        biases[r] = load_scale::<V>(ty, run.add(scale_words), group, first + r);
                    }
                    for t in 0..T {
                        let sum = V::splat(f32::from_bits(*x[t].add(at + C::QUADS + 1)));
                        for r in 0..R {
                            acc[r][t] = V::fma_once(biases[r], sum, acc[r][t]);
                        }
                    }
                }
                word = word.add(C::BLOCK_WORDS);
                low = low.wrapping_add(C::LOW_WORDS);
                at += C::QUADS + EXTRA;
            }
        }
        for r in 0..R {
            let row = p.panel * PANEL + (first + r) * V::LANES;
            let rows = layout.rows.saturating_sub(row).min(V::LANES);
            for t in 0..T {
                let out = p.out.at(p.first + token + t, row);
                if rows == V::LANES {
                    V::store(out, acc[r][t]);
                } else if rows > 0 {
                    store_part::<V>(std::slice::from_raw_parts_mut(out, rows), acc[r][t]);
                }
            }
        }
    }
}
