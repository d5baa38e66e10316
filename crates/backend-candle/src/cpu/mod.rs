//! Biplane's own CPU kernels: plain functions over `f32` slices and packed weight matrices.
//!
//! Every result of a row, token or query is the same bit for bit however many others are computed in
//! the same call and on however many threads, so that a batched sequence equals a lone one.

mod attention;
mod elementwise;
mod math;
mod matrix;
mod norm;
mod pages;
pub mod pool;
mod quantize;
mod rope;
pub mod simd;

pub use attention::{AttentionShape, attention};
pub use elementwise::{argmax, gelu_tanh_mul, silu_mul, softmax};
pub use matrix::{Arithmetic, Around, CpuMatrices, CpuMatrix};
pub use norm::{layer_norm, rms_norm};
pub use pages::{LARGE_PAGE, zeros_in_large_pages};
pub(crate) use quantize::quantize;
pub use rope::rope;

use std::cell::Cell;

use half::f16;

/// A view of `[heads, tokens, head_dim]` elements whose last axis is contiguous.
#[derive(Clone, Copy, Debug)]
pub struct Strided<'a, T = f32> {
    /// The elements, from the first head's first token on.
    pub data: &'a [T],
    /// Elements from one head to the next.
    pub head_stride: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
}

impl<'a, T> Strided<'a, T> {
    /// Without the first tokens, which are there.
    fn after(self, tokens: usize) -> Self {
        Strided {
            data: &self.data[tokens * self.token_stride..],
            ..self
        }
    }

    /// One head's elements of one token.
    #[inline(always)]
    fn row(&self, head: usize, token: usize, head_dim: usize) -> &'a [T] {
        let start = head * self.head_stride + token * self.token_stride;
        &self.data[start..start + head_dim]
    }
}

/// Keys or values, in the type that they are kept in.
#[derive(Clone, Copy, Debug)]
pub enum Kept<'a> {
    /// As they were computed.
    F32(Strided<'a>),
    /// Rounded, in half the memory.
    F16(Strided<'a, f16>),
    /// Quantized.
    Codes(Codes<'a>),
}

/// Quantized keys or values: `scale · code + bias`, a scale and a bias for every [`Codes::GROUP`]
/// elements of a head.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// Width of a code: 4 or 8.
    pub bits: usize,
    /// Bytes of codes; of two in a byte the first is in the lower bits.
    pub codes: Strided<'a, u8>,
    /// One a group.
    pub scales: Strided<'a, f16>,
    /// One a group.
    pub biases: Strided<'a, f16>,
}

impl Codes<'_> {
    /// Elements that share a scale, a multiple of every vector's lanes.
    pub const GROUP: usize = 2 * simd::MAX_LANES;
}

impl<'a> Kept<'a> {
    /// Without the first tokens, which are there.
    pub fn after(self, tokens: usize) -> Self {
        match self {
            Kept::F32(x) => Kept::F32(x.after(tokens)),
            Kept::F16(x) => Kept::F16(x.after(tokens)),
            Kept::Codes(x) => Kept::Codes(Codes {
                bits: x.bits,
                codes: x.codes.after(tokens),
                scales: x.scales.after(tokens),
                biases: x.biases.after(tokens),
            }),
        }
    }
}

impl Kept<'_> {
    /// Panics where the row is not there.
    fn check(&self, head: usize, token: usize, head_dim: usize) {
        match self {
            Kept::F32(x) => _ = x.row(head, token, head_dim),
            Kept::F16(x) => _ = x.row(head, token, head_dim),
            Kept::Codes(x) => {
                assert!(head_dim.is_multiple_of(Codes::GROUP) && matches!(x.bits, 4 | 8));
                x.codes.row(head, token, head_dim * x.bits / 8);
                x.scales.row(head, token, head_dim / Codes::GROUP);
                x.biases.row(head, token, head_dim / Codes::GROUP);
            }
        }
    }
}

thread_local! {
    /// Rooms for a few rows, one for each call within another, kept from call to call.
    static ROOMS: Cell<Vec<Vec<f32>>> = const { Cell::new(Vec::new()) };
}

/// Calls `f` with `n` floats of any values.
pub(crate) fn with_room<T>(n: usize, f: impl FnOnce(&mut [f32]) -> T) -> T {
    /// What a decode step needs stays.
    const KEPT: usize = 64 * 1024;
    let mut rooms = ROOMS.take();
    let mut room = rooms.pop().unwrap_or_default();
    ROOMS.set(rooms);
    if room.len() < n {
        room.resize(n, 0.0);
    }
    let result = f(&mut room[..n]);
    if room.len() <= KEPT {
        let mut rooms = ROOMS.take();
        rooms.push(room);
        ROOMS.set(rooms);
    }
    result
}

/// An output that tasks write disjoint parts of.
#[derive(Clone, Copy)]
struct SharedOut(*mut f32);

// SAFETY: whoever writes through it takes care that the tasks' parts are disjoint.
unsafe impl Sync for SharedOut {}
// SAFETY: as above.
unsafe impl Send for SharedOut {}

impl SharedOut {
    /// Where element `start` is.
    ///
    /// # Safety
    /// It lies in the output.
    unsafe fn at(self, start: usize) -> *mut f32 {
        // SAFETY: the caller's contract.
        unsafe { self.0.add(start) }
    }

    /// Elements `start .. start + len`.
    ///
    /// # Safety
    /// They lie in the output, and no other task uses them meanwhile.
    unsafe fn part<'a>(self, start: usize, len: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(start), len) }
    }
}

/// Calls `f(first, chunk)` on chunks of `out`, in parallel where there are many elements.
pub(crate) fn for_chunks(out: &mut [f32], f: impl Fn(usize, &mut [f32]) + Sync) {
    for_row_chunks(out, 1, 1, f);
}

/// Calls `f(first, chunk)` on chunks of whole rows of `out`, in parallel where the work, `cost`
/// operations for each row, is worth it.
fn for_row_chunks(out: &mut [f32], row: usize, cost: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    /// Operations that take some ten microseconds: less is not worth waking anyone.
    const WORTHWHILE: usize = 32 * 1024;
    if row == 0 || out.is_empty() {
        return;
    }
    let rows = out.len() / row;
    let chunk = WORTHWHILE.div_ceil(cost.max(1)).clamp(1, rows);
    let shared = SharedOut(out.as_mut_ptr());
    pool::parallel_for(rows.div_ceil(chunk), |i| {
        let first = i * chunk;
        let n = chunk.min(rows - first);
        // SAFETY: chunks of different tasks are disjoint rows of `out`.
        f(first, unsafe { shared.part(first * row, n * row) });
    });
}
