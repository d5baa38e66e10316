//! How a panel's elements are stored, and how a vector of them becomes numbers.
//!
//! Lane = row: a word of a lane holds elements of one row, and [`PANEL`] lanes' words lie next to each
//! other. Codes come out of their words as *quads*, words of four bytes that are neighbouring codes of
//! a row: what the processors' dot products of bytes take. In exact arithmetic a byte is masked out
//! *where it is* and converted, which gives `code · 2^shift`; the activation it meets is multiplied
//! with `2^-shift` beforehand ([`Codec::x_scale`]).

use half::{bf16, f16};

use crate::cpu::simd::Simd;

/// Rows of a panel.
pub(super) const PANEL: usize = 32;
/// Most vectors that hold one element of every row of a panel.
pub(super) const MAX_VECS: usize = 4;

/// Vectors that hold one element of every row of a panel.
pub(super) const fn vecs<V: Simd>() -> usize {
    PANEL / V::LANES
}

/// An expression for every vector of a panel, as an array of [`MAX_VECS`]. Where there are fewer, the
/// rest repeat the first, and nothing uses them. Not `map`: what a closure calls does not have the
/// kernel's instructions until it is inlined, which the compiler then often does not do.
macro_rules! each_vec {
    ($V:ident, $v:ident => $value:expr) => {
        [
            {
                let $v = 0;
                $value
            },
            {
                let $v = 1;
                $value
            },
            {
                let $v = if vecs::<$V>() > 2 { 2 } else { 0 };
                $value
            },
            {
                let $v = if vecs::<$V>() > 2 { 3 } else { 1 };
                $value
            },
        ]
    };
}
pub(super) use each_vec;

/// Takes a block's elements in order.
pub(super) trait Sink<V: Simd> {
    /// Element `k` of the rows of vector `v`. One vector at a time: more would not stay in registers.
    ///
    /// # Safety
    /// The machine has `V`'s instructions; `k` is below [`Codec::BLOCK`], `v` below [`vecs`].
    unsafe fn put(&mut self, k: usize, v: usize, w: V::F);
}

/// A storage form of blocks of [`Codec::BLOCK`] elements of each of a panel's rows.
pub(super) trait Codec {
    /// Elements of a row in a block.
    const BLOCK: usize;
    /// 32-bit words of a block, all rows together.
    const WORDS: usize;

    /// Gives a block's elements to `sink`, `k` rising.
    ///
    /// # Safety
    /// The machine has `V`'s instructions; [`Codec::WORDS`] words lie at `block`.
    unsafe fn visit<V: Simd, S: Sink<V>>(block: *const u32, sink: &mut S);

    /// What the activation that meets element `k` is multiplied with: a power of two.
    fn x_scale(k: usize) -> f32;

    /// Stores element `k` of `row` into a block of zeros: a code's value, or a dense element's bits.
    fn set(block: &mut [u32], k: usize, row: usize, element: u32);

    /// What [`Codec::set`] stored, as a float.
    fn get(block: &[u32], k: usize, row: usize) -> f32;
}

/// Codes that come out as bytes.
pub(super) trait Quads {
    /// Quads of a row in a block.
    const QUADS: usize;
    /// 32-bit words of a block, all rows together.
    const BLOCK_WORDS: usize;
    /// Whether codes may be 64 or more, see [`Simd::dot4`].
    const WIDE: bool;
    /// Words of a block's low bits where those lie apart; see [`super::apart`].
    const LOW_WORDS: usize = 0;

    /// Codes `4·q` to `4·q + 3` of the rows of vector `v`, a byte each.
    ///
    /// # Safety
    /// The machine has `V`'s instructions; [`Quads::BLOCK_WORDS`] words lie at `block`, and
    /// [`Quads::LOW_WORDS`] at `low`; `q` is below [`Quads::QUADS`], `v` below [`vecs`].
    unsafe fn quad<V: Simd>(block: *const u32, low: *const u32, q: usize, v: usize) -> V::I;
}

/// `bits` bits in every byte.
pub(super) const fn mask(bits: usize) -> u32 {
    ((1 << bits) - 1) * 0x0101_0101
}

/// Word and shift of quad `q` in a plane of `bits` bits.
#[inline]
pub(super) const fn place(bits: usize, q: usize) -> (usize, usize) {
    let quads = 8 / bits;
    (q / quads, bits * (q % quads))
}

/// Codes of `BITS` bits, at exactly `BITS` bits each: in planes of 8, 4, 2 and 1 bits, the highest bits
/// first: that plane is the smaller one, and what is read in order the processor fetches by itself. A word
/// of a plane of `w` bits holds `8 / w` quads, the first in its bytes' lowest bits.
pub(super) struct Codes<const BITS: usize, const BLOCK: usize>;

impl<const BITS: usize, const BLOCK: usize> Codes<BITS, BLOCK> {
    /// Bits in the plane of low bits.
    const LOW: usize = match BITS {
        8 => 8,
        4..8 => 4,
        _ => 2,
    };
    /// Bits in the plane of high bits.
    const HIGH: usize = BITS - Self::LOW;
    /// Words of a row in the plane of high bits.
    const HIGH_WORDS: usize = BLOCK * Self::HIGH / 32;
    const ROW_WORDS: usize = BLOCK * BITS / 32;

    /// Stores four codes of `row`, a byte each, into a block of zeros.
    #[inline]
    pub fn set_quad(block: &mut [u32], q: usize, row: usize, codes: u32) {
        let (word, shift) = place(Self::LOW, q);
        block[(Self::HIGH_WORDS + word) * PANEL + row] |= (codes & mask(Self::LOW)) << shift;
        if Self::HIGH > 0 {
            let (word, shift) = place(Self::HIGH, q);
            let high = codes >> Self::LOW & mask(Self::HIGH);
            block[word * PANEL + row] |= high << shift;
        }
    }

    /// What [`Self::set_quad`] stored.
    fn get_quad(block: &[u32], q: usize, row: usize) -> u32 {
        let (word, shift) = place(Self::LOW, q);
        let low = block[(Self::HIGH_WORDS + word) * PANEL + row] >> shift & mask(Self::LOW);
        if Self::HIGH == 0 {
            return low;
        }
        let (word, shift) = place(Self::HIGH, q);
        let high = block[word * PANEL + row] >> shift;
        low | (high & mask(Self::HIGH)) << Self::LOW
    }
}

/// Repeats a block of code for every constant `Q` below 8.
macro_rules! unroll8 {
    ($Q:ident => $body:block) => {
        unroll8!(@ $Q $body 0 1 2 3 4 5 6 7)
    };
    (@ $Q:ident $body:block $($n:literal)*) => {
        $({ const $Q: usize = $n; $body })*
    };
}
pub(super) use unroll8;

impl<const BITS: usize, const BLOCK: usize> Quads for Codes<BITS, BLOCK> {
    const QUADS: usize = BLOCK / 4;
    const BLOCK_WORDS: usize = Self::ROW_WORDS * PANEL;
    const WIDE: bool = BITS == 8;

    #[inline(always)]
    unsafe fn quad<V: Simd>(block: *const u32, _: *const u32, q: usize, v: usize) -> V::I {
        let (word, shift) = place(Self::LOW, q);
        // SAFETY: all words read are the block's.
        unsafe {
            let word = Self::HIGH_WORDS + word;
            let low = V::load_words(block.add(word * PANEL + v * V::LANES));
            if Self::LOW == 8 {
                return low;
            }
            let low = if shift == 0 {
                low
            } else {
                V::shr(low, shift as u32)
            };
            let low = V::and(low, V::splat_word(mask(Self::LOW)));
            if Self::HIGH == 0 {
                return low;
            }
            let (word, shift) = place(Self::HIGH, q);
            let high = V::load_words(block.add(word * PANEL + v * V::LANES));
            let high = if shift > Self::LOW {
                V::shr(high, (shift - Self::LOW) as u32)
            } else if shift < Self::LOW {
                V::shl(high, (Self::LOW - shift) as u32)
            } else {
                high
            };
            let mask = V::splat_word(mask(Self::HIGH) << Self::LOW);
            V::or(low, V::and(high, mask))
        }
    }
}

impl<const BITS: usize, const BLOCK: usize> Codec for Codes<BITS, BLOCK> {
    const BLOCK: usize = BLOCK;
    const WORDS: usize = Self::ROW_WORDS * PANEL;

    #[inline(always)]
    unsafe fn visit<V: Simd, S: Sink<V>>(block: *const u32, sink: &mut S) {
        // SAFETY: quads and vectors are the block's.
        unsafe {
            unroll8!(Q => {
                if 4 * Q < BLOCK {
                    for v in 0..vecs::<V>() {
                        let quad = Self::quad::<V>(block, block, Q, v);
                        for b in 0..3 {
                            let code = V::and(quad, V::splat_word(0xff << (8 * b)));
                            sink.put(4 * Q + b, v, V::to_float(code));
                        }
                        // A pattern that reaches the sign bit would convert to a negative number.
                        let code = match Self::WIDE {
                            true => V::shr(quad, 24),
                            false => V::and(quad, V::splat_word(0xff << 24)),
                        };
                        sink.put(4 * Q + 3, v, V::to_float(code));
                    }
                }
            });
        }
    }

    fn x_scale(k: usize) -> f32 {
        match k % 4 {
            3 if Self::WIDE => 1.0,
            b => 1.0 / (1u32 << (8 * b)) as f32,
        }
    }

    fn set(block: &mut [u32], k: usize, row: usize, element: u32) {
        Self::set_quad(block, k / 4, row, (element & 0xff) << (8 * (k % 4)));
    }

    fn get(block: &[u32], k: usize, row: usize) -> f32 {
        let quad = Self::get_quad(block, k / 4, row);
        f32::from((quad >> (8 * (k % 4))) as u8)
    }
}

/// Elements of a dense block of one row.
const DENSE_BLOCK: usize = 32;

/// `f32` elements.
pub(super) struct DenseF32;

impl Codec for DenseF32 {
    const BLOCK: usize = DENSE_BLOCK;
    const WORDS: usize = DENSE_BLOCK * PANEL;

    #[inline(always)]
    unsafe fn visit<V: Simd, S: Sink<V>>(block: *const u32, sink: &mut S) {
        let p = block.cast::<f32>();
        for k in 0..DENSE_BLOCK {
            // SAFETY: element `k` of the block.
            unsafe {
                for v in 0..vecs::<V>() {
                    sink.put(k, v, V::load(p.add(k * PANEL + v * V::LANES)));
                }
            }
        }
    }

    fn x_scale(_: usize) -> f32 {
        1.0
    }

    fn set(block: &mut [u32], k: usize, row: usize, element: u32) {
        block[k * PANEL + row] = element;
    }

    fn get(block: &[u32], k: usize, row: usize) -> f32 {
        f32::from_bits(block[k * PANEL + row])
    }
}

/// Elements of 16 bits: `bf16` if `BRAIN`, else `f16`.
pub(super) struct DenseHalf<const BRAIN: bool>;

impl<const BRAIN: bool> Codec for DenseHalf<BRAIN> {
    const BLOCK: usize = DENSE_BLOCK;
    const WORDS: usize = DENSE_BLOCK * PANEL / 2;

    #[inline(always)]
    unsafe fn visit<V: Simd, S: Sink<V>>(block: *const u32, sink: &mut S) {
        let p = block.cast::<u16>();
        for k in 0..DENSE_BLOCK {
            // SAFETY: element `k` of the block.
            unsafe {
                let p = p.add(k * PANEL);
                for v in 0..vecs::<V>() {
                    let p = p.add(v * V::LANES);
                    sink.put(
                        k,
                        v,
                        if BRAIN {
                            V::load_bf16(p)
                        } else {
                            V::load_f16(p)
                        },
                    );
                }
            }
        }
    }

    fn x_scale(_: usize) -> f32 {
        1.0
    }

    fn set(block: &mut [u32], k: usize, row: usize, element: u32) {
        halves_mut(block)[k * PANEL + row] = element as u16;
    }

    fn get(block: &[u32], k: usize, row: usize) -> f32 {
        half_to_f32(halves(block)[k * PANEL + row], BRAIN)
    }
}

/// Words as pairs of 16-bit elements.
pub(super) fn halves(words: &[u32]) -> &[u16] {
    bytemuck::cast_slice(words)
}

/// Words as pairs of 16-bit elements.
pub(super) fn halves_mut(words: &mut [u32]) -> &mut [u16] {
    bytemuck::cast_slice_mut(words)
}

/// A 16-bit float's value.
pub(super) fn half_to_f32(bits: u16, brain: bool) -> f32 {
    if brain {
        bf16::from_bits(bits).to_f32()
    } else {
        f16::from_bits(bits).to_f32()
    }
}
