//! Outputs: sums of weighted values.

use std::ops::Range;

use crate::cpu::simd::Simd;

use super::{
    Queries, clip,
    rows::{Element, Rows},
};

/// Adds a block's weighted values to the outputs of `T` queries: together for the keys that all see,
/// one by one for those before and after, so that each adds its keys in order and no others.
#[inline(always)]
pub(super) unsafe fn weigh_block<V: Simd, E: Element, const T: usize>(
    queries: &Queries<'_>,
    rows: &Rows<E>,
    elements: &Range<usize>,
    first: usize,
    block: &Range<usize>,
    weights: *const f32,
    keys: &Range<usize>,
) {
    let (mut from, mut to) = ([0; T], [0; T]);
    let (mut start, mut end) = (0, usize::MAX);
    let mut out = [std::ptr::null_mut(); T];
    for t in 0..T {
        let seen = clip(&queries.visible(first + t), block);
        (from[t], to[t]) = (seen.start, seen.end);
        (start, end) = (start.max(seen.start), end.min(seen.end));
        // SAFETY: the elements are among the output's.
        out[t] = unsafe { queries.out(first + t).add(elements.start) };
    }
    let d = elements.len();
    // SAFETY: every query has a row of weights for `keys`, counted from their start.
    unsafe {
        let row = weights.wrapping_sub(keys.start);
        let mut weights = [row; T];
        for t in 0..T {
            weights[t] = row.wrapping_add((first + t) * keys.len());
        }
        if start >= end {
            for t in 0..T {
                weigh::<V, E, 1>(rows, d, from[t]..to[t], [weights[t]], [out[t]]);
            }
            return;
        }
        for t in 0..T {
            weigh::<V, E, 1>(rows, d, from[t]..start, [weights[t]], [out[t]]);
        }
        weigh::<V, E, T>(rows, d, start..end, weights, out);
        for t in 0..T {
            weigh::<V, E, 1>(rows, d, end..to[t], [weights[t]], [out[t]]);
        }
    }
}

/// Adds the weighted values of some keys to outputs. A key's weight is at its number.
#[inline(always)]
unsafe fn weigh<V: Simd, E: Element, const T: usize>(
    rows: &Rows<E>,
    d: usize,
    keys: Range<usize>,
    weights: [*const f32; T],
    out: [*mut f32; T],
) {
    if keys.is_empty() {
        return;
    }
    let values = rows.from(keys.start);
    let weights = after(weights, keys.start);
    let n = keys.len();
    // SAFETY: the caller's contract; `at` and the lanes after it stay below `d`.
    unsafe {
        let mut at = 0;
        // A lone query needs more chains of additions to keep the units busy.
        while T == 1 && at + 8 * V::LANES <= d {
            weigh_lanes::<V, E, T, 8>(values.after(at), n, weights, after_mut(out, at));
            at += 8 * V::LANES;
        }
        while at + 4 * V::LANES <= d {
            weigh_lanes::<V, E, T, 4>(values.after(at), n, weights, after_mut(out, at));
            at += 4 * V::LANES;
        }
        while at + 2 * V::LANES <= d {
            weigh_lanes::<V, E, T, 2>(values.after(at), n, weights, after_mut(out, at));
            at += 2 * V::LANES;
        }
        while at + V::LANES <= d {
            weigh_lanes::<V, E, T, 1>(values.after(at), n, weights, after_mut(out, at));
            at += V::LANES;
        }
        for at in at..d {
            for t in 0..T {
                for i in 0..n {
                    *out[t].add(at) += *weights[t].add(i) * (*values.row(i).add(at)).wide();
                }
            }
        }
    }
}

/// Pointers that many elements further on.
#[inline(always)]
fn after<const T: usize>(mut pointers: [*const f32; T], elements: usize) -> [*const f32; T] {
    for p in &mut pointers {
        *p = p.wrapping_add(elements);
    }
    pointers
}

/// As [`after`].
#[inline(always)]
fn after_mut<const T: usize>(mut pointers: [*mut f32; T], elements: usize) -> [*mut f32; T] {
    for p in &mut pointers {
        *p = p.wrapping_add(elements);
    }
    pointers
}

/// As [`weigh`], for `N` vectors of the values' elements.
#[inline(always)]
unsafe fn weigh_lanes<V: Simd, E: Element, const T: usize, const N: usize>(
    values: Rows<E>,
    n: usize,
    weights: [*const f32; T],
    out: [*mut f32; T],
) {
    // SAFETY: the caller's contract.
    unsafe {
        let mut sums = [[V::splat(0.0); N]; T];
        for t in 0..T {
            for i in 0..N {
                sums[t][i] = V::load(out[t].add(i * V::LANES));
            }
        }
        for key in 0..n {
            let row = values.row(key);
            values.ask(row, N * V::LANES);
            // A value at a time: sums, weights and it just fit the registers.
            #[allow(clippy::needless_range_loop)]
            for i in 0..N {
                let value = E::load::<V>(row.add(i * V::LANES));
                for t in 0..T {
                    sums[t][i] = V::fma(V::splat(*weights[t].add(key)), value, sums[t][i]);
                }
            }
        }
        for t in 0..T {
            for i in 0..N {
                V::store(out[t].add(i * V::LANES), sums[t][i]);
            }
        }
    }
}
