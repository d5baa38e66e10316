//! One forward pass over the tokens of many sequences.
//!
//! All tokens of a step are rows of one matrix `[tokens, hidden]` through the linear layers; only
//! attention looks at sequences, each over its own cache. Prefill chunks and decode tokens share a
//! step.

use std::cell::RefCell;

use biplane_backend::{Backend, DType, Decode, Kept, KvFormat, Result, RopeAngles, Tensor};

use crate::{
    angles::AngleBlocks,
    kv_batch::BatchCache,
    kv_cache::SequenceCache,
    layers::{Projected, RmsNorm},
};

/// One sequence's rows in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    /// Index into the step's caches.
    pub cache: usize,
    /// First row.
    pub start: usize,
    /// Number of rows.
    pub len: usize,
}

/// How a layer makes heads of its projections.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a, B: Backend> {
    /// Query heads.
    pub heads: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Norms of query and of key heads, of one epsilon.
    pub norms: Option<&'a [RmsNorm<B>; 2]>,
    /// This step's angles.
    pub rope: &'a RopeAngles<B::Tensor>,
    /// A factor of the scores.
    pub scale: f32,
}

/// The context of one forward pass, handed down through a model.
pub struct Step<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) dtype: DType,
    pub(crate) kv_format: KvFormat,
    pub(crate) ids: B::Tensor,
    pub(crate) positions: Vec<u32>,
    pub(crate) angles: &'a RefCell<AngleBlocks<B>>,
    /// Sequences with a cache of their own.
    pub(crate) spans: Vec<Span>,
    /// Sequences that decode together: a row each, the step's first.
    pub(crate) batch: Option<BatchCache<B>>,
    pub(crate) caches: Vec<SequenceCache<B>>,
    /// Whether a lazy backend computes each layer before the next is described.
    pub(crate) eager: bool,
}

impl<B: Backend> Step<'_, B> {
    /// Token ids, `U32 [tokens]`.
    pub fn ids(&self) -> &B::Tensor {
        &self.ids
    }

    /// The element type activations have.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows of this step.
    pub fn num_tokens(&self) -> usize {
        self.positions.len()
    }

    /// RoPE angles of this step's tokens.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub fn rope(&self, inv_freqs: &[f32], interleaved: bool) -> Result<RopeAngles<B::Tensor>> {
        self.angles
            .borrow_mut()
            .angles(self.backend, &self.positions, inv_freqs, interleaved)
    }

    /// Norms and turns heads, and attends as [`Step::attend`] does. `qkv` are the projections of this
    /// step's tokens. Gives `[tokens, heads · head_dim]`.
    ///
    /// # Errors
    /// As [`Tensor::decode_attention`].
    pub fn attend_projected(
        &mut self,
        layer: usize,
        qkv: Projected<B, 3>,
        h: &Heads<'_, B>,
    ) -> Result<B::Tensor> {
        if let (Some(qkv), Some(kept)) = (qkv.whole(), self.only_decodes()) {
            return self.decode(layer, kept, qkv, h);
        }
        let (n, d) = (self.num_tokens(), h.head_dim);
        let [mut q, mut k, v] = qkv.heads([h.heads, h.kv_heads, h.kv_heads], d)?;
        if let Some([q_norm, k_norm]) = h.norms {
            (q, k) = (q_norm.forward(&q)?, k_norm.forward(&k)?);
        }
        self.attend(layer, &q.rope(h.rope)?, &k.rope(h.rope)?, &v, h.scale)?
            .reshape([n, h.heads * d])
    }

    /// What keys and values are kept as where they are not quantized and this step is one token of one
    /// sequence, or of those of the batch and no other.
    fn only_decodes(&self) -> Option<DType> {
        let all = match self.batch {
            Some(_) => self.spans.is_empty(),
            None => self.spans.len() == 1 && self.num_tokens() == 1,
        };
        match self.kv_format {
            KvFormat::Plain(kept) if all => Some(kept),
            _ => None,
        }
    }

    fn decode(
        &mut self,
        layer: usize,
        kept: DType,
        qkv: &B::Tensor,
        h: &Heads<'_, B>,
    ) -> Result<B::Tensor> {
        let with = Decode {
            norms: h.norms.map(|[q, k]| ([&q.weight, &k.weight], q.eps)),
            rope: h.rope,
            seen: 0,
            end: 0,
            mask: None,
            scale: h.scale,
        };
        match (&mut self.batch, self.spans.first()) {
            (Some(batch), _) => batch.decode(self.backend, layer, kept, qkv, with),
            (None, Some(span)) => {
                self.caches[span.cache].decode(self.backend, layer, kept, qkv, with)
            }
            (None, None) => Err(biplane_backend::Error::OutOfRange {
                op: "decode",
                index: 0,
                limit: 0,
            }),
        }
    }

    /// Appends `k`, `v` `[tokens, kv_heads, head_dim]` to the sequences' caches and attends with
    /// `q [tokens, heads, head_dim]`, each sequence to itself and as far back as the layer's
    /// [`crate::CacheSpec`] says. Gives `[tokens, heads, head_dim]`.
    ///
    /// # Errors
    /// As [`Tensor::attention`].
    pub fn attend(
        &mut self,
        layer: usize,
        q: &B::Tensor,
        k: &B::Tensor,
        v: &B::Tensor,
        scale: f32,
    ) -> Result<B::Tensor> {
        let kept = |t: &B::Tensor| Kept::of(t, self.kv_format);
        let (k, v) = (&kept(k)?, &kept(v)?);
        let together = match &mut self.batch {
            Some(batch) => {
                let rows = batch.rows();
                let q = q.narrow(0, 0, rows)?;
                let (k, v) = (k.narrow(0, 0, rows)?, v.narrow(0, 0, rows)?);
                Some(batch.attend(self.backend, layer, &q, [&k, &v], scale)?)
            }
            None => None,
        };
        match (together, self.spans.is_empty()) {
            (Some(together), true) => Ok(together),
            (None, _) => self.attend_alone(layer, q, [k, v], scale),
            (Some(together), false) => {
                let alone = self.attend_alone(layer, q, [k, v], scale)?;
                B::Tensor::concat(&[&together, &alone], 0)
            }
        }
    }

    /// The spans with a cache of their own, one after the other.
    fn attend_alone(
        &mut self,
        layer: usize,
        q: &B::Tensor,
        [k, v]: [&Kept<B::Tensor>; 2],
        scale: f32,
    ) -> Result<B::Tensor> {
        let (q, k, v) = (q.swap_axes(0, 1)?, k.swap_axes(0, 1)?, v.swap_axes(0, 1)?);
        let rows = self.num_tokens();
        let mut parts = Vec::with_capacity(self.spans.len());
        for span in &self.spans {
            let all = span.len == rows;
            let part = |t: &Kept<B::Tensor>| match all {
                true => Ok(t.clone()),
                false => t.narrow(1, span.start, span.len),
            };
            let q = match all {
                true => q.clone(),
                false => q.narrow(1, span.start, span.len)?,
            };
            let cache = &mut self.caches[span.cache];
            let mask = cache.spec(layer)?.mask();
            let (keys, values) = cache.append(self.backend, layer, &part(&k)?, &part(&v)?)?;
            parts.push(keys.attention(&q, &values, mask, scale)?);
        }
        match parts.as_slice() {
            [one] => one.swap_axes(0, 1),
            many => B::Tensor::concat(&many.iter().collect::<Vec<_>>(), 1)?.swap_axes(0, 1),
        }
    }

    /// A layer is described, `x` its output: the place where a backend that is told not to be lazy
    /// computes.
    ///
    /// # Errors
    /// Whatever the layer's operations fail with.
    pub fn layer_done(&self, x: &B::Tensor) -> Result<()> {
        if self.eager {
            self.backend.eval(&[x])?;
        }
        Ok(())
    }
}
