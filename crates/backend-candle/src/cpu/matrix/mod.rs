//! Weight matrices, dense and quantized, packed for the CPU.

mod activations;
mod apart;
mod codec;
mod integer;
mod job;
mod joined;
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
use std::sync::Arc;

use biplane_backend::repack::dequantize_value;
use biplane_backend::{PackedMatrix, Result};

use super::pages::{Line, Lines};
use super::pool::{self, Ahead};
use super::simd::{Isa, launch};
use activations::{Arrangement, arrange};
use apart::Apart;
use codec::{Codec, PANEL};
use job::{Columns, rounded_products};
pub use joined::{Around, CpuMatrices};
use kernels::{Gemv, Product, gemm};
use largest::Searches;
use layout::{Bias, Format, Layout, with_codec};

/// A weight matrix `[out, in]` in this processor's layout. Its values are those of the checkpoint
/// exactly. A clone shares the memory.
#[derive(Clone)]
pub struct CpuMatrix {
    inner: Arc<Packed>,
}

struct Packed {
    layout: Layout,
    data: Lines,
    arithmetic: Arithmetic,
    /// What is read after a job that begins with this matrix.
    ahead: Arc<Ahead>,
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
}

/// The first `words` words of a buffer that grows.
fn room(scratch: &mut Vec<u32>, words: usize) -> &mut [u32] {
    if scratch.len() < words {
        scratch.resize(words, 0);
    }
    &mut scratch[..words]
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
                ahead: Arc::default(),
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
        size_of_val(&*self.inner.data)
    }

    /// `x · Wᵀ`: `x [rows, in]` gives `out [rows, out]`.
    fn matmul_t_with(&self, isa: Isa, x: &[f32], rows: usize, out: &mut [f32]) {
        let layout = &self.inner.layout;
        assert_eq!(out.len(), rows * layout.rows, "out is [rows, out]");
        // SAFETY: this matrix' columns are all there are.
        unsafe { self.multiply_into(isa, x, rows, Columns::all(out, layout.rows)) }
    }

    /// `x · Wᵀ` into some columns of rows.
    ///
    /// # Safety
    /// `out` is rows of as many columns as the matrix has outputs, and nothing else uses them meanwhile.
    unsafe fn multiply_into(&self, isa: Isa, x: &[f32], rows: usize, out: Columns) {
        if self.is_rounded() {
            return rounded_products(isa, &[(self, out)], x, rows, None);
        }
        let layout = &self.inner.layout;
        assert_eq!(x.len(), rows * layout.cols, "x is [rows, in]");
        if rows == 0 || layout.rows == 0 {
            return;
        }
        let mut scratch = SCRATCH.take();
        let at = Arrangement::new(layout, rows);
        let arranged = bytemuck::cast_slice_mut(room(&mut scratch, at.len()));
        arrange(layout, &at, x, arranged);
        self.multiply(isa, &at, arranged, out);
        SCRATCH.set(scratch);
    }

    fn is_rounded(&self) -> bool {
        self.inner.arithmetic == Arithmetic::Rounded && self.inner.layout.scaling.is_some()
    }

    fn multiply(&self, isa: Isa, at: &Arrangement, x: &[f32], out: Columns) {
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
