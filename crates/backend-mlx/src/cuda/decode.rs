//! A token's attention, from its projections on, as one kernel.

use biplane_backend::defaults::DecodeDims;
use biplane_backend::{DType, Decode, Device, Tensor};
use mlx_rs::ops::broadcast_to;
use mlx_rs::{Array, Dtype};

use super::kernel::{Config, Kernel, Source};
use super::{Kernels, Launch, MOST_BLOCKS, Result, is_half, name, with};
use crate::MlxTensor;

/// Blocks that keep a GPU busy; more only have to be joined.
const BLOCKS: usize = 264;

/// Places that are remembered: as many as models have kinds of layers.
const KINDS: usize = 4;

/// What the kernel is launched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dtype: Dtype,
    rows: usize,
    heads: usize,
    kv_heads: usize,
    d: usize,
    rank: usize,
    freqs: usize,
    interleaved: bool,
    /// Type of its weights, and epsilon's bits.
    norm: Option<(Dtype, u32)>,
    scale: u32,
    masked: bool,
    parts: usize,
}

/// `[rows, heads · d]`, and the caches written in place; none where the kernel does not do these.
pub(crate) fn decode_attention(
    qkv: &MlxTensor,
    (keys, values): (&MlxTensor, &MlxTensor),
    step: &Decode<'_, MlxTensor>,
    n: DecodeDims,
) -> Option<Result<Array>> {
    let dtype = qkv.array().dtype();
    let group = n.heads / n.kv_heads;
    let norm_type = |([q, k], eps): ([&MlxTensor; 2], f32)| {
        (q.dtype() == k.dtype() && q.dtype().is_float()).then(|| (q.array().dtype(), eps.to_bits()))
    };
    let norm = match step.norms {
        Some(norms) => Some(norm_type(norms)?),
        None => None,
    };
    let freqs = step.rope.rotary_dim() / 2;
    let fits = matches!(qkv.device(), Device::Cuda(_))
        && is_half(dtype)
        && n.rows.max(n.kv_heads) <= MOST_BLOCKS
        && matches!(n.head_dim, 64 | 128 | 256)
        && group <= 8
        && group * n.head_dim <= 1024
        && 2 * freqs <= n.head_dim
        && step.rope.cos.dtype() == DType::F32
        && step.rope.cos.shape().numel() == n.rows * freqs
        && step.mask.is_none_or(|m| m.array().dtype() == dtype);
    if !fits {
        return None;
    }
    // A block goes over 64 keys at once, or as many of their elements. Few parts are joined sooner.
    let old = step.end - step.seen;
    let rounds = (old * n.head_dim).div_ceil(64 * 128);
    let most = (BLOCKS / (n.rows * n.kv_heads)).max(1);
    let key = Key {
        dtype,
        rows: n.rows,
        heads: n.heads,
        kv_heads: n.kv_heads,
        d: n.head_dim,
        rank: keys.shape().rank(),
        freqs,
        interleaved: step.rope.interleaved,
        norm,
        scale: step.scale.to_bits(),
        masked: step.mask.is_some(),
        parts: rounds.min((rounds / 4).max(8)).clamp(1, most),
    };
    Some(apply(
        &key,
        qkv.array(),
        [keys.array(), values.array()],
        step,
    ))
}

fn apply(
    key: &Key,
    qkv: &Array,
    [keys, values]: [&Array; 2],
    step: &Decode<'_, MlxTensor>,
) -> Result<Array> {
    let place = [step.seen, step.end];
    with(|kernels| {
        let at = kernels.place(place)?;
        let counts = kernels.zeros(key.rows * key.kv_heads);
        let (cos, sin) = (step.rope.cos.array(), step.rope.sin.array());
        let mut inputs = vec![qkv, keys, values, cos, sin, &at, &counts];
        let norms = step.norms.map(|(norms, _)| norms);
        inputs.extend(norms.iter().flatten().map(|norm| norm.array()));
        inputs.extend(step.mask.map(MlxTensor::array));
        let launch = match kernels.decodes.get(key) {
            Some(launch) => launch,
            None => kernels.decodes.entry(*key).or_insert(key.launch()?),
        };
        let [out, _] = launch.kernel.apply(&launch.config, &inputs)?;
        Ok(out)
    })
}

impl Kernels {
    /// A zero for each of so many groups of blocks.
    fn zeros(&mut self, needed: usize) -> Array {
        match &self.counts {
            Some((n, counts)) if *n >= needed => counts.clone(),
            _ => {
                let n = needed.next_power_of_two().max(64);
                let zeros = i32::try_from(n).unwrap_or(i32::MAX);
                let counts = Array::from_slice(&vec![0u32; n], &[zeros]);
                self.counts.insert((n, counts)).1.clone()
            }
        }
    }

    /// Where a step's keys begin and end, as the shape of an array of one element: numbers that the host
    /// writes come to a GPU a page at a time.
    fn place(&mut self, place: [usize; 2]) -> Result<Array> {
        if let Some((_, at)) = self.places.iter().find(|(known, _)| *known == place) {
            return Ok(at.clone());
        }
        if self.places.len() >= KINDS {
            self.places.remove(0);
        }
        let one = self
            .one
            .get_or_insert_with(|| Array::from_slice(&[0i32], &[1]));
        let shape = place.map(|at| i32::try_from(at + 1).unwrap_or(i32::MAX));
        let at = broadcast_to(&*one, &shape)?;
        self.places.push((place, at.clone()));
        Ok(at)
    }
}

impl Key {
    fn launch(&self) -> Result<Launch> {
        let Key {
            rows,
            heads,
            kv_heads,
            d,
            parts,
            ..
        } = *self;
        let threads = 256;
        let config = Config::new([parts * threads, kv_heads, rows], [threads, 1, 1])?
            .output(&[rows, heads * d], self.dtype)?;
        let scratch = match parts {
            1 => 1,
            _ => rows * heads * parts * (d + 2),
        };
        Ok(Launch {
            kernel: Kernel::new(self.source())?,
            config: config.output(&[scratch], Dtype::Float32)?,
        })
    }

    fn source(&self) -> Source {
        let Key {
            kv_heads,
            d,
            rank,
            freqs,
            interleaved,
            masked,
            ..
        } = *self;
        let t = name(self.dtype);
        let group = self.heads / kv_heads;
        let (norm, nw, eps) = match self.norm {
            Some((dtype, eps)) => (true, name(dtype), f32::from_bits(eps)),
            None => (false, t, 0.0),
        };
        let scale = f32::from_bits(self.scale);
        let mut constants = format!(
            "using T = {t}; using NW = {nw}; constexpr int D = {d}; constexpr int G = {group}; \
             constexpr int KV = {kv_heads}; constexpr int RANK = {rank}; constexpr int FREQS = {freqs}; \
             constexpr bool NORM = {norm}; constexpr bool MASKED = {masked}; \
             constexpr bool INTERLEAVED = {interleaved}; constexpr float EPS = {eps:e}f; \
             constexpr float SCALE = {scale:e}f;\n"
        );
        // An input costs time at every call: those that are not there are null in the source.
        let mut inputs = vec![
            (c"qkv", t),
            (c"k", t),
            (c"v", t),
            (c"cos", "float"),
            (c"sin", "float"),
            (c"at", "int32_t"),
            (c"counts", "uint32_t"),
        ];
        match norm {
            true => inputs.extend([(c"q_norm", nw), (c"k_norm", nw)]),
            false => constants += "const NW* q_norm = nullptr; const NW* k_norm = nullptr;\n",
        }
        match masked {
            true => inputs.push((c"mask", t)),
            false => constants += "const T* mask = nullptr; const int64_t mask_strides[2] = {};\n",
        }
        Source {
            what: "decode",
            inputs,
            outputs: vec![(c"out", t), (c"sums", "float")],
            body: constants + include_str!("decode.cu"),
            contiguous: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::compile::tests::compiles;

    #[test]
    fn all_kinds_of_attention_compile() {
        for (i, d) in [64, 128, 256].into_iter().enumerate() {
            let key = Key {
                dtype: [Dtype::Bfloat16, Dtype::Float16][i % 2],
                rows: 2,
                heads: 4,
                kv_heads: 4 >> i,
                d,
                rank: 3 + i % 2,
                freqs: d / 2,
                interleaved: i == 2,
                norm: [None, Some((Dtype::Float32, 0)), Some((Dtype::Bfloat16, 0))][i],
                scale: 0.125f32.to_bits(),
                masked: i % 2 == 1,
                parts: 1,
            };
            assert!(compiles(&key.source().function("decode")));
        }
    }
}
