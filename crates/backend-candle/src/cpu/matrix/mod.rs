//! Weight matrices, dense and quantized, packed for the CPU.

mod activations;
mod apart;
mod codec;
mod integer;
mod kernels;
mod largest;
mod layout;
mod pack;
mod rounded;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::{Arc, Weak};

use biplane_backend::repack::dequantize_value;
use biplane_backend::{Error, PackedMatrix, Result};

use super::pool::{self, Ahead};
use super::simd::{Isa, launch};
use super::{SharedOut, for_row_chunks};
use activations::{Arrangement, arrange};
use apart::Apart;
use codec::{Codec, PANEL};
use kernels::{Gemv, Product, gemm};
use largest::Searches;
use layout::{Bias, Format, Layout, with_codec, with_codes};
use rounded::{Rounding, round};

/// A weight matrix `[out, in]` in this processor's layout. Its values are those of the checkpoint
/// exactly. A clone shares the memory.
#[derive(Clone)]
pub struct CpuMatrix {
    inner: Arc<Packed>,
}

struct Packed {
    layout: Layout,
    data: Vec<Line>,
    arithmetic: Arithmetic,
    /// What the job reads that followed the last one that began with this matrix: a model's decode steps
    /// are all alike.
    ahead: Ahead,
    /// Whether to look for the largest output alone.
    searches: Searches,
}

/// How products are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arithmetic {
    /// In `f32`.
    Exact,
    /// Quantized weights times activations rounded to 8 bits in groups of at most 32, summed exactly
    /// within a group; dense weights as [`Arithmetic::Exact`].
    Rounded,
}

impl Arithmetic {
    /// What is fastest here: rounded, but where there are only plain loops, which multiply floats faster
    /// than bytes.
    pub fn usual() -> Self {
        match Isa::get() {
            Isa::Portable => Arithmetic::Exact,
            _ => Arithmetic::Rounded,
        }
    }
}

/// A cache line.
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
struct Line([u32; 16]);

impl fmt::Debug for CpuMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuMatrix")
            .field("layout", &self.inner.layout)
            .field("bytes", &self.size_in_bytes())
            .finish()
    }
}

thread_local! {
    /// Room for arranged activations, kept from call to call.
    static SCRATCH: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
    /// The first matrix of the last job.
    static LAST: Cell<Weak<Packed>> = const { Cell::new(Weak::new()) };
}

/// The first `words` words of a buffer that grows.
fn room(scratch: &mut Vec<u32>, words: usize) -> &mut [u32] {
    if scratch.len() < words {
        scratch.resize(words, 0);
    }
    &mut scratch[..words]
}

/// One matrix of a job of several.
#[derive(Clone, Copy)]
struct Part<'a> {
    matrix: &'a CpuMatrix,
    at: Rounding,
    /// Where its rounded activations start.
    start: usize,
    /// Tokens that a panel is multiplied with before the next.
    tokens: usize,
    /// Panels of a task.
    chunk: usize,
    /// The first of its tasks, and how many it has.
    first_task: usize,
    tasks: usize,
    out: SharedOut,
}

/// Most matrices of a job.
const TOGETHER: usize = 4;

/// Multiplies rounded activations with quantized matrices, at most [`TOGETHER`]. Those that see them
/// alike share them.
fn rounded_products(isa: Isa, each: &mut [(&CpuMatrix, &mut [f32])], x: &[f32], rows: usize) {
    /// Multiply-adds that a task should have at least: about a microsecond.
    const WORTHWHILE: usize = 48 * 1024;
    /// Words of activations that stay in the second-level cache.
    const CACHED: usize = 64 * 1024;
    if rows == 0 {
        return;
    }
    let mut scratch = SCRATCH.take();
    let mut parts = [None::<Part<'_>>; TOGETHER];
    let (mut words, mut tasks) = (0, 0);
    for (i, (matrix, out)) in each.iter_mut().enumerate() {
        let layout = &matrix.inner.layout;
        assert_eq!(x.len(), rows * layout.cols, "x is [rows, in]");
        assert_eq!(out.len(), rows * layout.rows, "out is [rows, out]");
        let at = Rounding::new(layout, rows);
        let start = match parts[..i].iter().flatten().find(|p| p.at == at) {
            Some(same) => same.start,
            None => {
                let rounded = &mut room(&mut scratch, words + at.len())[words..];
                round(isa, &at, x, rounded);
                words += at.len();
                words - at.len()
            }
        };
        let tokens = (CACHED / at.row_words())
            .max(24)
            .next_multiple_of(12)
            .min(rows);
        let panels = layout.panels();
        let chunk = WORTHWHILE
            .div_ceil(layout.cols * PANEL * tokens)
            .clamp(1, panels);
        let part = Part {
            matrix,
            at,
            start,
            tokens,
            chunk,
            first_task: tasks,
            tasks: panels.div_ceil(chunk) * rows.div_ceil(tokens),
            out: SharedOut(out.as_mut_ptr()),
        };
        tasks += part.tasks;
        parts[i] = Some(part);
    }
    let Some(first) = &parts[0] else { return };
    let first = &first.matrix.inner;
    let part_of = |task| {
        let here = |p: &&Part<'_>| task < p.first_task + p.tasks;
        parts.iter().flatten().find(here)
    };
    if let Some(last) = LAST.replace(Arc::downgrade(first)).upgrade() {
        let threads = pool::threads();
        last.ahead.set(|thread| {
            let task = pool::stretch(tasks, thread, threads).start;
            part_of(task).map(|part| part.words_from(task))
        });
    }
    let x = &scratch[..words];
    pool::parallel_for_then(&first.ahead, tasks, |task| {
        if let Some(part) = part_of(task) {
            part.run(isa, x, task - part.first_task);
        }
    });
    SCRATCH.set(scratch);
}

impl Part<'_> {
    /// The matrix's words from those that a task of the job begins with.
    fn words_from(&self, task: usize) -> *const [u32] {
        let layout = &self.matrix.inner.layout;
        let chunks = layout.panels().div_ceil(self.chunk);
        let panel = (task - self.first_task) % chunks * self.chunk;
        let words = bytemuck::cast_slice::<Line, u32>(&self.matrix.inner.data);
        words
            .get(panel * layout.panel_words()..)
            .unwrap_or_default()
    }

    fn run(&self, isa: Isa, x: &[u32], task: usize) {
        let layout = &self.matrix.inner.layout;
        let Format::Codes { bits, block } = layout.format else {
            return;
        };
        let panels = layout.panels();
        let chunks = panels.div_ceil(self.chunk);
        let (token, chunk) = (task / chunks * self.tokens, task % chunks);
        let first = chunk * self.chunk;
        for panel in first..panels.min(first + self.chunk) {
            let product = integer::Product {
                layout,
                panel,
                words: self.matrix.panel(panel),
                low: self.matrix.low(panel),
                at: &self.at,
                x: &x[self.start..][..self.at.len()],
                first: token,
                tokens: self.tokens.min(self.at.rows - token),
                out: self.out,
            };
            if layout.apart {
                integer::multiply::<Apart>(isa, product);
            } else {
                with_codes!(bits, block, C => integer::multiply::<C>(isa, product));
            }
        }
    }
}

impl CpuMatrix {
    /// Packs a checkpoint's matrix, on all threads. `taken` is told which rows' bytes are not needed any
    /// more.
    ///
    /// # Errors
    /// [`Error::Weight`] for malformed bytes, [`Error::OutOfMemory`].
    pub fn pack(
        m: &PackedMatrix<'_>,
        arithmetic: Arithmetic,
        taken: &(dyn Fn(Range<usize>) + Sync),
    ) -> Result<CpuMatrix> {
        m.validate()?;
        let layout = match (Layout::of(m)?, arithmetic) {
            (layout, Arithmetic::Rounded) => layout.apart_if_tall(),
            (layout, Arithmetic::Exact) => layout,
        };
        let data = pack::pack(m, &layout, taken)?;
        let matrix = CpuMatrix {
            inner: Arc::new(Packed {
                layout,
                data,
                arithmetic,
                ahead: Ahead::default(),
                searches: Searches::default(),
            }),
        };
        if layout.apart && !matrix.has_bounds() {
            matrix.inner.searches.never();
        }
        Ok(matrix)
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        [self.inner.layout.rows, self.inner.layout.cols]
    }

    /// Bytes of the packed form.
    pub fn size_in_bytes(&self) -> usize {
        size_of_val(self.inner.data.as_slice())
    }

    /// `x · Wᵀ`: `x [rows, in]` gives `out [rows, out]`.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn matmul_t(&self, x: &[f32], rows: usize, out: &mut [f32]) {
        self.matmul_t_with(Isa::get(), x, rows, out);
    }

    fn matmul_t_with(&self, isa: Isa, x: &[f32], rows: usize, out: &mut [f32]) {
        if self.is_rounded() {
            return rounded_products(isa, &mut [(self, out)], x, rows);
        }
        let layout = &self.inner.layout;
        assert_eq!(x.len(), rows * layout.cols, "x is [rows, in]");
        assert_eq!(out.len(), rows * layout.rows, "out is [rows, out]");
        if out.is_empty() {
            return;
        }
        let mut scratch = SCRATCH.take();
        let at = Arrangement::new(layout, rows);
        let arranged = bytemuck::cast_slice_mut(room(&mut scratch, at.len()));
        arrange(layout, &at, x, arranged);
        self.multiply(isa, &at, arranged, SharedOut(out.as_mut_ptr()));
        SCRATCH.set(scratch);
    }

    /// [`Self::matmul_t`] with each of some matrices, in one job where that is possible.
    ///
    /// # Panics
    /// As [`Self::matmul_t`].
    pub fn matmul_t_each(each: &mut [(&CpuMatrix, &mut [f32])], x: &[f32], rows: usize) {
        if each.iter().all(|(m, _)| m.is_rounded()) {
            for some in each.chunks_mut(TOGETHER) {
                rounded_products(Isa::get(), some, x, rows);
            }
            return;
        }
        for (matrix, out) in each {
            matrix.matmul_t(x, rows, out);
        }
    }

    fn is_rounded(&self) -> bool {
        self.inner.arithmetic == Arithmetic::Rounded && self.inner.layout.scaling.is_some()
    }

    fn multiply(&self, isa: Isa, at: &Arrangement, x: &[f32], out: SharedOut) {
        /// Multiply-adds that a task should have at least: a few microseconds.
        const WORTHWHILE: usize = 64 * 1024;
        let layout = &self.inner.layout;
        let panels = layout.panels();
        let work = layout.cols * PANEL * at.tokens;
        let chunk = WORTHWHILE.div_ceil(work).clamp(1, panels);
        let chunks = panels.div_ceil(chunk);
        pool::parallel_for(chunks * at.token_blocks(), |task| {
            let (token_block, chunk_number) = (task / chunks, task % chunks);
            let first = chunk_number * chunk;
            for panel in first..panels.min(first + chunk) {
                with_codec!(layout.format, C => {
                    let product = Product::<C> {
                        layout,
                        panel,
                        words: self.panel(panel),
                        at,
                        token_block,
                        x,
                        out,
                        codec: PhantomData,
                    };
                    match at.tokens_of(token_block) {
                        1 => launch(isa, Gemv::<C, 1>(product)),
                        2 => launch(isa, Gemv::<C, 2>(product)),
                        _ => gemm(isa, product),
                    }
                });
            }
        });
    }

    /// Rows by number: `out [ids, in]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a row that does not exist.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn take_rows(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let [rows, cols] = self.shape();
        assert_eq!(out.len(), ids.len() * cols, "out is [ids, in]");
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= rows) {
            return Err(Error::OutOfRange {
                op: "take_rows",
                index: id as usize,
                limit: rows,
            });
        }
        for_row_chunks(out, cols, 4 * cols, |first, out| {
            for (&id, out) in ids[first..].iter().zip(out.chunks_exact_mut(cols)) {
                self.row(id as usize, out);
            }
        });
        Ok(())
    }

    /// The whole matrix `[out, in]`, bit for bit as [`biplane_backend::repack::dequantize_rows`]
    /// gives it.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn dequantize(&self, out: &mut [f32]) {
        let [rows, cols] = self.shape();
        assert_eq!(out.len(), rows * cols, "out is [out, in]");
        for_row_chunks(out, cols, 4 * cols, |first, out| {
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                self.row(first + i, out);
            }
        });
    }

    fn panel(&self, panel: usize) -> &[u32] {
        let n = self.inner.layout.panel_words();
        &bytemuck::cast_slice::<Line, u32>(&self.inner.data)[panel * n..][..n]
    }

    /// What of a panel lies apart.
    fn low(&self, panel: usize) -> &[u32] {
        let layout = &self.inner.layout;
        let n = layout.apart_words();
        let start = layout.panels() * layout.panel_words() + panel * n;
        &bytemuck::cast_slice::<Line, u32>(&self.inner.data)[start..][..n]
    }

    /// One row's values.
    fn row(&self, row: usize, out: &mut [f32]) {
        let layout = &self.inner.layout;
        let (panel, lane) = (self.panel(row / PANEL), row % PANEL);
        let mut low = self
            .low(row / PANEL)
            .chunks_exact(layout.low_words().max(1));
        let runs = panel[..layout.runs_words()].chunks_exact(layout.run_words());
        let groups = runs.flat_map(|run| {
            let groups = run[layout.header_words()..].chunks_exact(layout.group_words());
            groups.enumerate().map(move |(g, blocks)| (run, g, blocks))
        });
        with_codec!(layout.format, C => {
            for ((run, g, blocks), out) in groups.zip(out.chunks_mut(layout.group)) {
                if layout.apart {
                    let low = low.next().unwrap_or_default();
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = f32::from(Apart::get(blocks, low, k, lane));
                    }
                } else {
                    for (block, out) in blocks.chunks_exact(C::WORDS).zip(out.chunks_mut(C::BLOCK)) {
                        for (k, out) in out.iter_mut().enumerate() {
                            *out = C::get(block, k, lane);
                        }
                    }
                }
                let Some(scaling) = layout.scaling else { continue };
                let (scale, bias) = pack::scale_and_bias(layout, scaling, run, g, lane);
                let zero = match scaling.bias {
                    Bias::Stored => 0,
                    Bias::ZeroPoint(zero) => zero,
                };
                for out in out {
                    // A code is a whole number below 256.
                    *out = dequantize_value(*out as u8, scale, bias, zero);
                }
            }
        });
    }
}
