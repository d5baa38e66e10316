//! Weight matrices, dense and quantized, packed for the CPU.

mod activations;
mod codec;
mod integer;
mod kernels;
mod layout;
mod pack;
mod rounded;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use biplane_backend::repack::dequantize_value;
use biplane_backend::{Error, PackedMatrix, Result};

use super::simd::{Isa, launch};
use super::{SharedOut, for_row_chunks, pool};
use activations::{Arrangement, arrange};
use codec::{Codec, PANEL};
use kernels::{Gemv, Product, gemm};
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
}

/// The first `words` words of a buffer that grows.
fn room(scratch: &mut Vec<u32>, words: usize) -> &mut [u32] {
    if scratch.len() < words {
        scratch.resize(words, 0);
    }
    &mut scratch[..words]
}

impl CpuMatrix {
    /// Packs a checkpoint's matrix, on all threads.
    ///
    /// # Errors
    /// [`Error::Weight`] for malformed bytes, [`Error::OutOfMemory`].
    pub fn pack(m: &PackedMatrix<'_>, arithmetic: Arithmetic) -> Result<CpuMatrix> {
        m.validate()?;
        let layout = Layout::of(m)?;
        let data = pack::pack(m, &layout)?;
        Ok(CpuMatrix {
            inner: Arc::new(Packed {
                layout,
                data,
                arithmetic,
            }),
        })
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
        let layout = &self.inner.layout;
        assert_eq!(x.len(), rows * layout.cols, "x is [rows, in]");
        assert_eq!(out.len(), rows * layout.rows, "out is [rows, out]");
        if out.is_empty() {
            return;
        }
        let mut scratch = SCRATCH.take();
        let out = SharedOut(out.as_mut_ptr());
        match (layout.format, self.inner.arithmetic) {
            (Format::Codes { .. }, Arithmetic::Rounded) => {
                let at = Rounding::new(layout, rows);
                let rounded = room(&mut scratch, at.len());
                round(isa, &at, x, rounded);
                self.multiply_rounded(isa, &at, rounded, out);
            }
            _ => {
                let at = Arrangement::new(layout, rows);
                let arranged = bytemuck::cast_slice_mut(room(&mut scratch, at.len()));
                arrange(layout, &at, x, arranged);
                self.multiply(isa, &at, arranged, out);
            }
        }
        SCRATCH.set(scratch);
    }

    fn multiply_rounded(&self, isa: Isa, at: &Rounding, x: &[u32], out: SharedOut) {
        /// Multiply-adds that a task should have at least: about a microsecond.
        const WORTHWHILE: usize = 48 * 1024;
        /// Words of activations that stay in the second-level cache.
        const CACHED: usize = 64 * 1024;
        let layout = &self.inner.layout;
        let panels = layout.panels();
        let tokens = (CACHED / at.row_words()).max(24).next_multiple_of(12);
        let token_blocks = at.rows.div_ceil(tokens);
        let work = layout.cols * PANEL * tokens.min(at.rows);
        let chunk = WORTHWHILE.div_ceil(work).clamp(1, panels);
        let chunks = panels.div_ceil(chunk);
        pool::parallel_for(chunks * token_blocks, |task| {
            let (token_block, chunk_number) = (task / chunks, task % chunks);
            let first = chunk_number * chunk;
            for panel in first..panels.min(first + chunk) {
                let product = integer::Product {
                    layout,
                    panel,
                    words: self.panel(panel),
                    at,
                    x,
                    first: token_block * tokens,
                    tokens: tokens.min(at.rows - token_block * tokens),
                    out,
                };
                if let Format::Codes { bits, block } = layout.format {
                    with_codes!(bits, block, C => integer::multiply::<C>(isa, product));
                }
            }
        });
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

    /// One row's values.
    fn row(&self, row: usize, out: &mut [f32]) {
        let layout = &self.inner.layout;
        let (panel, lane) = (self.panel(row / PANEL), row % PANEL);
        let groups = panel.chunks_exact(layout.group_words());
        with_codec!(layout.format, C => {
            for (words, out) in groups.zip(out.chunks_mut(layout.group)) {
                let blocks = words[layout.header_words()..].chunks_exact(C::WORDS);
                for (block, out) in blocks.zip(out.chunks_mut(C::BLOCK)) {
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = C::get(block, k, lane);
                    }
                }
                let Some(scaling) = layout.scaling else { continue };
                let (scale, bias) = pack::scale_and_bias(layout, scaling, words, lane);
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
