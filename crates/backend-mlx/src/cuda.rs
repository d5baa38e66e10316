//! Kernels of our own for NVIDIA GPUs, where MLX's leave most of the memory's bandwidth unused for
//! a few tokens at a time (products), or are put together of many (what surrounds a product, and a
//! token's attention): a step is bound by the number of its operations. They are compiled at their
//! first use.

mod compile;
mod decode;
mod kernel;
mod product;
mod rows;

pub(crate) use compile::finish as finish_compiling;
pub(crate) use decode::decode_attention;
pub(crate) use product::{multiplies, product};
pub(crate) use rows::{take_rows, takes_rows};

use std::cell::RefCell;
use std::collections::HashMap;

use biplane_backend::Device;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use self::kernel::{Config, Kernel, Source};
use crate::MlxTensor;

type Result<T> = std::result::Result<T, Exception>;

/// Keys that a block of the attention kernel takes; more are shared out and joined.
const PART: usize = 1024;

/// Fewest tokens of each kind of step: products have a kernel for one, and for up to 8, 16 and 32.
pub(crate) const KINDS_OF_STEPS: &[usize] = &[1, 2, 9, 17];

/// From this many keys on the attention kernel is faster than MLX's, where MLX has one.
const MANY_KEYS: usize = 192;

#[derive(Default)]
struct Kernels {
    products: HashMap<product::Key, Launch>,
    decodes: HashMap<decode::Key, Launch>,
    rows: HashMap<rows::Key, Launch>,
    /// Zeros, which the kernels leave as zeros.
    counts: Option<(usize, Array)>,
    /// The last places that a decode step wrote to, and an array of one element.
    places: Vec<([usize; 2], Array)>,
    one: Option<Array>,
    attentions: HashMap<Attention, Launch>,
    joins: HashMap<Attention, Launch>,
    scales: HashMap<u32, Array>,
}

/// A kernel whose constants stand in its source, and its launch.
struct Launch {
    kernel: Kernel,
    config: Config,
}

/// The element type's name in CUDA.
fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::Bfloat16 => "__nv_bfloat16",
        Dtype::Float16 => "__half",
        _ => "float",
    }
}

/// What the attention kernel is launched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Attention {
    dtype: Dtype,
    rows: usize,
    heads: usize,
    d: usize,
    parts: usize,
    masked: bool,
}

thread_local! {
    static KERNELS: RefCell<Option<Kernels>> = const { RefCell::new(None) };
}

fn with<T>(f: impl FnOnce(&mut Kernels) -> Result<T>) -> Result<T> {
    KERNELS.with_borrow_mut(|kernels| match kernels {
        Some(kernels) => f(kernels),
        None => f(kernels.insert(Kernels::default())),
    })
}

fn is_half(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Bfloat16 | Dtype::Float16)
}

/// Most blocks of a launch's second and third axis.
const MOST_BLOCKS: usize = 65_535;

/// Whether [`attention`] is the way to attend with one query a row.
pub(crate) fn attends(q: &MlxTensor, d: usize, kv_len: usize, masked: bool) -> bool {
    matches!(q.device(), Device::Cuda(_))
        && is_half(q.array().dtype())
        && q.array().size() <= MOST_BLOCKS * d
        && (matches!(d, 64 | 128) && (masked || kv_len >= MANY_KEYS) || d == 256)
}

/// `q` `[rows, heads, d]`, `k` and `v` `[rows, kv_heads, kv_len, d]`, `mask` `[rows, kv_len]`, give
/// `[rows, heads, d]`; see [`attends`].
pub(crate) fn attention(
    q: &Array,
    [k, v]: [&Array; 2],
    mask: Option<&Array>,
    scale: f32,
    [rows, heads, kv_len, d]: [usize; 4],
) -> Result<Array> {
    let parts = kv_len.div_ceil(PART);
    let dtype = q.dtype();
    let key = Attention {
        dtype,
        rows,
        heads,
        d,
        parts,
        masked: mask.is_some(),
    };
    with(|kernels| {
        let launch = match kernels.attentions.get(&key) {
            Some(launch) => launch,
            None => kernels.attentions.entry(key).or_insert(key.of_parts()?),
        };
        let scale = kernels
            .scales
            .entry(scale.to_bits())
            .or_insert_with(|| Array::from_slice(&[scale], &[1]));
        let inputs = [q, k, v, mask.unwrap_or(q), scale];
        let [out, stats] = launch.kernel.apply(&launch.config, &inputs)?;
        if parts == 1 {
            return Ok(out);
        }
        let launch = match kernels.joins.get(&key) {
            Some(launch) => launch,
            None => kernels.joins.entry(key).or_insert(key.joining()?),
        };
        let [out] = launch.kernel.apply(&launch.config, &[&out, &stats])?;
        Ok(out)
    })
}

impl Attention {
    /// The element type of the parts' results.
    fn result(&self) -> Dtype {
        match self.parts {
            1 => self.dtype,
            _ => Dtype::Float32,
        }
    }

    fn of_parts(&self) -> Result<Launch> {
        let Attention {
            rows,
            heads,
            d,
            parts,
            ..
        } = *self;
        let threads = 1024;
        let config = Config::new([parts * threads, heads, rows], [threads, 1, 1])?;
        let config = match parts {
            1 => config.output(&[rows, heads, d], self.result())?,
            _ => config.output(&[rows, heads, parts, d], self.result())?,
        };
        Ok(Launch {
            kernel: Kernel::new(self.parts_source())?,
            config: config.output(&[rows, heads, parts, 2], Dtype::Float32)?,
        })
    }

    fn parts_source(&self) -> Source {
        let (t, o) = (name(self.dtype), name(self.result()));
        let Attention { d, masked, .. } = *self;
        // As many keys at once as a block of this size has registers for.
        let keys = if d > 128 { 2 } else { 4 };
        let constants = format!(
            "using T = {t}; using O = {o}; constexpr int D = {d}; constexpr int KEYS = {keys}; \
             constexpr bool MASKED = {masked};\n"
        );
        Source {
            what: "attention",
            inputs: vec![
                (c"q", t),
                (c"k", t),
                (c"v", t),
                (c"mask", t),
                (c"scale", "float"),
            ],
            outputs: vec![(c"out", o), (c"stats", "float")],
            body: constants + include_str!("cuda/attention.cu"),
            contiguous: false,
        }
    }

    fn joining(&self) -> Result<Launch> {
        Ok(Launch {
            kernel: Kernel::new(self.join_source())?,
            config: Config::new([self.d, self.rows * self.heads, 1], [self.d, 1, 1])?
                .output(&[self.rows, self.heads, self.d], self.dtype)?,
        })
    }

    fn join_source(&self) -> Source {
        let t = name(self.dtype);
        Source {
            what: "attention_join",
            inputs: vec![(c"sums", "float"), (c"stats", "float")],
            outputs: vec![(c"out", t)],
            body: format!("using T = {t}; constexpr int D = {};\n", self.d)
                + include_str!("cuda/attention_join.cu"),
            contiguous: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_compiles() {
        for (d, parts) in [(64, 1), (128, 2), (256, 3)] {
            let key = Attention {
                dtype: Dtype::Bfloat16,
                rows: 2,
                heads: 4,
                d,
                parts,
                masked: parts == 2,
            };
            for source in [key.parts_source(), key.join_source()] {
                assert!(compile::tests::compiles(&source.function("attention")));
            }
        }
    }
}
