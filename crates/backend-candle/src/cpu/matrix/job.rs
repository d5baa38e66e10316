//! Products of rounded activations with some matrices, as one job of the pool.

use std::cell::Cell;

use crate::cpu::elementwise::{Activation, GatedRows};
use crate::cpu::pages::Line;
use crate::cpu::simd::{Isa, launch};
use crate::cpu::{SharedOut, pool};

use super::apart::Apart;
use super::codec::PANEL;
use super::layout::{Format, with_codes};
use super::rounded::{Rounding, round};
use super::{CpuMatrix, SCRATCH, integer, room};

/// Most matrices of a job.
pub(super) const TOGETHER: usize = 4;

/// Some columns of rows of outputs.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    /// The element in row and column `first`.
    start: SharedOut,
    first: [usize; 2],
    /// Elements from one row to the next.
    stride: usize,
}

impl Columns {
    /// Whole rows of `columns` elements.
    pub fn all(out: &mut [f32], columns: usize) -> Columns {
        Columns {
            start: SharedOut(out.as_mut_ptr()),
            first: [0, 0],
            stride: columns,
        }
    }

    /// From a column on, which becomes number 0.
    ///
    /// # Safety
    /// The column is there.
    pub unsafe fn from(self, column: usize) -> Columns {
        Columns {
            // SAFETY: the caller's contract.
            start: SharedOut(unsafe { self.start.at(column) }),
            ..self
        }
    }

    /// Where an element is.
    ///
    /// # Safety
    /// It lies in the output.
    #[inline(always)]
    pub unsafe fn at(&self, row: usize, column: usize) -> *mut f32 {
        let [first_row, first_column] = self.first;
        // SAFETY: the caller's contract.
        unsafe {
            self.start
                .at((row - first_row) * self.stride + (column - first_column))
        }
    }

    /// `n` elements of a row.
    ///
    /// # Safety
    /// They lie in the output, and no other task uses them meanwhile.
    #[inline(always)]
    pub unsafe fn part<'a>(&self, row: usize, column: usize, n: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(self.at(row, column), n) }
    }
}

/// One matrix of a job.
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
    out: Columns,
}

thread_local! {
    /// Room for what is to be gated in a task, kept from call to call.
    static GATED: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Multiplies rounded activations with quantized matrices, at most [`TOGETHER`]. Those that see them alike share them. Where
/// `gated` says so, there are two matrices of one shape, whose `out` is not written: the first one's outputs
/// gate the second's.
///
/// # Panics
/// When `x` has another length.
pub(super) fn rounded_products(
    isa: Isa,
    each: &[(&CpuMatrix, Columns)],
    x: &[f32],
    rows: usize,
    gated: Option<(Activation, Columns)>,
) {
    /// Multiply-adds that a task should have at least: about a microsecond.
    const WORTHWHILE: usize = 48 * 1024;
    /// Words of activations that stay in the second-level cache.
    const CACHED: usize = 64 * 1024;
    if rows == 0 {
        return;
    }
    let mut scratch = SCRATCH.take();
    let mut parts = [None::<Part<'_>>; TOGETHER];
    let (mut words, mut tasks, mut row_words) = (0, 0, 1);
    for (i, (matrix, out)) in each.iter().enumerate() {
        let layout = &matrix.inner.layout;
        assert_eq!(x.len(), rows * layout.cols, "x is [rows, in]");
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
        row_words = row_words.max(at.row_words());
        parts[i] = Some(Part {
            matrix,
            at,
            start,
            tokens: rows,
            chunk: 1,
            first_task: 0,
            tasks: 0,
            out: *out,
        });
    }
    let tokens = (CACHED / row_words).max(24).next_multiple_of(12).min(rows);
    for part in parts.iter_mut().flatten() {
        let layout = &part.matrix.inner.layout;
        let panels = layout.panels();
        let each = match gated {
            Some(_) => 2,
            None => 1,
        };
        part.tokens = tokens;
        part.chunk = WORTHWHILE
            .div_ceil(layout.cols.max(1) * PANEL * tokens * each)
            .clamp(1, panels.max(1));
        part.tasks = panels.div_ceil(part.chunk) * rows.div_ceil(tokens);
        if gated.is_none() {
            part.first_task = tasks;
            tasks += part.tasks;
        } else {
            tasks = part.tasks;
        }
    }
    let Some(first) = &parts[0] else { return };
    let first = &first.matrix.inner;
    let part_of = |task| {
        let here = |p: &&Part<'_>| task < p.first_task + p.tasks;
        parts.iter().flatten().find(here)
    };
    let threads = pool::threads();
    let reads = |thread| {
        let task = pool::stretch(tasks, thread, threads).start;
        part_of(task).map(|part| part.words_from(task))
    };
    let x = &scratch[..words];
    pool::parallel_for_after(&first.ahead, reads, tasks, |task| match (gated, &parts) {
        (Some((activation, out)), [Some(gate), Some(up), ..]) => {
            run_gated(isa, activation, [gate, up], x, task, out);
        }
        _ => {
            if let Some(part) = part_of(task) {
                part.run(isa, x, task - part.first_task, part.out);
            }
        }
    });
    SCRATCH.set(scratch);
}

/// One task of both matrices, and the gate.
fn run_gated(
    isa: Isa,
    activation: Activation,
    [gate, up]: [&Part<'_>; 2],
    x: &[u32],
    task: usize,
    out: Columns,
) {
    let (first_token, first_panel) = gate.place(task);
    let tokens = gate.tokens.min(gate.at.rows - first_token);
    let first = first_panel * PANEL;
    let width = (gate.chunk * PANEL).min(gate.matrix.inner.layout.rows - first);
    let mut buffer = GATED.take();
    if buffer.len() < 2 * tokens * width {
        buffer.resize(2 * tokens * width, 0.0);
    }
    let (gates, ups) = buffer[..2 * tokens * width].split_at_mut(tokens * width);
    let here = |part: &mut [f32]| Columns {
        first: [first_token, first],
        ..Columns::all(part, width)
    };
    gate.run(isa, x, task, here(gates));
    up.run(isa, x, task, here(ups));
    let kernel = GatedRows {
        activation,
        gate: gates,
        up: ups,
        width,
        // SAFETY: these columns of these rows, which no other task writes.
        out: unsafe { out.at(first_token, first) },
        stride: out.stride,
    };
    launch(isa, kernel);
    GATED.set(buffer);
}

impl Part<'_> {
    /// The first token and panel of one of its tasks.
    fn place(&self, task: usize) -> (usize, usize) {
        let chunks = self.matrix.inner.layout.panels().div_ceil(self.chunk);
        (task / chunks * self.tokens, task % chunks * self.chunk)
    }

    /// The matrix's words from those that a task of the job begins with.
    fn words_from(&self, task: usize) -> *const [u32] {
        let layout = &self.matrix.inner.layout;
        let (_, panel) = self.place(task - self.first_task);
        let words = bytemuck::cast_slice::<Line, u32>(&self.matrix.inner.data);
        words
            .get(panel * layout.panel_words()..)
            .unwrap_or_default()
    }

    fn run(&self, isa: Isa, x: &[u32], task: usize, out: Columns) {
        let layout = &self.matrix.inner.layout;
        let Format::Codes { bits, block } = layout.format else {
            return;
        };
        let (token, first) = self.place(task);
        for panel in first..layout.panels().min(first + self.chunk) {
            let product = integer::Product {
                layout,
                panel,
                words: self.matrix.panel(panel),
                low: self.matrix.low(panel),
                at: &self.at,
                x: &x[self.start..][..self.at.len()],
                first: token,
                tokens: self.tokens.min(self.at.rows - token),
                out,
            };
            if layout.apart {
                integer::multiply::<Apart>(isa, product);
            } else {
                with_codes!(bits, block, C => integer::multiply::<C>(isa, product));
            }
        }
    }
}
