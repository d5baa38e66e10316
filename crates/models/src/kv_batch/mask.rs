//! What hides the front of shorter rows: made once, and again when rows come, go or move.

use biplane_backend::{Backend, DType, Result, Tensor};

/// Masks that are kept: as many as models have kinds of layers.
const KINDS: usize = 4;

/// The masks of a batch; layers that are alike share one.
#[derive(Debug)]
pub(super) struct Masks<T>(Vec<Mask<T>>);

#[derive(Debug)]
struct Mask<T> {
    starts: Vec<usize>,
    capacity: usize,
    /// `[rows, capacity]`: 0, or minus infinity before a row's start.
    whole: T,
    /// The columns of this step.
    part: Option<((usize, usize), T)>,
}

impl<T> Default for Masks<T> {
    fn default() -> Self {
        Masks(Vec::new())
    }
}

impl<T: Tensor> Masks<T> {
    /// `columns`, by their first and their number, of the mask of rows that begin at `starts` in a
    /// buffer of `capacity`.
    pub fn get<B: Backend<Tensor = T>>(
        &mut self,
        backend: &B,
        dtype: DType,
        (starts, capacity): (&[usize], usize),
        columns: (usize, usize),
    ) -> Result<T> {
        let same = |m: &Mask<T>| m.starts == starts && m.capacity == capacity;
        let mut mask = match self.0.iter().position(same) {
            Some(at) => self.0.swap_remove(at),
            None => Mask::new(backend, dtype, starts, capacity)?,
        };
        let part = match mask.part.take() {
            Some((known, part)) if known == columns => part,
            _ => mask.whole.narrow(1, columns.0, columns.1)?,
        };
        mask.part = Some((columns, part.clone()));
        self.0.push(mask);
        if self.0.len() > KINDS {
            self.0.remove(0);
        }
        Ok(part)
    }
}

impl<T: Tensor> Mask<T> {
    fn new<B: Backend<Tensor = T>>(
        backend: &B,
        dtype: DType,
        starts: &[usize],
        capacity: usize,
    ) -> Result<Self> {
        let mut values = vec![0.0; starts.len() * capacity];
        for (row, &start) in values.chunks_mut(capacity).zip(starts) {
            row.iter_mut()
                .take(start)
                .for_each(|v| *v = f32::NEG_INFINITY);
        }
        let whole = backend.from_f32s(&values, [starts.len(), capacity])?;
        Ok(Mask {
            starts: starts.to_vec(),
            capacity,
            whole: whole.cast(dtype)?,
            part: None,
        })
    }
}
