//! Matrices under each other, which need not be of one format, and what is done around their products.

use std::sync::Arc;

use biplane_backend::{Error, Gate, Result};

use crate::cpu::elementwise::{Activation, gated_row};
use crate::cpu::norm::rms_norm;
use crate::cpu::simd::Isa;
use crate::cpu::{for_chunks, for_row_chunks, with_room};

use super::CpuMatrix;
use super::job::{Columns, TOGETHER, rounded_products};

/// The rows of some matrices of one `in` under each other. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct CpuMatrices {
    pub(super) parts: Arc<[CpuMatrix]>,
    shape: [usize; 2],
}

/// What is done before and after a product, in this order; see [`biplane_backend::Around`].
#[derive(Clone, Copy, Default)]
pub struct Around<'a> {
    /// RMSNorm of the input by a weight `[in]` and epsilon.
    pub norm: Option<(&'a [f32], f32)>,
    /// `[out]`, added to every row.
    pub bias: Option<&'a [f32]>,
    /// The first half of a row's outputs are gates of the second half.
    pub gate: Option<Gate>,
    /// RMSNorm of what has been computed so far, by a weight as long as its rows.
    pub norm_after: Option<(&'a [f32], f32)>,
    /// Added to the result.
    pub add: Option<&'a [f32]>,
}

impl CpuMatrices {
    /// One matrix.
    pub fn one(matrix: CpuMatrix) -> Self {
        CpuMatrices {
            shape: matrix.shape(),
            parts: [matrix].into(),
        }
    }

    /// All parts of all, in order; `None` where their rows are not of one length.
    pub fn join(all: &[&CpuMatrices]) -> Option<Self> {
        let cols = all.first()?.shape[1];
        if all.iter().any(|m| m.shape[1] != cols) {
            return None;
        }
        Some(CpuMatrices {
            shape: [all.iter().map(|m| m.shape[0]).sum(), cols],
            parts: all.iter().flat_map(|m| m.parts.iter().cloned()).collect(),
        })
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Bytes of the packed forms.
    pub fn size_in_bytes(&self) -> usize {
        self.parts.iter().map(CpuMatrix::size_in_bytes).sum()
    }

    /// `x · Wᵀ` with what is done around it: `x [rows, in]` gives `out [rows, out]`, or `[rows, out / 2]`
    /// where gated.
    ///
    /// # Panics
    /// When a slice has another length.
    pub fn matmul_t(&self, x: &[f32], around: &Around<'_>, out: &mut [f32]) {
        let Some((weight, eps)) = around.norm else {
            return self.normed(x, around, out);
        };
        with_room(x.len(), |normed| {
            rms_norm(x, weight, eps, normed);
            self.normed(normed, around, out);
        });
    }

    /// From behind the input's norm on.
    fn normed(&self, x: &[f32], around: &Around<'_>, out: &mut [f32]) {
        let [outputs, cols] = self.shape;
        let rows = x.len() / cols.max(1);
        let width = match around.gate {
            Some(_) => outputs / 2,
            None => outputs,
        };
        assert_eq!(out.len(), rows * width, "out is [rows, out]");
        if out.is_empty() {
            return;
        }
        match around.gate {
            None => self.products(x, rows, around.bias, out),
            Some(gate) => self.gated(x, rows, around.bias, gate.into(), out),
        }
        let as_many = around.add.is_none_or(|add| add.len() == out.len());
        assert!(as_many, "as many as outputs");
        match (around.norm_after, around.add) {
            (None, None) => {}
            (None, Some(add)) => add_to(out, add),
            (Some((weight, eps)), add) => with_room(out.len(), |y| {
                y.copy_from_slice(out);
                rms_norm(y, weight, eps, out);
                if let Some(add) = add {
                    add_to(out, add);
                }
            }),
        }
    }

    /// Products and biases.
    fn products(&self, x: &[f32], rows: usize, bias: Option<&[f32]>, out: &mut [f32]) {
        let [outputs, _] = self.shape;
        let isa = Isa::get();
        let mut all = self.columns(out);
        if self.parts.iter().all(CpuMatrix::is_rounded) {
            while let Some(first) = all.next() {
                let (mut some, mut n) = ([first; TOGETHER], 1);
                for (place, next) in some[1..].iter_mut().zip(&mut all) {
                    (*place, n) = (next, n + 1);
                }
                rounded_products(isa, &some[..n], x, rows, None);
            }
        } else {
            // SAFETY: the columns are those of the part, which nothing else uses.
            all.for_each(|(part, out)| unsafe { part.multiply_into(isa, x, rows, out) });
        }
        if let Some(bias) = bias {
            assert_eq!(bias.len(), outputs, "bias is [out]");
            for_row_chunks(out, outputs, outputs, |_, out| {
                for row in out.chunks_exact_mut(outputs) {
                    row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
                }
            });
        }
    }

    /// Every part with its columns of rows of outputs.
    fn columns<'a>(
        &'a self,
        out: &mut [f32],
    ) -> impl Iterator<Item = (&'a CpuMatrix, Columns)> + use<'a> {
        let all = Columns::all(out, self.shape[0]);
        let mut first = 0;
        self.parts.iter().map(move |part| {
            // SAFETY: the parts' outputs are the rows' columns.
            let columns = unsafe { all.from(first) };
            first += part.shape()[0];
            (part, columns)
        })
    }

    fn gated(
        &self,
        x: &[f32],
        rows: usize,
        bias: Option<&[f32]>,
        activation: Activation,
        out: &mut [f32],
    ) {
        /// Fewer are bound by the memory, which gives one matrix after the other faster than both by
        /// turns.
        const MANY: usize = 4;
        let width = self.shape[0] / 2;
        let isa = Isa::get();
        if let ([gate, up], None) = (&*self.parts, bias)
            && rows >= MANY
            && gate.shape() == up.shape()
            && gate.is_rounded()
            && up.is_rounded()
        {
            let out = Columns::all(out, width);
            // Both write into rooms of the tasks'.
            let each = [(gate, out), (up, out)];
            return rounded_products(isa, &each, x, rows, Some((activation, out)));
        }
        with_room(rows * 2 * width, |y| {
            self.products(x, rows, bias, y);
            for_row_chunks(out, width, 8 * width, |first, out| {
                let y = &y[2 * first * width..];
                for (y, out) in y.chunks_exact(2 * width).zip(out.chunks_exact_mut(width)) {
                    let (gate, up) = y.split_at(width);
                    gated_row(isa, activation, gate, up, out);
                }
            });
        });
    }

    /// [`CpuMatrix::largest`], where it is one matrix.
    pub fn largest(&self, x: &[f32]) -> Option<usize> {
        match &*self.parts {
            [one] => Some(one.largest(x)),
            _ => None,
        }
    }

    /// The part that has a row, and its number there.
    fn part_of(&self, mut row: usize) -> Option<(&CpuMatrix, usize)> {
        for part in &*self.parts {
            let [rows, _] = part.shape();
            if row < rows {
                return Some((part, row));
            }
            row -= rows;
        }
        None
    }

    /// Rows by number: `out [ids, in]`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for a row that does not exist.
    ///
    /// # Panics
    /// When `out` has another length.
    pub fn take_rows(&self, ids: &[u32], out: &mut [f32]) -> Result<()> {
        let [rows, cols] = self.shape;
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
                if let Some((part, row)) = self.part_of(id as usize) {
                    part.row(row, out);
                }
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
        let [rows, cols] = self.shape;
        assert_eq!(out.len(), rows * cols, "out is [out, in]");
        for_row_chunks(out, cols, 4 * cols, |first, out| {
            for (i, out) in out.chunks_exact_mut(cols).enumerate() {
                if let Some((part, row)) = self.part_of(first + i) {
                    part.row(row, out);
                }
            }
        });
    }
}

/// Adds a residual.
fn add_to(out: &mut [f32], add: &[f32]) {
    for_chunks(out, |first, out| {
        let add = &add[first..][..out.len()];
        out.iter_mut().zip(add).for_each(|(y, x)| *y += x);
    });
}
