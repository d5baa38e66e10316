//! One layer's keys and values of one sequence.

use std::slice;

use biplane_backend::{Backend, DType, Decode, Kept, KvFormat, Result, Tensor};

use super::{CacheSpec, KeysValues, REST, lost, plain};

/// One layer's keys and values, each `[kv_heads, capacity, head_dim]`.
#[derive(Debug)]
pub(crate) struct LayerCache<B: Backend> {
    pub spec: CacheSpec,
    /// None where nothing is held, or where a [`crate::kv_batch::BatchCache`] holds it.
    pub(super) keys_values: Option<KeysValues<B::Tensor>>,
    /// Position of the oldest token held.
    pub first: usize,
    /// Tokens held.
    pub held: usize,
    /// Room before the oldest token: in a batch only.
    pub before: usize,
    pub capacity: usize,
}

impl<B: Backend> LayerCache<B> {
    pub fn new(spec: CacheSpec) -> Self {
        LayerCache {
            spec,
            keys_values: None,
            first: 0,
            held: 0,
            before: 0,
            capacity: 0,
        }
    }

    /// Tokens there is room for once `added` are added.
    pub(super) fn capacity_with(&self, added: usize) -> usize {
        let used = self.before + self.held;
        match used + added <= self.capacity {
            true => self.capacity,
            false => self.spec.grown(used, self.capacity, added).1,
        }
    }

    /// The keys and values of all tokens held, taken out of here.
    pub fn take_view(&mut self) -> Result<Option<KeysValues<B::Tensor>>> {
        match self.keys_values.take() {
            Some((k, v)) if self.held > 0 => {
                let held = |t: Kept<B::Tensor>| t.narrow(1, 0, self.held);
                Ok(Some((held(k)?, held(v)?)))
            }
            _ => Ok(None),
        }
    }

    /// Tokens kept and room made when `added` do not fit any more.
    pub(super) fn grown(&self, added: usize) -> Option<(usize, usize)> {
        let full = self.held + added > self.capacity;
        full.then(|| self.spec.grown(self.held, self.capacity, added))
    }

    /// Makes room for `added` tokens, keeping what they see.
    pub fn reserve(&mut self, backend: &B, added: usize, format: KvFormat) -> Result<()> {
        reserve_each(slice::from_mut(self), backend, &[added], format)
    }

    /// Moves the last `keep` tokens into new buffers of zeros. After an error all is as before.
    fn move_to(
        &mut self,
        (mut keys, mut values): KeysValues<B::Tensor>,
        (keep, capacity): (usize, usize),
    ) -> Result<()> {
        let start = self.held - keep;
        if let (Some((k, v)), true) = (&self.keys_values, keep > 0) {
            keys = keys.write_slice(1, 0, &k.narrow(1, start, keep)?)?;
            values = values.write_slice(1, 0, &v.narrow(1, start, keep)?)?;
        }
        self.keys_values = Some((keys, values));
        self.first += start;
        self.held = keep;
        self.capacity = capacity;
        Ok(())
    }

    /// Appends tokens; gives the keys and values that they see.
    pub fn append(
        &mut self,
        backend: &B,
        k: &Kept<B::Tensor>,
        v: &Kept<B::Tensor>,
    ) -> Result<KeysValues<B::Tensor>> {
        let added = k.dim(1)?;
        self.reserve(backend, added, k.format())?;
        // The handles are moved out, so that a lazy backend may write in place.
        let (keys, values) = self.keys_values.take().ok_or_else(lost::<B>)?;
        let keys = keys.write_slice(1, self.held, k)?;
        let values = values.write_slice(1, self.held, v)?;
        let seen = self
            .spec
            .first_seen(self.first + self.held)
            .saturating_sub(self.first);
        self.held += added;
        let views = (
            keys.narrow(1, seen, self.held - seen)?,
            values.narrow(1, seen, self.held - seen)?,
        );
        self.keys_values = Some((keys, values));
        Ok(views)
    }

    /// Appends one token and attends: [`Tensor::decode_attention`].
    pub(super) fn decode(
        &mut self,
        backend: &B,
        dtype: DType,
        qkv: &B::Tensor,
        mut with: Decode<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        self.reserve(backend, 1, KvFormat::Plain(dtype))?;
        let caches = plain(self.keys_values.take()).ok_or_else(lost::<B>)?;
        let seen = self.spec.first_seen(self.first + self.held);
        with.seen = seen.saturating_sub(self.first);
        with.end = self.held;
        let (y, caches) = qkv.decode_attention(caches, &with)?;
        self.held += 1;
        self.keys_values = Some((Kept::Plain(caches.0), Kept::Plain(caches.1)));
        Ok(y)
    }

    /// Gives back room for tokens to come, where that is more than what is copied for it; whether it did.
    pub(super) fn shrink(&mut self, backend: &B, format: KvFormat) -> Result<bool> {
        let room = self.held.next_multiple_of(REST);
        if self.keys_values.is_none() || self.capacity <= 2 * room {
            return Ok(false);
        }
        let CacheSpec {
            kv_heads, head_dim, ..
        } = self.spec;
        let zeros = || Kept::zeros(backend, &[kv_heads, room], head_dim, format);
        self.move_to((zeros()?, zeros()?), (self.held, room))?;
        Ok(true)
    }

    /// Whether everything is here that the token at `len` sees.
    pub(super) fn can_go_back_to(&self, len: usize) -> bool {
        self.first <= self.spec.first_seen(len)
    }
}

/// Makes room in layers for so many tokens each, in as few pieces of memory as is good for reading them.
pub(super) fn reserve_each<B: Backend>(
    layers: &mut [LayerCache<B>],
    backend: &B,
    added: &[usize],
    format: KvFormat,
) -> Result<()> {
    /// Bytes of the buffers that are made at once: little beside what long sequences keep, as both old and
    /// new ones are there until all have been moved.
    const AT_ONCE: usize = 8 << 20;
    let mut growing: Vec<_> = (layers.iter_mut().zip(added))
        .filter_map(|(layer, &added)| Some((layer.grown(added)?, layer)))
        .collect();
    let leading = |((_, capacity), layer): &((usize, usize), &mut LayerCache<B>)| {
        (layer.spec.kv_heads, *capacity, layer.spec.head_dim)
    };
    for alike in growing.chunk_by_mut(|a, b| leading(a) == leading(b)) {
        let Some(((_, capacity), first)) = alike.first() else {
            continue;
        };
        let CacheSpec {
            kv_heads, head_dim, ..
        } = first.spec;
        let (capacity, token) = (*capacity, first.spec.bytes_per_token(format));
        let at_once = AT_ONCE / token.saturating_mul(capacity).max(1);
        for some in alike.chunks_mut(at_once.max(1)) {
            let leading = [kv_heads, capacity];
            let new = Kept::zeros_each(backend, 2 * some.len(), &leading, head_dim, format)?;
            let mut new = new.into_iter();
            for (grown, layer) in some {
                let pair = new.next().zip(new.next()).ok_or_else(lost::<B>)?;
                layer.move_to(pair, *grown)?;
            }
        }
    }
    Ok(())
}
