//! Weight matrices, dense and quantized, packed for the CPU.

mod activations;
mod codec;
mod kernels;
mod layout;
mod pack;
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
use layout::{Bias, Format, Layout, with_codec};

/// A weight matrix `[out, in]` in this processor's layout. Its values are those of the checkpoint
/// exactly; products are computed in `f32`. A clone shares the memory.
#[derive(Clone)]
pub struct CpuMatrix {
    inner: Arc<Packed>,
}

struct Packed {
    layout: Layout,
    data: Vec<Line>,
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
    static SCRATCH: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

impl CpuMatrix {
    /// Packs a checkpoint's matrix, on all threads.
    ///
    /// # Errors
    /// [`Error::Weight`] for malformed bytes, [`Error::OutOfMemory`].
    pub fn pack(m: &PackedMatrix<'_>) -> Result<CpuMatrix> {
        m.validate()?;
        let layout = Layout::of(m)?;
        let data = pack::pack(m, &layout)?;
        Ok(CpuMatrix {
            inner: Arc::new(Packed { layout, data }),
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

    /// `x · Wᵀ`: `x [rows, in]` gives `out [rows, out]`, in `f32`.
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
        let at = Arrangement::new(layout, rows);
        let mut scratch = SCRATCH.take();
        if scratch.len() < at.len() {
            scratch.resize(at.len(), 0.0);
        }
        let arranged = &mut scratch[..at.len()];
        arrange(layout, &at, x, arranged);
        self.multiply(isa, &at, arranged, SharedOut(out.as_mut_ptr()));
        SCRATCH.set(scratch);
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
