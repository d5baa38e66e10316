//! The largest output alone, of matrices whose low bits lie apart: `apart.rs` says why that is less.
//!
//! First all rows' high bits give what each output can be at most; then the rows that may be the largest
//! are multiplied in full, with the bits that the whole product has.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::cpu::elementwise::argmax;
use crate::cpu::simd::{Isa, Kernel, Simd, launch};
use crate::cpu::{SharedOut, pool};

use super::apart::{Apart, Coarse, MIDDLE};
use super::codec::{PANEL, vecs};
use super::integer::{Product, multiply, tile};
use super::rounded::{EXTRA, Rounding, round};
use super::{CpuMatrix, LAST, SCRATCH, room};

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

/// The float of a [`rank`]; below all floats for 0.
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

impl CpuMatrix {
    /// Where the largest of the outputs of one row `x [in]` is, the lowest place among equals, as in what
    /// [`Self::matmul_t`] gives.
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
        if outputs.len() < layout.rows {
            outputs.resize(layout.rows, 0.0);
        }
        let outputs_here = &mut outputs[..layout.rows];
        let rest = self.inner.rest.load(Ordering::Relaxed);
        let found = match (layout.apart, rest) {
            (true, 0) => self.search(isa, x, outputs_here),
            (true, _) => {
                self.inner.rest.store(rest - 1, Ordering::Relaxed);
                None
            }
            (false, _) => None,
        };
        let found = found.unwrap_or_else(|| {
            self.matmul_t_with(isa, x, 1, outputs_here);
            argmax(outputs_here)
        });
        OUTPUTS.set(outputs);
        found
    }

    /// As [`Self::largest`], of a matrix whose low bits lie apart; `None` where that does not work.
    fn search(&self, isa: Isa, x: &[f32], outputs: &mut [f32]) -> Option<usize> {
        /// Panels of a task: tens of microseconds, and a few.
        const PANELS: usize = 32;
        /// Where more than one of so many rows had to be multiplied in full, this many searches are left out.
        const MANY: usize = 6;
        const REST: u32 = 32;
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
        let out = SharedOut(outputs.as_mut_ptr());
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
        let rows = |panel: usize| layout.rows.min((panel + 1) * PANEL) - panel * PANEL;

        let likely = Largest::default();
        pool::parallel_for(tasks, |task| {
            for panel in panels(task) {
                let product = product(panel, &coarse_at, coarse);
                multiply::<Coarse>(isa, product);
                // SAFETY: the panel's outputs, which are this task's.
                let outputs = unsafe { out.part(panel * PANEL, rows(panel)) };
                let bounds = &self.panel(panel)[layout.runs_words()..];
                let mut largest = f32::NEG_INFINITY;
                for (output, bound) in outputs.iter_mut().zip(bounds) {
                    largest = largest.max(*output);
                    *output += f32::from_bits(*bound) * length;
                }
                if largest > likely.value() {
                    likely.see(largest, panel);
                }
            }
        });
        let found = Largest::default();
        let full = AtomicUsize::new(0);
        let refine = |panel, above: f32| {
            let rows = rows(panel);
            let product = product(panel, &at, whole);
            product.check();
            launch(
                isa,
                Refine {
                    product,
                    above,
                    rows,
                    found: &found,
                    full: &full,
                },
            );
        };
        // What seems the largest first, whole, so that as few others as can be have to be looked at.
        let first = likely.place().unwrap_or_default();
        refine(first, f32::NEG_INFINITY);
        if let Some(last) = LAST.replace(Arc::downgrade(&self.inner)).upgrade() {
            last.ahead.set(|thread| {
                let task = pool::stretch(tasks, thread, pool::threads()).start;
                Some(std::ptr::from_ref(self.panel(panels(task).start)))
            });
        }
        pool::parallel_for_then(&self.inner.ahead, tasks, |task| {
            for panel in panels(task).filter(|panel| *panel != first) {
                refine(panel, found.value());
            }
        });
        SCRATCH.set(scratch);
        if full.into_inner() > layout.rows / MANY {
            self.inner.rest.store(REST, Ordering::Relaxed);
        }
        found.place()
    }
}

/// The length of a rounded row; `None` if something in it is not finite.
fn length(at: &Rounding, rounded: &[u32]) -> Option<f32> {
    let mut square = 0.0f64;
    for block in rounded.chunks_exact(at.block() / 4 + EXTRA) {
        let (codes, extra) = block.split_at(at.block() / 4);
        let codes: &[i8] = bytemuck::cast_slice(codes);
        let sum: i32 = codes.iter().map(|&q| i32::from(q) * i32::from(q)).sum();
        let scale = f64::from(f32::from_bits(extra[0]));
        square += scale * scale * f64::from(sum);
    }
    // Rounded up, with what the addition to an output loses.
    square
        .is_finite()
        .then_some((square.sqrt() * (1.0 + 1e-5)) as f32)
}

/// Multiplies those vectors of a panel that have an output which is not below `above`.
struct Refine<'a> {
    product: Product<'a>,
    above: f32,
    /// Rows that the panel has.
    rows: usize,
    found: &'a Largest,
    /// Rows multiplied in full.
    full: &'a AtomicUsize,
}

impl Kernel for Refine<'_> {
    const BYTES: bool = true;

    #[inline(always)]
    unsafe fn run<V: Simd>(self) {
        let p = &self.product;
        for v in 0..vecs::<V>() {
            let first = v * V::LANES;
            let rows = self.rows.saturating_sub(first).min(V::LANES);
            let row = p.panel * PANEL + first;
            // SAFETY: the caller's contract; the outputs are this task's.
            unsafe {
                let above = self.above;
                // Also what is NaN.
                let may_be = |most: &f32| !(*most < above);
                if !p.out.part(row, rows).iter().any(may_be) {
                    continue;
                }
                tile::<V, Apart, 1, 1>(p, v, 0);
                self.full.fetch_add(rows, Ordering::Relaxed);
                for (i, x) in p.out.part(row, rows).iter().enumerate() {
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
