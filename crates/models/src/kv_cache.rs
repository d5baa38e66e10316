//! Keys and values of one sequence, kept on the device between steps.

use biplane_backend::{Backend, DType, Result, Tensor};

/// Tokens by which a layer's cache grows: few enough to waste little, many enough to copy seldom.
const BLOCK: usize = 256;

/// What one layer keeps for every token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Key heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
}

impl CacheSpec {
    /// Bytes of one token's keys and values in elements of `dtype`.
    pub fn bytes_per_token(&self, dtype: DType) -> usize {
        2 * self.kv_heads * self.head_dim * dtype.size()
    }
}

/// One layer's keys and values, each `[kv_heads, capacity, head_dim]`.
#[derive(Debug)]
struct LayerCache<B: Backend> {
    spec: CacheSpec,
    keys_values: Option<(B::Tensor, B::Tensor)>,
    len: usize,
    capacity: usize,
}

impl<B: Backend> LayerCache<B> {
    fn new(spec: CacheSpec) -> Self {
        LayerCache {
            spec,
            keys_values: None,
            len: 0,
            capacity: 0,
        }
    }

    /// Makes room for `total` tokens, keeping what is there.
    fn reserve(&mut self, backend: &B, total: usize, dtype: DType) -> Result<()> {
        if total <= self.capacity {
            return Ok(());
        }
        let CacheSpec { kv_heads, head_dim } = self.spec;
        // Half as much again, so that long generations copy a bounded number of times.
        let capacity = total
            .max(self.capacity + self.capacity / 2)
            .next_multiple_of(BLOCK);
        let grow = |old: Option<&B::Tensor>| {
            let new = backend.zeros([kv_heads, capacity, head_dim], dtype)?;
            match old {
                Some(old) if self.len > 0 => new.write_slice(1, 0, &old.narrow(1, 0, self.len)?),
                _ => Ok(new),
            }
        };
        let old = self.keys_values.take();
        let keys = grow(old.as_ref().map(|(k, _)| k))?;
        let values = grow(old.as_ref().map(|(_, v)| v))?;
        self.keys_values = Some((keys, values));
        self.capacity = capacity;
        Ok(())
    }

    fn append(
        &mut self,
        backend: &B,
        k: &B::Tensor,
        v: &B::Tensor,
    ) -> Result<(B::Tensor, B::Tensor)> {
        let added = k.shape().dim("kv cache", 1)?;
        let total = self.len + added;
        self.reserve(backend, total, k.dtype())?;
        // The handles are moved out, so that a lazy backend may write in place.
        let Some((keys, values)) = self.keys_values.take() else {
            return Err(biplane_backend::Error::Backend {
                backend: B::NAME,
                op: "kv cache",
                message: "lost in an earlier error".into(),
            });
        };
        let keys = keys.write_slice(1, self.len, k)?;
        let values = values.write_slice(1, self.len, v)?;
        let seen = (keys.narrow(1, 0, total)?, values.narrow(1, 0, total)?);
        self.keys_values = Some((keys, values));
        self.len = total;
        Ok(seen)
    }
}

/// The caches of all layers for one sequence.
#[derive(Debug)]
pub struct SequenceCache<B: Backend> {
    layers: Vec<LayerCache<B>>,
    len: usize,
}

impl<B: Backend> SequenceCache<B> {
    /// An empty sequence.
    pub fn new(specs: &[CacheSpec]) -> Self {
        SequenceCache {
            layers: specs.iter().copied().map(LayerCache::new).collect(),
            len: 0,
        }
    }

    /// Tokens the sequence holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Appends keys and values `[kv_heads, tokens, head_dim]` of one layer; gives all so far, as
    /// views `[kv_heads, len, head_dim]`. The sequence's length changes with [`Self::advance`].
    pub(crate) fn append(
        &mut self,
        backend: &B,
        layer: usize,
        k: &B::Tensor,
        v: &B::Tensor,
    ) -> Result<(B::Tensor, B::Tensor)> {
        let layers = self.layers.len();
        self.layers
            .get_mut(layer)
            .ok_or(biplane_backend::Error::OutOfRange {
                op: "kv cache",
                index: layer,
                limit: layers,
            })?
            .append(backend, k, v)
    }

    /// A step went through: all layers hold `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            layer.len = layer.len.min(self.len);
        }
    }

    /// An independent copy of the first `len` tokens.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub fn fork(&self, backend: &B, len: usize, dtype: DType) -> Result<Self> {
        let len = len.min(self.len);
        let mut copy = SequenceCache {
            layers: Vec::with_capacity(self.layers.len()),
            len,
        };
        for layer in &self.layers {
            let mut new = LayerCache::new(layer.spec);
            if let (Some((k, v)), true) = (&layer.keys_values, len > 0) {
                new.reserve(backend, len, dtype)?;
                new.append(backend, &k.narrow(1, 0, len)?, &v.narrow(1, 0, len)?)?;
            }
            copy.layers.push(new);
        }
        Ok(copy)
    }

    /// The tensors a lazy backend must compute together with a step's output.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &B::Tensor> {
        self.layers
            .iter()
            .filter_map(|l| l.keys_values.as_ref())
            .flat_map(|(k, v)| [k, v])
    }
}
