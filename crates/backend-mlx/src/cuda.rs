//! Kernels of our own for NVIDIA GPUs, where MLX's leave most of the memory's bandwidth unused for
//! a few tokens at a time (products), or are put together of many (what surrounds a product, and a
//! token's attention): a step is bound by the number of its operations. MLX compiles them at their
//! first use.

mod decode;
mod kernel;
mod product;
mod rows;

pub(crate) use decode::decode_attention;
pub(crate) use product::{multiplies, product};
pub(crate) use rows::{take_rows, takes_rows};

use std::cell::RefCell;
use std::collections::HashMap;

use biplane_backend::Device;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use self::kernel::{Config, Kernel};
use crate::MlxTensor;

type Result<T> = std::result::Result<T, Exception>;

/// Keys that a block of the attention kernel takes; more are shared out and joined.
const PART: usize = 1024;

/// From this many keys on the attention kernel is faster than MLX's, where MLX has one.
const MANY_KEYS: usize = 192;

struct Kernels {
    attention: Kernel,
    join: Kernel,
    products: HashMap<product::Key, Launch>,
    decodes: HashMap<decode::Key, Launch>,
    rows: HashMap<rows::Key, Launch>,
    /// Zeros, which the kernels leave as zeros.
    counts: Option<(usize, Array)>,
    /// The last places that a decode step wrote to.
    places: Vec<([usize; 2], Array)>,
    attentions: HashMap<Attention, Config>,
    joins: HashMap<Attention, Config>,
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
        None => f(kernels.insert(Kernels::new()?)),
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
        let config = match kernels.attentions.get(&key) {
            Some(config) => config,
            None => kernels.attentions.entry(key).or_insert(key.parts_config()?),
        };
        let scale = kernels
            .scales
            .entry(scale.to_bits())
            .or_insert_with(|| Array::from_slice(&[scale], &[1]));
        let inputs = [q, k, v, mask.unwrap_or(q), scale];
        let [out, stats] = kernels.attention.apply(config, &inputs)?;
        if parts == 1 {
            return Ok(out);
        }
        let config = match kernels.joins.get(&key) {
            Some(config) => config,
            None => kernels.joins.entry(key).or_insert(key.join_config()?),
        };
        let [out] = kernels.join.apply(config, &[&out, &stats])?;
        Ok(out)
    })
}

impl Attention {
    fn parts_config(&self) -> Result<Config> {
        let Attention {
            dtype,
            rows,
            heads,
            d,
            parts,
            masked,
        } = *self;
        let threads = 1024;
        // As many keys at once as a block of this size has registers for.
        let keys = if d > 128 { 2 } else { 4 };
        let config = Config::new([parts * threads, heads, rows], [threads, 1, 1])?;
        let (config, out) = match parts {
            1 => (config.output(&[rows, heads, d], dtype)?, dtype),
            _ => {
                let shape = [rows, heads, parts, d];
                (config.output(&shape, Dtype::Float32)?, Dtype::Float32)
            }
        };
        config
            .output(&[rows, heads, parts, 2], Dtype::Float32)?
            .dtype(c"T", dtype)?
            .int(c"D", d)?
            .int(c"KEYS", keys)?
            .bool(c"MASKED", masked)?
            .dtype(c"O", out)
    }

    fn join_config(&self) -> Result<Config> {
        Config::new([self.d, self.rows * self.heads, 1], [self.d, 1, 1])?
            .output(&[self.rows, self.heads, self.d], self.dtype)?
            .dtype(c"T", self.dtype)?
            .int(c"D", self.d)
    }
}

impl Kernels {
    fn new() -> Result<Self> {
        Ok(Kernels {
            attention: Kernel::new(
                c"biplane_attention",
                &[c"q", c"k", c"v", c"mask", c"scale"],
                &[c"out", c"stats"],
                include_str!("cuda/attention.cu"),
                false,
            )?,
            join: Kernel::new(
                c"biplane_attention_join",
                &[c"sums", c"stats"],
                &[c"out"],
                include_str!("cuda/attention_join.cu"),
                true,
            )?,
            products: HashMap::new(),
            decodes: HashMap::new(),
            rows: HashMap::new(),
            counts: None,
            places: Vec::new(),
            attentions: HashMap::new(),
            joins: HashMap::new(),
            scales: HashMap::new(),
        })
    }
}
