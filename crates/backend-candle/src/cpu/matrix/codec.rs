//! How a panel's elements are stored, and how a vector of them becomes floats.
//!
//! Lane = row: a word of a lane holds neighbouring elements of one row, and [`PANEL`] lanes' words lie
//! next to each other. A code is masked out *where it is* and converted, which gives `code · 2^shift`;
//! the activation it meets is multiplied with `2^-shift` beforehand ([`Codec::x_scale`]). So an
//! element costs one `and`, one conversion and the multiply-add.

use half::{bf16, f16};

use crate::cpu::simd::{LANES, Simd};

/// Rows of a panel.
pub(super) const PANEL: usize = 32;
/// Vectors that hold one element of every row of a panel.
pub(super) const VECS: usize = PANEL / LANES;

/// An expression for every vector of [`VECS`], as an array. Not `map`: what a closure calls does not
/// have the kernel's instructions until it is inlined, which the compiler then often does not do.
macro_rules! each_vec {
    ($v:ident => $value:expr) => {
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
                let $v = 2;
                $value
            },
            {
                let $v = 3;
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
    /// The machine has `V`'s instructions; `k` is below [`Codec::BLOCK`], `v` below [`VECS`].
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

/// Codes of `BITS` bits, at exactly `BITS` bits each.
///
/// Where `BITS` does not divide 32, a word holds codes in its low 30 bits, and the two spare bits of
/// all words together make up the block's last codes.
pub(super) struct Codes<const BITS: usize, const BLOCK: usize>;

impl<const BITS: usize, const BLOCK: usize> Codes<BITS, BLOCK> {
    const MASK: u32 = (1 << BITS) - 1;
    const ROW_WORDS: usize = BLOCK * BITS / 32;
    const IN_WORD: usize = if 32 % BITS == 0 { 32 / BITS } else { 30 / BITS };
    const WHOLE: usize = Self::ROW_WORDS * Self::IN_WORD;
    /// A pattern that reaches the sign bit would convert to a negative number: it is shifted down.
    const fn shifted_down(j: usize) -> bool {
        BITS * (j + 1) == 32
    }

    /// Word and bit where bit `i` of spare code `e` is.
    const fn spare(e: usize, i: usize) -> (usize, u32) {
        let n = e * BITS + i;
        (n / 2, 30 + (n % 2) as u32)
    }

    /// The vector `v` of spare code `e`, put together from its words' upper bits.
    #[inline(always)]
    unsafe fn visit_spare<V: Simd>(block: *const u32, e: usize, v: usize) -> V::F {
        // SAFETY: spare bits lie in the block's words.
        unsafe {
            let mut code = V::splat_word(0);
            let mut i = 0;
            while i < BITS {
                let (word, bit) = Self::spare(e, i);
                let w = V::load_words(block.add(word * PANEL + v * LANES));
                let part = if bit == 31 {
                    V::shr(w, 31)
                } else if i + 1 < BITS {
                    V::shr(w, 30)
                } else {
                    V::and(V::shr(w, 30), V::splat_word(1))
                };
                code = V::or(code, V::shl(part, i as u32));
                i += if bit == 30 { 2 } else { 1 };
            }
            V::to_float(code)
        }
    }
}

/// Repeats a block of code for every constant `J` below 16.
macro_rules! unroll16 {
    ($J:ident => $body:block) => {
        unroll16!(@ $J $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $J:ident $body:block $($n:literal)*) => {
        $({ const $J: usize = $n; $body })*
    };
}

impl<const BITS: usize, const BLOCK: usize> Codec for Codes<BITS, BLOCK> {
    const BLOCK: usize = BLOCK;
    const WORDS: usize = Self::ROW_WORDS * PANEL;

    #[inline(always)]
    unsafe fn visit<V: Simd, S: Sink<V>>(block: *const u32, sink: &mut S) {
        // SAFETY: all words read are the block's.
        unsafe {
            for word in 0..Self::ROW_WORDS {
                let p = block.add(word * PANEL);
                unroll16!(J => {
                    if J < Self::IN_WORD {
                        each_vec!(v => {
                            let w = V::load_words(p.add(v * LANES));
                            let code = if Self::shifted_down(J) {
                                V::shr(w, (32 - BITS) as u32)
                            } else {
                                // The remainder keeps the shift in range where J does not count.
                                V::and(w, V::splat_word(Self::MASK << (BITS * J % 32)))
                            };
                            sink.put(word * Self::IN_WORD + J, v, V::to_float(code));
                        });
                    }
                });
            }
            if Self::WHOLE < BLOCK {
                each_vec!(v => sink.put(Self::WHOLE, v, Self::visit_spare::<V>(block, 0, v)));
            }
            if Self::WHOLE + 1 < BLOCK {
                each_vec!(v => sink.put(Self::WHOLE + 1, v, Self::visit_spare::<V>(block, 1, v)));
            }
        }
    }

    fn x_scale(k: usize) -> f32 {
        let j = k % Self::IN_WORD;
        if k >= Self::WHOLE || Self::shifted_down(j) {
            1.0
        } else {
            1.0 / (1u32 << (BITS * j)) as f32
        }
    }

    fn set(block: &mut [u32], k: usize, row: usize, element: u32) {
        if k < Self::WHOLE {
            let (word, j) = (k / Self::IN_WORD, k % Self::IN_WORD);
            block[word * PANEL + row] |= (element & Self::MASK) << (BITS * j);
        } else {
            for i in 0..BITS {
                let (word, bit) = Self::spare(k - Self::WHOLE, i);
                block[word * PANEL + row] |= (element >> i & 1) << bit;
            }
        }
    }

    fn get(block: &[u32], k: usize, row: usize) -> f32 {
        let code = if k < Self::WHOLE {
            let (word, j) = (k / Self::IN_WORD, k % Self::IN_WORD);
            block[word * PANEL + row] >> (BITS * j) & Self::MASK
        } else {
            (0..BITS).fold(0, |code, i| {
                let (word, bit) = Self::spare(k - Self::WHOLE, i);
                code | (block[word * PANEL + row] >> bit & 1) << i
            })
        };
        code as f32
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
                each_vec!(v => sink.put(k, v, V::load(p.add(k * PANEL + v * LANES))));
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
                if BRAIN {
                    each_vec!(v => sink.put(k, v, V::load_bf16(p.add(v * LANES))));
                } else {
                    each_vec!(v => sink.put(k, v, V::load_f16(p.add(v * LANES))));
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
