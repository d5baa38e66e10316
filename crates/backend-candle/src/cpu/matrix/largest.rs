//! The largest output alone, of matrices whose low bits lie apart: `apart.rs` says why that is less.
//!
//! First all rows' high bits give what each output can be at most; then the rows that may be the largest
//! are multiplied in full, with the bits that the whole product has.

use std::cell::Cell;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::cpu::elementwise::argmax;
use crate::cpu::pages::Line;
use crate::cpu::simd::{Isa, Kernel, MAX_LANES, Simd, launch};
use crate::cpu::{SharedOut, pool};

use super::apart::{Apart, Coarse, MIDDLE};
use super::codec::{PANEL, vecs};
use super::integer::{Product, tile};
use super::job::Columns;
use super::rounded::{EXTRA, Rounding, round};
use super::{CpuMatrix, SCRATCH, room};

thread_local! {
    /// Room for all outputs, kept from call to call.
    static OUTPUTS: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Numbers that order as the floats do, from 1 on; 0 is less than all. Not for NaN.
fn rank(x: f32) -> u32 {
    let bits = (x + 0.0).to_bits(); // one zero, not two
    match bits >> 31 {
        0 => bits | 1 << 31,
        _ => !bits,
    }
}

/// The float of a [`rank`]; no larger than any for 0.
fn unrank(rank: u32) -> f32 {
    match (rank, rank >> 31) {
        (0, _) => f32::NEG_INFINITY,
        (_, 1) => f32::from_bits(rank & !(1 << 31)),
        _ => f32::from_bits(!rank),
    }
}

/// The largest value that threads have found, and where it is: the lowest place among equals.
#[derive(Default)]
struct Largest(AtomicU64);

impl Largest {
    fn see(&self, x: f32, at: usize) {
        if !x.is_nan() {
            let key = u64::from(rank(x)) << 32 | u64::from(!(at as u32));
            self.0.fetch_max(key, Ordering::Relaxed);
        }
    }

    fn value(&self) -> f32 {
        unrank((self.0.load(Ordering::Relaxed) >> 32) as u32)
    }

    fn place(&self) -> Option<usize> {
        match self.0.load(Ordering::Relaxed) {
            0 => None,
            key => Some(!(key as u32) as usize),
        }
    }
}

/// When a search is worth its while: where all outputs are nearly alike it is not, and then often not for
/// the tokens that follow.
#[derive(Default)]
pub(super) struct Searches {
    /// Searches in a row that did not help.
    vain: AtomicU32,
    /// Searches to leave out.
    rest: AtomicU32,
}

impl Searches {
    const NEVER: u32 = u32::MAX;

    /// None helps.
    pub fn never(&self) {
        self.rest.store(Self::NEVER, Ordering::Relaxed);
    }

    /// Whether to search this time.
    pub fn next(&self) -> bool {
        match self.rest.load(Ordering::Relaxed) {
            0 => true,
            Self::NEVER => false,
            rest => {
                self.rest.store(rest - 1, Ordering::Relaxed);
                false
            }
        }
    }

    /// After one in vain another is tried, then one of three, seven, and so on.
    fn ended(&self, helped: bool) {
        const MOST: u32 = 6;
        let vain = match helped {
            true => 0,
            false => (self.vain.load(Ordering::Relaxed) + 1).min(MOST),
        };
        self.vain.store(vain, Ordering::Relaxed);
        let rest = (1u32 << vain).saturating_sub(2);
        self.rest.store(rest, Ordering::Relaxed);
    }
}

impl CpuMatrix {
    /// Where the largest of the outputs of one row `x [in]` is, the lowest place among equals, as in what
    /// `x · Wᵀ` gives.
    ///
    /// # Panics
    /// When `x` has another length.
    pub fn largest(&self, x: &[f32]) -> usize {
        self.largest_with(Isa::get(), x)
    }

    pub(super) fn largest_with(&self, isa: Isa, x: &[f32]) -> usize {
        let layout = &self.inner.layout;
        assert_eq!(x.len(), layout.cols, "x is [in]");
        let mut outputs = OUTPUTS.take();
        let len = layout.panels() * (PANEL + 1);
        if outputs.len() < len {
            outputs.resize(len, 0.0);
        }
        let found = match layout.apart && self.inner.searches.next() {
            true => self.search(isa, x, &mut outputs[..len]),
            false => None,
        };
        let found = found.unwrap_or_else(|| {
            self.matmul_t_with(isa, x, 1, &mut outputs[..layout.rows]);
            argmax(&outputs[..layout.rows])
        });
        OUTPUTS.set(outputs);
        found
    }

    /// Whether every row has a bound: not those with a scale that is not finite.
    pub(super) fn has_bounds(&self) -> bool {
        /// More than finite scales in 16 bits give, and little enough to be multiplied with any [`length`].
        const MOST: f32 = 1e10;
        let layout = &self.inner.layout;
        (0..layout.panels()).all(|panel| {
            let bounds = &self.panel(panel)[layout.runs_words()..];
            bounds.iter().all(|b| f32::from_bits(*b) < MOST)
        })
    }

    /// As [`Self::largest`], of a matrix whose low bits lie apart; `None` where that does not work. `outputs`
    /// has room for those of all panels, and one more for each.
    pub(super) fn search(&self, isa: Isa, x: &[f32], outputs: &mut [f32]) -> Option<usize> {
        /// Panels of a task: tens of microseconds, and a few.
        const PANELS: usize = 32;
        /// If more than one of so many panels may have the largest, reading all in order is quicker.
        const MANY: usize = 4;
        let layout = &self.inner.layout;
        let at = Rounding::new(layout, 1);
        let coarse_at = at.with_zero_less(MIDDLE);
        let mut scratch = SCRATCH.take();
        let (whole, coarse) = room(&mut scratch, 2 * at.len()).split_at_mut(at.len());
        round(isa, &at, x, whole);
        round(isa, &coarse_at, x, coarse);
        let Some(length) = length(&at, whole) else {
            SCRATCH.set(scratch);
            return None;
        };
        // Rows that are not there are never the largest.
        outputs[layout.rows..layout.panels() * PANEL].fill(f32::NEG_INFINITY);
        let (outputs, most) = outputs.split_at_mut(layout.panels() * PANEL);
        let out = Columns::all(outputs, outputs.len());
        let most = SharedOut(most.as_mut_ptr());
        let product = |panel, at, x| Product {
            layout,
            panel,
            words: self.panel(panel),
            low: self.low(panel),
            at,
            x,
            first: 0,
            tokens: 1,
            out,
        };
        let tasks = layout.panels().div_ceil(PANELS);
        let panels = |task| task * PANELS..layout.panels().min((task + 1) * PANELS);

        let likely = Largest::default();
        pool::parallel_for(tasks, |task| {
            for panel in panels(task) {
                let product = product(panel, &coarse_at, coarse);
                product.check();
                let mut largest = 0.0;
                let kernel = AtMost {
                    product,
                    bounds: &self.panel(panel)[layout.runs_words()..],
                    length,
                    largest: &mut largest,
                    // SAFETY: the panel's, which is this task's.
                    most: &mut unsafe { most.part(panel, 1) }[0],
                };
                launch(isa, kernel);
                if largest > likely.value() {
                    likely.see(largest, panel);
                }
            }
        });
        let found = Largest::default();
        let refine = |panel, above: f32| {
            let product = product(panel, &at, whole);
            product.check();
            let kernel = Refine {
                product,
                above,
                found: &found,
            };
            launch(isa, kernel);
        };
        // What seems the largest first, whole, so that as few others as can be have to be looked at.
        let first = likely.place().unwrap_or_default();
        refine(first, f32::NEG_INFINITY);
        // SAFETY: nothing writes them any more.
        let most: &[f32] = unsafe { most.part(0, layout.panels()) };
        let above = found.value();
        let many = most.iter().filter(|m| **m >= above).count() > layout.panels() / MANY;
        self.inner.searches.ended(!many);
        if many {
            SCRATCH.set(scratch);
            return None;
        }
        let threads = pool::threads();
        let words = bytemuck::cast_slice::<Line, u32>(&self.inner.data);
        let all = words.get(..layout.panels() * layout.panel_words());
        let all = all.unwrap_or_default();
        let reads = |thread| {
            let task = pool::stretch(tasks, thread, threads).start;
            let rest = all.get(task * PANELS * layout.panel_words()..)?;
            Some(std::ptr::from_ref(rest))
        };
        pool::parallel_for_after(&self.inner.ahead, reads, tasks, |task| {
            for panel in panels(task).filter(|panel| *panel != first) {
                let above = found.value();
                if most[panel] >= above {
                    refine(panel, above);
                }
            }
        });
        SCRATCH.set(scratch);
        found.place()
    }
}

/// The length of a rounded row; `None` if that is too large for outputs and bounds to be finite, whatever
/// the scales.
fn length(at: &Rounding, rounded: &[u32]) -> Option<f32> {
    const MOST: f64 = 1e20;
    let mut square = 0.0f64;
    for block in rounded.chunks_exact(at.block() / 4 + EXTRA) {
        let (codes, extra) = block.split_at(at.block() / 4);
        let codes: &[i8] = bytemuck::cast_slice(codes);
        let sum: i32 = codes.iter().map(|&q| i32::from(q) * i32::from(q)).sum();
        let scale = f64::from(f32::from_bits(extra[0]));
        square += scale * scale * f64::from(sum);
    }
    // Rounded up, with what the addition to an output loses. NaN is not less either.
    let length = square.sqrt() * (1.0 + 1e-5);
    (length < MOST).then_some(length as f32)
}

/// What a panel's outputs can be at most.
struct AtMost<'a> {
    product: Product<'a>,
    /// [`super::apart::bound`] of every row.
    bounds: &'a [u32],
    length: f32,
    /// The largest output of the high bits alone.
    largest: &'a mut f32,
    /// The most that any can be.
    most: &'a mut f32,
}

impl Kernel for AtMost<'_> {
    const BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let p = &self.product;
        assert!(self.bounds.len() == PANEL);
        let (mut largest, mut most) = (
            [f32::NEG_INFINITY; MAX_LANES],
            [f32::NEG_INFINITY; MAX_LANES],
        );
        // SAFETY: the caller's contract; there is room for all of a panel's outputs, which are this task's.
        unsafe {
            const { assert!(V::LANES == 16 || 4 * V::LANES == PANEL) };
            match V::LANES {
                16 => tile::<V, Coarse, 2, 1>(p, 0, 0),
                _ => tile::<V, Coarse, 4, 1>(p, 0, 0),
            }
            let outputs = p.out.at(0, p.panel * PANEL);
            let bounds = self.bounds.as_ptr().cast::<f32>();
            let length = V::splat(self.length);
            let (mut all, mut upper) = (V::splat(f32::NEG_INFINITY), V::splat(f32::NEG_INFINITY));
            for v in 0..vecs::<V>() {
                let to = outputs.add(v * V::LANES);
                let output = V::load(to);
                let bounded = V::fma(V::load(bounds.add(v * V::LANES)), length, output);
                V::store(to, bounded);
                (all, upper) = (V::max(output, all), V::max(bounded, upper));
            }
            V::store(largest.as_mut_ptr(), all);
            V::store(most.as_mut_ptr(), upper);
        }
        (*self.largest, *self.most) = (of_all(largest), of_all(most));
    }
}

/// The largest of some numbers.
#[inline(always)]
fn of_all(mut x: [f32; MAX_LANES]) -> f32 {
    let mut n = MAX_LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            x[i] = x[i].max(x[i + n]);
        }
    }
    x[0]
}

/// Multiplies those vectors of a panel that have an output which may be `above` or more.
struct Refine<'a> {
    product: Product<'a>,
    above: f32,
    found: &'a Largest,
}

impl Kernel for Refine<'_> {
    const BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let p = &self.product;
        for v in 0..vecs::<V>() {
            let row = p.panel * PANEL + v * V::LANES;
            let rows = p.layout.rows.saturating_sub(row).min(V::LANES);
            // SAFETY: the caller's contract; the outputs are this task's.
            unsafe {
                if !p.out.part(0, row, rows).iter().any(|x| *x >= self.above) {
                    continue;
                }
                tile::<V, Apart, 1, 1>(p, v, 0);
                for (i, x) in p.out.part(0, row, rows).iter().enumerate() {
                    self.found.see(*x, row + i);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searches_in_vain_become_rare_and_one_that_helps_is_followed_by_others() {
        let searches = Searches::default();
        let mut tried = Vec::new();
        for i in 0..40 {
            if searches.next() {
                tried.push(i);
                searches.ended(false);
            }
        }
        assert_eq!(tried, [0, 1, 4, 11, 26]);
        while !searches.next() {}
        searches.ended(true);
        assert!(searches.next());
        searches.never();
        assert!((0..100).all(|_| !searches.next()));
    }

    #[test]
    fn ranks_order_as_floats_do() {
        let rising = [
            f32::NEG_INFINITY,
            -3.5,
            -1e-40,
            0.0,
            1e-40,
            2.0,
            f32::INFINITY,
        ];
        assert!(rising.is_sorted_by_key(|x| rank(*x)));
        assert!(
            rising
                .iter()
                .all(|x| unrank(rank(*x)) == *x && rank(*x) > 0)
        );
        assert_eq!(rank(-0.0), rank(0.0));
        let largest = Largest::default();
        assert_eq!(
            (largest.place(), largest.value()),
            (None, f32::NEG_INFINITY)
        );
        for (at, x) in [f32::NAN, -1.0, 4.0, 2.0, 4.0].into_iter().enumerate() {
            largest.see(x, at);
        }
        assert_eq!((largest.place(), largest.value()), (Some(2), 4.0));
    }
}
