//! Keys and values of sequences that decode together: one buffer a layer, a row a sequence, so that
//! one operation appends to all of them and one attends for all.
//!
//! The rows' last tokens lie side by side at [`BatchLayer::end`]; what lies before the first token of
//! a shorter row is masked. Who does anything but decode takes its row back into buffers of its own.

mod mask;

use biplane_backend::{Backend, DType, Decode, Error, Kept, KvFormat, Result, Tensor};

use self::mask::Masks;
use crate::{
    kv_cache::{BLOCK, CacheSpec, KeysValues, LayerCache, SequenceCache, lost, plain},
    runner::SlotId,
};

/// The row of a sequence that is not here any more goes with the next change.
type Member = Option<SlotId>;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct BatchCache<B: Backend> {
    layers: Vec<BatchLayer<B>>,
    masks: Masks<B::Tensor>,
    /// The sequences of the rows.
    pub members: Vec<Member>,
    /// The sequences among which the members were chosen; none once one has left.
    pub asked: Option<Vec<SlotId>>,
}

/// One layer's keys and values, each `[rows, kv_heads, capacity, head_dim]`.
#[derive(Debug)]
struct BatchLayer<B: Backend> {
    spec: CacheSpec,
    keys_values: Option<KeysValues<B::Tensor>>,
    /// Where each row's first token lies.
    starts: Vec<usize>,
    /// Where the next tokens go.
    end: usize,
    capacity: usize,
}

/// Drops the longest sequences until the others, padded to one length, take at most twice their own
/// tokens and a block each. `lens` are numbers of tokens; gives the indices of those that stay.
pub(crate) fn alike(lens: &[usize]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lens.len()).collect();
    let len = |&i: &usize| lens.get(i).copied().unwrap_or_default();
    order.sort_by_key(len);
    while let Some(longest) = order.last() {
        let held: usize = order.iter().map(len).sum();
        if len(longest) * order.len() <= 2 * held + BLOCK * order.len() {
            break;
        }
        order.pop();
    }
    order.sort_unstable();
    order
}

impl<B: Backend> BatchCache<B> {
    /// A batch of the rows of `old` that are `kept`, by number, and of the sequences in `joining`,
    /// whose buffers it takes.
    ///
    /// # Errors
    /// Only what the backend reports; what `joining` held is lost then.
    pub fn new(
        backend: &B,
        format: KvFormat,
        old: Option<(Self, &[usize])>,
        joining: &mut [(SlotId, &mut SequenceCache<B>)],
    ) -> Result<Self> {
        let (mut old_layers, mut members) = (Vec::new(), Vec::new());
        let kept = old.as_ref().map_or(&[][..], |(_, kept)| kept);
        if let Some((old, kept)) = old {
            let stays = |row: &usize| old.members.get(*row).copied().flatten();
            members.extend(kept.iter().map(stays));
            old_layers = old.layers;
        }
        members.extend(joining.iter().map(|(slot, _)| Some(*slot)));
        let count = joining
            .first()
            .map_or(old_layers.len(), |(_, cache)| cache.layers.len());
        let mut old_layers = old_layers.into_iter();
        let mut layers = Vec::with_capacity(count);
        for i in 0..count {
            let own = joining
                .iter_mut()
                .filter_map(|(_, cache)| cache.layers.get_mut(i))
                .collect();
            layers.push(BatchLayer::new(
                backend,
                format,
                old_layers.next(),
                kept,
                own,
            )?);
        }
        Ok(BatchCache {
            layers,
            masks: Masks::default(),
            members,
            asked: None,
        })
    }

    /// Sequences, those that left included.
    pub fn rows(&self) -> usize {
        self.members.len()
    }

    /// The row of a sequence.
    pub fn row(&self, slot: SlotId) -> Option<usize> {
        self.members.iter().position(|m| *m == Some(slot))
    }

    /// Forgets a sequence.
    pub fn leave(&mut self, slot: SlotId) {
        if let Some(member) = self.members.iter_mut().find(|m| **m == Some(slot)) {
            *member = None;
            self.asked = None;
        }
    }

    /// Copies a row into buffers of its sequence.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub fn give_back(
        &self,
        backend: &B,
        format: KvFormat,
        row: usize,
        cache: &mut SequenceCache<B>,
    ) -> Result<()> {
        for (layer, own) in self.layers.iter().zip(&mut cache.layers) {
            let (first, held) = (own.first, own.held);
            *own = LayerCache::new(layer.spec);
            own.first = first;
            if let (Some((keys, values)), true) = (&layer.keys_values, held > 0) {
                let view = |t: &Kept<B::Tensor>| layer.row(t, row, held);
                own.reserve(backend, held, format)?;
                own.append(backend, &view(keys)?, &view(values)?)?;
            }
        }
        // Now, so that the batch's buffers have one owner again and are written in place.
        backend.async_eval(&cache.tensors().collect::<Vec<_>>())
    }

    /// Appends `k`, `v` `[rows, kv_heads, head_dim]` and attends with `q [rows, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`Tensor::attention_each`].
    pub fn attend(
        &mut self,
        backend: &B,
        layer: usize,
        q: &B::Tensor,
        [k, v]: [&Kept<B::Tensor>; 2],
        scale: f32,
    ) -> Result<B::Tensor> {
        let limit = self.layers.len();
        let layer = self.layers.get_mut(layer).ok_or(Error::OutOfRange {
            op: "kv cache",
            index: layer,
            limit,
        })?;
        let ((keys, values), seen) = layer.append(backend, k, v)?;
        let mask = layer.mask(&mut self.masks, backend, q.dtype(), seen)?;
        keys.attention_each(q, &values, mask.as_ref(), scale)
    }

    /// Appends one token of every row, out of its projections, and attends:
    /// [`Tensor::decode_attention`].
    ///
    /// # Errors
    /// As there.
    pub fn decode(
        &mut self,
        backend: &B,
        layer: usize,
        kept: DType,
        qkv: &B::Tensor,
        mut with: Decode<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let limit = self.layers.len();
        let layer = self.layers.get_mut(layer).ok_or(Error::OutOfRange {
            op: "kv cache",
            index: layer,
            limit,
        })?;
        layer.reserve(backend, KvFormat::Plain(kept))?;
        let caches = plain(layer.keys_values.take()).ok_or_else(lost::<B>)?;
        with.end = layer.end;
        layer.end += 1;
        with.seen = layer.seen();
        let mask = layer.mask(&mut self.masks, backend, qkv.dtype(), with.seen)?;
        let with = Decode {
            mask: mask.as_ref(),
            ..with
        };
        let (y, caches) = qkv.decode_attention(caches, &with)?;
        layer.keys_values = Some((Kept::Plain(caches.0), Kept::Plain(caches.1)));
        Ok(y)
    }

    /// Notes in the sequences' caches, which are in the order of the rows, what the rows hold after
    /// their sequences have grown.
    pub fn note(&self, caches: &mut [SequenceCache<B>]) {
        for (row, cache) in caches.iter_mut().enumerate().take(self.rows()) {
            let len = cache.len();
            for (layer, own) in self.layers.iter().zip(&mut cache.layers) {
                own.before = layer.starts.get(row).copied().unwrap_or_default();
                own.held = layer.end - own.before;
                own.first = len.saturating_sub(own.held);
                own.capacity = layer.capacity;
            }
        }
    }

    /// The tensors a lazy backend must compute together with a step's output.
    pub fn tensors(&self) -> impl Iterator<Item = &B::Tensor> {
        self.layers
            .iter()
            .filter_map(|l| l.keys_values.as_ref())
            .flat_map(|(k, v)| k.parts().chain(v.parts()))
    }
}

impl<B: Backend> BatchLayer<B> {
    fn new(
        backend: &B,
        format: KvFormat,
        old: Option<Self>,
        kept: &[usize],
        joining: Vec<&mut LayerCache<B>>,
    ) -> Result<Self> {
        let spec = match (&old, joining.first()) {
            (Some(old), _) => old.spec,
            (None, Some(own)) => own.spec,
            (None, None) => return Err(lost::<B>()),
        };
        let held_of_old =
            |old: &Self, row: &usize| old.end - old.starts.get(*row).copied().unwrap_or(old.end);
        let mut held: Vec<usize> = Vec::new();
        if let Some(old) = &old {
            held.extend(kept.iter().map(|row| held_of_old(old, row)));
        }
        held.extend(joining.iter().map(|own| own.held));
        let end = held.iter().copied().max().unwrap_or_default();
        let capacity = spec.room(end);
        let zeros =
            |rows, len| Kept::zeros(backend, &[rows, spec.kv_heads, len], spec.head_dim, format);
        let padded = |view: Kept<B::Tensor>, rows: usize, len: usize| {
            let before = (end > len).then(|| zeros(rows, end - len)).transpose()?;
            let after = (capacity > end)
                .then(|| zeros(rows, capacity - end))
                .transpose()?;
            let view = (len > 0).then_some(&view);
            let parts = [before.as_ref(), view, after.as_ref()];
            Kept::concat(&parts.into_iter().flatten().collect::<Vec<_>>(), 2)
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        if let (Some(mut old), false) = (old, kept.is_empty()) {
            let longest = kept.iter().map(|row| held_of_old(&old, row)).max();
            let len = longest.unwrap_or_default();
            let Some((k, v)) = old.keys_values.take() else {
                return Err(lost::<B>());
            };
            let rows = |t: &Kept<B::Tensor>| {
                let part = match kept.len() == old.starts.len() {
                    true => t.clone(),
                    false => take_rows(backend, t, kept)?,
                };
                padded(part.narrow(2, old.end - len, len)?, kept.len(), len)
            };
            keys.push(rows(&k)?);
            values.push(rows(&v)?);
        }
        let join = |rows: Vec<Kept<B::Tensor>>| match rows.as_slice() {
            [one] => Ok(one.clone()),
            many => Kept::concat(&many.iter().collect::<Vec<_>>(), 0),
        };
        // Neighbours of one length, as prompts of one step often are, are padded together.
        let mut joining = joining;
        for alike in joining.chunk_by_mut(|a, b| a.held == b.held) {
            let (rows, held) = (alike.len(), alike.first().map_or(0, |own| own.held));
            let (mut ks, mut vs) = (Vec::new(), Vec::new());
            for own in alike {
                if let Some((k, v)) = own.take_view()? {
                    let row = [1, spec.kv_heads, held];
                    ks.push(k.reshape_leading(&row)?);
                    vs.push(v.reshape_leading(&row)?);
                }
            }
            for (views, all) in [(ks, &mut keys), (vs, &mut values)] {
                all.push(match views.len() == rows {
                    true => padded(join(views)?, rows, held)?,
                    // Nothing is held.
                    false => zeros(rows, capacity)?,
                });
            }
        }
        Ok(BatchLayer {
            spec,
            keys_values: Some((join(keys)?, join(values)?)),
            starts: held.iter().map(|held| end - held).collect(),
            end,
            capacity,
        })
    }

    /// The last `held` tokens of a row, `[kv_heads, held, head_dim]`.
    fn row(&self, t: &Kept<B::Tensor>, row: usize, held: usize) -> Result<Kept<B::Tensor>> {
        t.narrow(0, row, 1)?
            .narrow(2, self.end - held, held)?
            .reshape_leading(&[self.spec.kv_heads, held])
    }

    /// Makes room for one more token of every row, keeping what it sees.
    fn reserve(&mut self, backend: &B, format: KvFormat) -> Result<()> {
        if self.end < self.capacity {
            return Ok(());
        }
        let Some((keys, values)) = self.keys_values.take() else {
            return Err(lost::<B>());
        };
        let (keep, capacity) = self.spec.grown(self.end, self.capacity, 1);
        let CacheSpec {
            kv_heads, head_dim, ..
        } = self.spec;
        let leading = [self.starts.len(), kv_heads, capacity];
        let gone = self.end - keep;
        let moved = |old: Kept<B::Tensor>| {
            let new = Kept::zeros(backend, &leading, head_dim, format)?;
            new.write_slice(2, 0, &old.narrow(2, gone, keep)?)
        };
        self.keys_values = Some((moved(keys)?, moved(values)?));
        for start in &mut self.starts {
            *start = start.saturating_sub(gone);
        }
        self.end = keep;
        self.capacity = capacity;
        Ok(())
    }

    /// Where what the rows' last tokens see begins.
    fn seen(&self) -> usize {
        let window = self.spec.window;
        window.map_or(0, |window| self.end.saturating_sub(window))
    }

    /// What hides the columns from `seen` on that lie before a row's first token; none if none does.
    fn mask(
        &self,
        masks: &mut Masks<B::Tensor>,
        backend: &B,
        dtype: DType,
        seen: usize,
    ) -> Result<Option<B::Tensor>> {
        if self.starts.iter().all(|&start| start <= seen) {
            return Ok(None);
        }
        let whole = (self.starts.as_slice(), self.capacity);
        let columns = (seen, self.end - seen);
        masks.get(backend, dtype, whole, columns).map(Some)
    }

    /// Appends a token to every row; gives the keys and values that they see, and where these begin.
    fn append(
        &mut self,
        backend: &B,
        k: &Kept<B::Tensor>,
        v: &Kept<B::Tensor>,
    ) -> Result<(KeysValues<B::Tensor>, usize)> {
        self.reserve(backend, k.format())?;
        // The handles are moved out, so that a lazy backend may write in place.
        let Some((keys, values)) = self.keys_values.take() else {
            return Err(lost::<B>());
        };
        let new = [self.starts.len(), self.spec.kv_heads, 1];
        let keys = keys.write_slice(2, self.end, &k.reshape_leading(&new)?)?;
        let values = values.write_slice(2, self.end, &v.reshape_leading(&new)?)?;
        self.end += 1;
        let seen = self.seen();
        let views = (
            keys.narrow(2, seen, self.end - seen)?,
            values.narrow(2, seen, self.end - seen)?,
        );
        self.keys_values = Some((keys, values));
        Ok((views, seen))
    }
}

/// Some rows of `[rows, kv_heads, capacity, head_dim]`.
fn take_rows<B: Backend>(
    backend: &B,
    t: &Kept<B::Tensor>,
    rows: &[usize],
) -> Result<Kept<B::Tensor>> {
    let ids: Vec<u32> = rows.iter().map(|&row| row as u32).collect();
    t.take_first(&backend.from_u32s(&ids, [ids.len()])?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_of_unlike_length_stay_apart() {
        assert_eq!(alike(&[]), [0; 0]);
        assert_eq!(alike(&[5]), [0]);
        assert_eq!(alike(&[3, 38, 13]), [0, 1, 2]);
        assert_eq!(alike(&[600; 4]), [0, 1, 2, 3]);
        assert_eq!(alike(&[100, 32_000, 120, 90]), [0, 2, 3]);
        assert_eq!(alike(&[1000, 32_000, 900, 1100, 30_000]), [0, 2, 3]);
    }
}
