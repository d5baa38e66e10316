//! Keys and values of one sequence, kept on the device between steps.
//!
//! A layer with a sliding window keeps what its next tokens can see, and a little more: its memory
//! does not grow with the sequence. Tokens lie in order, the oldest first; when the buffer is full,
//! those that are still needed move to the front of a new one.

mod layer;

pub(crate) use layer::LayerCache;
use layer::reserve_each;

use biplane_backend::{
    AttentionMask, Backend, DType, Decode, Error, Kept, KvFormat, Result, Tensor,
};

/// Tokens by which a layer's cache grows: few enough to waste little, many enough to copy seldom.
pub(crate) const BLOCK: usize = 256;

/// Multiples of tokens for which a cache that rests has room.
const REST: usize = 32;

/// Tokens before the window that a layer keeps, so that the last few tokens can be taken back.
const ROLLBACK: usize = 64;

/// What one layer keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Key heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// The last tokens that a token sees, itself among them; `None` for all.
    pub window: Option<usize>,
}

impl CacheSpec {
    /// Bytes of one token's keys and values in a format.
    pub fn bytes_per_token(&self, format: KvFormat) -> usize {
        2 * self.kv_heads * format.row_bytes(self.head_dim)
    }

    /// Most bytes for a sequence of `tokens` that grows by at most `chunk` a step.
    pub fn bytes(&self, tokens: usize, chunk: usize, format: KvFormat) -> usize {
        let tokens = tokens + answer(chunk);
        let held = match self.kept() {
            Some(kept) => tokens.min(kept + chunk + slack(kept)),
            None => tokens,
        };
        held.next_multiple_of(BLOCK) * self.bytes_per_token(format)
    }

    /// What a token of this layer sees.
    pub(crate) fn mask(&self) -> AttentionMask {
        match self.window {
            Some(window) => AttentionMask::SlidingWindow(window),
            None => AttentionMask::Causal,
        }
    }

    /// Tokens that stay when a windowed layer's buffer is full.
    fn kept(&self) -> Option<usize> {
        self.window.map(|w| w.saturating_sub(1) + ROLLBACK)
    }

    /// Tokens kept of `held`, and room made, when `added` do not fit into `capacity` any more.
    pub(crate) fn grown(&self, held: usize, capacity: usize, added: usize) -> (usize, usize) {
        let (keep, capacity) = match self.kept() {
            Some(kept) if held > kept => (kept, kept + added + slack(kept)),
            // Half as much again, so that long generations copy a bounded number of times.
            _ => (
                held,
                (held + added + answer(added)).max(capacity + capacity / 2),
            ),
        };
        (keep, capacity.next_multiple_of(BLOCK))
    }

    /// Room for `held` tokens that are about to grow one by one.
    pub(crate) fn room(&self, held: usize) -> usize {
        let more = self.kept().map_or(held / 2, slack);
        (held + 1 + more).next_multiple_of(BLOCK)
    }

    /// The first position that the token at `len` sees.
    fn first_seen(&self, len: usize) -> usize {
        match self.window {
            Some(window) => (len + 1).saturating_sub(window),
            None => 0,
        }
    }
}

/// Room beside a prompt's tokens, so that an answer does not begin with a move of them all.
fn answer(added: usize) -> usize {
    match added {
        0 | 1 => 0,
        _ => 64,
    }
}

/// Tokens between two moves to the front, so that a token is moved a bounded number of times.
fn slack(kept: usize) -> usize {
    BLOCK.max(kept / 4)
}

/// Keys and values.
pub(crate) type KeysValues<T> = (Kept<T>, Kept<T>);

/// Keys and values that are kept as they are.
pub(crate) fn plain<T: Tensor>(kept: Option<KeysValues<T>>) -> Option<(T, T)> {
    match kept {
        Some((Kept::Plain(keys), Kept::Plain(values))) => Some((keys, values)),
        _ => None,
    }
}

/// What an earlier error has left without buffers.
pub(crate) fn lost<B: Backend>() -> Error {
    Error::Backend {
        backend: B::NAME,
        op: "kv cache",
        message: "lost in an earlier error".into(),
    }
}

/// The caches of all layers for one sequence.
#[derive(Debug)]
pub struct SequenceCache<B: Backend> {
    pub(crate) layers: Vec<LayerCache<B>>,
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

    /// What layer `layer` keeps.
    ///
    /// # Errors
    /// [`biplane_backend::Error::OutOfRange`] for a layer that does not exist.
    pub(crate) fn spec(&self, layer: usize) -> Result<CacheSpec> {
        self.layers
            .get(layer)
            .map(|l| l.spec)
            .ok_or_else(|| self.no_layer(layer))
    }

    fn no_layer(&self, layer: usize) -> biplane_backend::Error {
        biplane_backend::Error::OutOfRange {
            op: "kv cache",
            index: layer,
            limit: self.layers.len(),
        }
    }

    /// Makes room in all layers for a step's `added` tokens.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub(crate) fn reserve(&mut self, backend: &B, added: usize, format: KvFormat) -> Result<()> {
        if self.layers.iter().all(|l| l.grown(added).is_none()) {
            return Ok(());
        }
        let each = vec![added; self.layers.len()];
        reserve_each(&mut self.layers, backend, &each, format)
    }

    /// Appends keys and values `[kv_heads, tokens, head_dim]` of one layer; gives views of those that
    /// the new tokens see, `[kv_heads, seen, head_dim]`, the new ones last. The sequence's length
    /// changes with [`Self::advance`].
    pub(crate) fn append(
        &mut self,
        backend: &B,
        layer: usize,
        k: &Kept<B::Tensor>,
        v: &Kept<B::Tensor>,
    ) -> Result<KeysValues<B::Tensor>> {
        let error = self.no_layer(layer);
        self.layers
            .get_mut(layer)
            .ok_or(error)?
            .append(backend, k, v)
    }

    /// Appends one token's key and value of one layer, out of its projections, and attends.
    pub(crate) fn decode(
        &mut self,
        backend: &B,
        layer: usize,
        dtype: DType,
        qkv: &B::Tensor,
        with: Decode<'_, B::Tensor>,
    ) -> Result<B::Tensor> {
        let error = self.no_layer(layer);
        self.layers
            .get_mut(layer)
            .ok_or(error)?
            .decode(backend, dtype, qkv, with)
    }

    /// A step went through: all layers hold `tokens` more.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
    }

    /// Whether the sequence can be cut after `len` tokens: not where a sliding window has already
    /// dropped what the next token would see.
    pub fn can_go_back_to(&self, len: usize) -> bool {
        len >= self.len || self.layers.iter().all(|l| l.can_go_back_to(len))
    }

    /// Forgets all but the first `len` tokens; the caller has asked [`Self::can_go_back_to`].
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            layer.held = layer.held.min(self.len.saturating_sub(layer.first));
        }
    }

    /// Gives back most of the room for tokens to come.
    ///
    /// # Errors
    /// Only what the backend reports; what is held stays.
    pub(crate) fn shrink(&mut self, backend: &B, format: KvFormat) -> Result<()> {
        let mut shrunk = false;
        for layer in &mut self.layers {
            shrunk |= layer.shrink(backend, format)?;
        }
        match shrunk {
            // Now, so that the old buffers are freed.
            true => backend.async_eval(&self.tensors().collect::<Vec<_>>()),
            false => Ok(()),
        }
    }

    /// An independent copy of the first `len` tokens; the caller has asked [`Self::can_go_back_to`].
    ///
    /// # Errors
    /// Only what the backend reports.
    pub(crate) fn fork(&self, backend: &B, len: usize, format: KvFormat) -> Result<Self> {
        let len = len.min(self.len);
        let kept = |layer: &LayerCache<B>| match layer.keys_values {
            Some(_) => {
                let held = len.saturating_sub(layer.first);
                layer.spec.kept().map_or(held, |kept| held.min(kept))
            }
            None => 0,
        };
        let kept: Vec<usize> = self.layers.iter().map(kept).collect();
        let mut copy = SequenceCache {
            layers: self
                .layers
                .iter()
                .map(|l| LayerCache::new(l.spec))
                .collect(),
            len,
        };
        reserve_each(&mut copy.layers, backend, &kept, format)?;
        for ((layer, new), keep) in self.layers.iter().zip(&mut copy.layers).zip(kept) {
            if let (Some((k, v)), true) = (&layer.keys_values, keep > 0) {
                let start = len - layer.first - keep;
                new.first = layer.first + start;
                new.append(
                    backend,
                    &k.narrow(1, start, keep)?,
                    &v.narrow(1, start, keep)?,
                )?;
            }
        }
        Ok(copy)
    }

    /// Bytes held once `added` tokens are added in one step.
    pub(crate) fn bytes(&self, added: usize, format: KvFormat) -> usize {
        self.layers
            .iter()
            .map(|l| l.capacity_with(added) * l.spec.bytes_per_token(format))
            .sum()
    }

    /// All layers' tokens as host bytes: the format's name and a zero; for each layer its first position
    /// and number of tokens (`u64`), then keys and values `[kv_heads, tokens, head_dim]`.
    pub(crate) fn export(&self, format: KvFormat) -> Result<Vec<u8>> {
        let mut bytes = format!("{format}\0").into_bytes();
        for layer in &self.layers {
            bytes.extend((layer.first as u64).to_le_bytes());
            bytes.extend((layer.held as u64).to_le_bytes());
            if let (Some((k, v)), true) = (&layer.keys_values, layer.held > 0) {
                bytes.extend(k.narrow(1, 0, layer.held)?.to_bytes()?);
                bytes.extend(v.narrow(1, 0, layer.held)?.to_bytes()?);
            }
        }
        Ok(bytes)
    }

    /// The sequence of `len` tokens that [`Self::export`] wrote.
    ///
    /// # Errors
    /// [`crate::Error::Request`] for bytes that are no such sequence, or the backend's.
    pub(crate) fn import(
        backend: &B,
        specs: &[CacheSpec],
        bytes: &[u8],
        len: usize,
        format: KvFormat,
    ) -> crate::Result<Self> {
        let wrong = |what: &str| crate::Error::Request(format!("a stored KV cache {what}"));
        let Some(mut bytes) = bytes.strip_prefix(format!("{format}\0").as_bytes()) else {
            return Err(wrong(&format!("is not kept as {format}")));
        };
        let mut cache = Self::new(specs);
        cache.len = len;
        for layer in &mut cache.layers {
            let mut number = || {
                let (head, rest) = bytes.split_first_chunk::<8>()?;
                bytes = rest;
                usize::try_from(u64::from_le_bytes(*head)).ok()
            };
            let (first, held) = number().zip(number()).ok_or_else(|| wrong("is cut off"))?;
            if first.checked_add(held) != Some(len) || first > layer.spec.first_seen(len) {
                return Err(wrong("lacks tokens"));
            }
            layer.first = first;
            let size = held.saturating_mul(layer.spec.bytes_per_token(format) / 2);
            let mut tensor = || -> crate::Result<Kept<B::Tensor>> {
                let (part, rest) = bytes
                    .split_at_checked(size)
                    .ok_or_else(|| wrong("is cut off"))?;
                bytes = rest;
                let CacheSpec {
                    kv_heads, head_dim, ..
                } = layer.spec;
                let leading = [kv_heads, held];
                Ok(Kept::from_bytes(backend, part, &leading, head_dim, format)?)
            };
            let (k, v) = (tensor()?, tensor()?);
            if held > 0 {
                layer.append(backend, &k, &v)?;
            }
        }
        match bytes {
            [] => Ok(cache),
            _ => Err(wrong("is too long")),
        }
    }

    /// The tensors a lazy backend must compute together with a step's output.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = &B::Tensor> {
        self.layers
            .iter()
            .filter_map(|l| l.keys_values.as_ref())
            .flat_map(|(k, v)| k.parts().chain(v.parts()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const F16: KvFormat = KvFormat::Plain(DType::F16);

    #[test]
    fn a_prompt_has_room_for_an_answer_that_its_bytes_count() {
        for window in [None, Some(512)] {
            let spec = CacheSpec {
                kv_heads: 3,
                head_dim: 64,
                window,
            };
            for prompt in [2, 200, 256, 500, 512, 1024, 3000] {
                let (keep, capacity) = spec.grown(0, 0, prompt);
                assert_eq!(keep, 0);
                assert!(capacity >= prompt + 64, "{prompt} tokens: {capacity}");
                let bytes = capacity * spec.bytes_per_token(F16);
                let promised = spec.bytes(prompt, prompt, F16);
                assert!(bytes <= promised, "{prompt} tokens: {bytes} of {promised}");
            }
            // A token alone needs no more than its block.
            assert_eq!(spec.grown(0, 0, 1), (0, BLOCK));
        }
    }
}
