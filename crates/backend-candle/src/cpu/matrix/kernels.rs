//! The two multiplications in `f32`. Both compute, for every row and token, block by block,
//! `d = start + Σ code·x` in order of k with one multiply-add each, then
//! `acc = scale·d + acc` and `acc = bias·Σx + acc`: so they agree bit for bit.

use std::marker::PhantomData;
use std::mem::MaybeUninit;

use crate::cpu::simd::{Isa, Kernel, Simd, launch};

use super::activations::{Arrangement, MAX_TOKENS, TILE};
use super::codec::{Codec, MAX_VECS, PANEL, Sink, each_vec, vecs};
use super::job::Columns;
use super::layout::{Bias, Layout, ScaleType, Scaling};

/// One panel times the tokens of one token block.
pub(super) struct Product<'a, C> {
    pub layout: &'a Layout,
    pub panel: usize,
    /// The panel's words.
    pub words: &'a [u32],
    pub at: &'a Arrangement,
    pub token_block: usize,
    /// All arranged activations.
    pub x: &'a [f32],
    /// `[rows, out]`; the product's part is the panel's columns of the token block's rows.
    pub out: Columns,
    pub codec: PhantomData<C>,
}

/// A panel's rows; the first [`vecs`] vectors count.
type Rows<V> = [<V as Simd>::F; MAX_VECS];

#[inline(always)]
unsafe fn zeros<V: Simd>() -> Rows<V> {
    // SAFETY: the caller's contract.
    unsafe { [V::splat(0.0); MAX_VECS] }
}

#[inline(always)]
unsafe fn load<V: Simd>(p: *const f32) -> Rows<V> {
    // SAFETY: the caller's contract.
    unsafe { each_vec!(V, v => V::load(p.add(v * V::LANES))) }
}

#[inline(always)]
unsafe fn store<V: Simd>(p: *mut f32, rows: Rows<V>) {
    // SAFETY: the caller's contract.
    unsafe {
        for (v, row) in rows.into_iter().enumerate().take(vecs::<V>()) {
            V::store(p.add(v * V::LANES), row);
        }
    }
}

/// Vector `v` of a panel's scales or biases of group `g` of the run whose these are.
#[inline(always)]
pub(super) unsafe fn load_scale<V: Simd>(ty: ScaleType, p: *const u32, g: usize, v: usize) -> V::F {
    // SAFETY: the caller's contract.
    unsafe {
        match ty {
            ScaleType::F32 => V::load(p.add(v * V::LANES).cast()),
            ScaleType::F16 => V::load_f16(p.cast::<u16>().add(v * V::LANES)),
            ScaleType::BF16 => V::load_bf16(p.cast::<u16>().add(v * V::LANES)),
            ScaleType::Multiple => {
                let unit = V::load_f16(p.cast::<u16>().add(v * V::LANES));
                let bytes = p.add(PANEL / 2 + g * (PANEL / 4)).cast::<i8>();
                V::mul(unit, V::load_signed_bytes(bytes.add(v * V::LANES)))
            }
        }
    }
}

/// What a group's sums are multiplied with.
struct Header<V: Simd> {
    scales: Option<Rows<V>>,
    biases: Option<Rows<V>>,
}

impl<V: Simd> Header<V> {
    #[inline(always)]
    unsafe fn load(layout: &Layout, run: *const u32, g: usize) -> Self {
        let Some(Scaling { ty, bias }) = layout.scaling else {
            return Header {
                scales: None,
                biases: None,
            };
        };
        // SAFETY: the layout says that these words are there.
        unsafe {
            let scales = Some(each_vec!(V, v => load_scale::<V>(ty, run, g, v)));
            let biases = if bias == Bias::Stored {
                let biases = run.add(layout.scale_words());
                Some(each_vec!(V, v => load_scale::<V>(ty, biases, g, v)))
            } else {
                None
            };
            Header { scales, biases }
        }
    }

    /// Adds a block's sum `d` of one token, whose activations sum up to `sum`.
    #[inline(always)]
    unsafe fn add(&self, acc: &mut Rows<V>, d: Rows<V>, sum: f32) {
        // SAFETY: the caller's contract.
        unsafe {
            let Some(scales) = self.scales else {
                for v in 0..vecs::<V>() {
                    acc[v] = V::add(acc[v], d[v]);
                }
                return;
            };
            for v in 0..vecs::<V>() {
                acc[v] = V::fma(scales[v], d[v], acc[v]);
            }
            if let Some(biases) = self.biases {
                let sum = V::splat(sum);
                for v in 0..vecs::<V>() {
                    acc[v] = V::fma(biases[v], sum, acc[v]);
                }
            }
        }
    }
}

/// Multiplies elements as they are decoded.
struct Dot<V: Simd, const T: usize> {
    x: *const f32,
    sums: [Rows<V>; T],
}

impl<V: Simd, const T: usize> Dot<V, T> {
    /// `starts`: a token's starting value each.
    #[inline(always)]
    unsafe fn new(x: *const f32, starts: *const f32) -> Self {
        // SAFETY: the caller's contract.
        unsafe {
            let mut sums = [zeros::<V>(); T];
            for (t, sum) in sums.iter_mut().enumerate() {
                *sum = [V::splat(*starts.add(t)); MAX_VECS];
            }
            Dot { x, sums }
        }
    }
}

impl<V: Simd, const T: usize> Sink<V> for Dot<V, T> {
    #[inline(always)]
    unsafe fn put(&mut self, k: usize, v: usize, w: V::F) {
        for t in 0..T {
            // SAFETY: the tile has `T` activations for every `k`.
            unsafe {
                let x = V::splat(*self.x.add(k * T + t));
                self.sums[t][v] = V::fma(w, x, self.sums[t][v]);
            }
        }
    }
}

/// Stores elements as floats, `[k][PANEL]`.
struct Store(*mut f32);

impl<V: Simd> Sink<V> for Store {
    #[inline(always)]
    unsafe fn put(&mut self, k: usize, v: usize, w: V::F) {
        // SAFETY: there is room for all `k`.
        unsafe { V::store(self.0.add(k * PANEL + v * V::LANES), w) }
    }
}

/// For few tokens: weights go from memory through registers once, and nothing else is written.
///
/// Only where `V` is [`Simd::HARDWARE`]: elsewhere it would be code without use.
pub(super) struct Gemv<'a, C, const T: usize>(pub Product<'a, C>);

impl<C: Codec, const T: usize> Kernel for Gemv<'_, C, T> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let p = &self.0;
        let layout = p.layout;
        if !V::HARDWARE {
            return gemm(Isa::Portable, self.0);
        }
        assert!(p.at.tokens_of(p.token_block) == T && p.words.len() == layout.panel_words());
        assert!(p.x.len() == p.at.len());
        // SAFETY: by the assertions, the words and the activations of every block are there.
        unsafe {
            let mut x = p.x.as_ptr().add(p.at.start_of(p.token_block));
            let mut acc = [zeros::<V>(); T];
            let mut word = p.words.as_ptr();
            for _ in 0..layout.runs() {
                let run = word;
                word = word.add(layout.header_words());
                for g in 0..layout.run_groups() {
                    let header = Header::<V>::load(layout, run, g);
                    for _ in 0..layout.group_blocks() {
                        let starts = x.add(C::BLOCK * T);
                        let mut dot = Dot::<V, T>::new(x, starts);
                        C::visit::<V, _>(word, &mut dot);
                        for (t, acc) in acc.iter_mut().enumerate() {
                            header.add(acc, dot.sums[t], *starts.add(T + t));
                        }
                        word = word.add(C::WORDS);
                        x = x.add(T * (C::BLOCK + 2));
                    }
                }
            }
            let mut buffer = [0.0; PANEL];
            for (t, acc) in acc.into_iter().enumerate() {
                store::<V>(buffer.as_mut_ptr(), acc);
                p.write(t, &buffer);
            }
        }
    }
}

/// Decodes a block into floats, `[k][PANEL]`.
struct Expand<C> {
    block: *const u32,
    to: *mut f32,
    codec: PhantomData<C>,
}

impl<C: Codec> Kernel for Expand<C> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        // SAFETY: `gemm` points at a block and at room for one.
        unsafe { C::visit::<V, _>(self.block, &mut Store(self.to)) }
    }
}

/// A decoded block times all tokens of the token block.
struct Tiles<'a> {
    layout: &'a Layout,
    /// The block's run, where its scales are, and which of its groups it belongs to.
    run: *const u32,
    group: usize,
    weights: *const f32,
    /// Elements of a row in the block.
    block: usize,
    x: *const f32,
    tokens: usize,
    /// `[token][PANEL]`, added to.
    sums: *mut f32,
}

impl Kernel for Tiles<'_> {
    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        // SAFETY: `gemm` points at all of it.
        unsafe {
            let header = Header::<V>::load(self.layout, self.run, self.group);
            for first in (0..self.tokens).step_by(TILE) {
                let x = self.x.add(first * (self.block + 2));
                let sums = self.sums.add(first * PANEL);
                match self.tokens - first {
                    1 => tile::<V, 1>(self.weights, self.block, x, &header, sums),
                    2 => tile::<V, 2>(self.weights, self.block, x, &header, sums),
                    _ => tile::<V, TILE>(self.weights, self.block, x, &header, sums),
                }
            }
        }
    }
}

/// A decoded block times a tile of tokens.
#[inline(always)]
unsafe fn tile<V: Simd, const T: usize>(
    weights: *const f32,
    block: usize,
    x: *const f32,
    header: &Header<V>,
    sums: *mut f32,
) {
    // SAFETY: the caller's contract.
    unsafe {
        let starts = x.add(block * T);
        let mut dot = Dot::<V, T>::new(x, starts);
        for k in 0..block {
            for v in 0..vecs::<V>() {
                dot.put(k, v, V::load(weights.add(k * PANEL + v * V::LANES)));
            }
        }
        for t in 0..T {
            let at = sums.add(t * PANEL);
            let mut acc = load::<V>(at);
            header.add(&mut acc, dot.sums[t], *starts.add(T + t));
            store::<V>(at, acc);
        }
    }
}

/// Uninitialized floats from the start of a cache line on.
#[repr(align(64))]
struct Room<const N: usize>([MaybeUninit<f32>; N]);

/// For many tokens: a block of weights is decoded into the first-level cache and used for all tokens
/// of the token block.
pub(super) fn gemm<C: Codec>(isa: Isa, p: Product<'_, C>) {
    let layout = p.layout;
    let tokens = p.at.tokens_of(p.token_block);
    assert!(p.words.len() == layout.panel_words() && p.x.len() == p.at.len());
    let mut weights = Room::<{ 32 * PANEL }>([MaybeUninit::uninit(); _]);
    let mut sums = Room::<{ MAX_TOKENS * PANEL }>([MaybeUninit::uninit(); _]);
    assert!(tokens <= MAX_TOKENS && C::BLOCK <= 32);
    let weights = weights.0.as_mut_ptr().cast::<f32>();
    let sums = sums.0.as_mut_ptr().cast::<f32>();
    // SAFETY: by the assertions, the words and the activations of every block are there, and the
    // rooms hold a block and all tokens' sums; a block is decoded whole before it is used.
    unsafe {
        sums.write_bytes(0, tokens * PANEL);
        let mut x = p.x.as_ptr().add(p.at.start_of(p.token_block));
        for run in p.words.chunks_exact(layout.run_words()) {
            let blocks = run[layout.header_words()..].chunks_exact(C::WORDS);
            for (i, block) in blocks.enumerate() {
                let codec = PhantomData::<C>;
                launch(
                    isa,
                    Expand {
                        block: block.as_ptr(),
                        to: weights,
                        codec,
                    },
                );
                launch(
                    isa,
                    Tiles {
                        layout,
                        run: run.as_ptr(),
                        group: i / layout.group_blocks(),
                        weights,
                        block: C::BLOCK,
                        x,
                        tokens,
                        sums,
                    },
                );
                x = x.add(tokens * p.at.unit);
            }
        }
        for t in 0..tokens {
            p.write(t, &*sums.add(t * PANEL).cast::<[f32; PANEL]>());
        }
    }
}

impl<C> Product<'_, C> {
    /// Writes the outputs of one token of the token block.
    #[inline(always)]
    fn write(&self, token: usize, sums: &[f32; PANEL]) {
        let first = self.panel * PANEL;
        let n = PANEL.min(self.layout.rows - first);
        let row = self.token_block * self.at.tokens + token;
        // SAFETY: this panel's columns of this row, which no other product writes.
        let out = unsafe { self.out.part(row, first, n) };
        out.copy_from_slice(&sums[..n]);
    }
}
