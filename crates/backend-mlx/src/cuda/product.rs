//! Products of a few rows, with what comes before and after them.

use std::ffi::CString;

use biplane_backend::{Around, Device, Gate, Shape, Tensor};
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use super::kernel::{Config, Kernel};
use super::{Launch, Result, is_half, name, with};
use crate::MlxTensor;
use crate::matrix::Form;

/// Most rows of the kernel on tensor cores.
const MOST_ROWS: usize = 32;

/// What a product is launched for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dtype: Dtype,
    /// Of a group of 4-bit codes; none for dense elements.
    group: Option<usize>,
    tokens: usize,
    rows: usize,
    cols: usize,
    norm: Option<Dtype>,
    gate: Option<Gate>,
    bias: bool,
    add: bool,
}

/// Whether [`product`] is the way to multiply these.
pub(crate) fn multiplies(
    x: &MlxTensor,
    rows: usize,
    form: &Form,
    around: &Around<'_, MlxTensor>,
) -> bool {
    let dtype = x.array().dtype();
    let same = |t: Option<&MlxTensor>| t.is_none_or(|t| t.array().dtype() == dtype);
    let fits = match form {
        Form::Affine(a) => {
            let known = a.spec.bits == 4 && matches!(a.spec.group_size, 32 | 64 | 128);
            known && rows <= MOST_ROWS && same(Some(&a.scales))
        }
        Form::Dense(w) => {
            let cols = w.shape().last("columns").unwrap_or_default();
            rows == 1 && cols.is_multiple_of(8) && same(Some(w))
        }
    };
    matches!(x.device(), Device::Cuda(_))
        && is_half(dtype)
        && rows > 0
        && fits
        && same(around.bias)
        && same(around.add)
        && around.norm.is_none_or(|(w, _)| w.dtype().is_float())
}

/// `x · Wᵀ` of `tokens` rows `x` with what surrounds it; see [`multiplies`]. Norms are of one row.
pub(crate) fn product(
    x: &Array,
    form: &Form,
    tokens: usize,
    rows: usize,
    around: &Around<'_, MlxTensor>,
) -> Result<Array> {
    let (weights, group, cols) = match form {
        Form::Affine(a) => {
            let parts = [a.codes.array(), a.scales.array(), a.biases.array()];
            (parts, Some(a.spec.group_size), a.columns())
        }
        Form::Dense(w) => {
            let cols = w.shape().last("columns").unwrap_or_default();
            ([w.array(), x, x], None, cols)
        }
    };
    let key = Key {
        dtype: x.dtype(),
        group,
        tokens,
        rows,
        cols,
        norm: around.norm.map(|(w, _)| w.array().dtype()),
        gate: around.gate,
        bias: around.bias.is_some(),
        add: around.add.is_some(),
    };
    let [w, scales, biases] = weights;
    with(|kernels| {
        let eps = kernels.settings([around.norm.map_or(0.0, |(_, eps)| eps), 0.0]);
        let launch = match kernels.products.get(&key) {
            Some(launch) => launch,
            None => kernels.products.entry(key).or_insert(key.launch()?),
        };
        let or_x = |t: Option<&MlxTensor>| t.map_or(x.clone(), |t| t.array().clone());
        let norm = or_x(around.norm.map(|(w, _)| w));
        let (bias, add) = (or_x(around.bias), or_x(around.add));
        let inputs = [x, w, scales, biases, &norm, &eps, &bias, &add];
        let [y] = launch.kernel.apply(&launch.config, &inputs)?;
        Ok(y)
    })
}

impl Key {
    fn launch(&self) -> Result<Launch> {
        let half = match self.gate {
            Some(_) => 2,
            None => 1,
        };
        let outputs = self.rows / half;
        let gate = match self.gate {
            None => 0,
            Some(Gate::Silu) => 1,
            Some(Gate::GeluTanh) => 2,
        };
        let (bias, add) = (self.bias, self.add);
        let t = name(self.dtype);
        let bits = if self.group.is_some() { 4 } else { 16 };
        let group = self.group.unwrap_or(1);
        let mut constants = format!(
            "using T = {t}; constexpr int GROUP = {group}; constexpr int GATE = {gate}; \
             constexpr bool BIAS = {bias}; constexpr bool ADD = {add};\n"
        );
        let (source, id, blocks, threads) = if self.tokens == 1 {
            // Elements a lane takes at a time, and rows a warp.
            let (codes, each) = match (self.group, self.cols) {
                (None, _) => (8, 2 * half),
                (Some(_), 4096..) => (32, 4),
                (Some(_), 2048..) => (32, 2 * half),
                (Some(_), _) => (8, 4),
            };
            let warps = 4;
            let (norm, nw) = (self.norm.is_some(), name(self.norm.unwrap_or(self.dtype)));
            constants += &format!(
                "using NW = {nw}; constexpr int BITS = {bits}; constexpr int R = {each}; \
                 constexpr int CODES = {codes}; constexpr bool NORM = {norm};\n"
            );
            let id = format!("one_{bits}_{each}_{codes}_{norm}_{nw}");
            let blocks = outputs.div_ceil(each / half * warps);
            (include_str!("product.cu"), id, blocks, warps * 32)
        } else {
            let eights = self.tokens.div_ceil(8).next_power_of_two();
            let tiles = if half == 2 || outputs >= 16_384 { 2 } else { 1 };
            // As many warps as share the columns most evenly.
            let chunks = self.cols.div_ceil(128);
            let idle = |warps: &usize| (chunks.div_ceil(*warps) * warps - chunks, 8 - warps);
            let warps = (3..=8).min_by_key(idle).unwrap_or(8);
            let (t2, bf16) = match self.dtype {
                Dtype::Bfloat16 => ("__nv_bfloat162", true),
                _ => ("__half2", false),
            };
            constants += &format!(
                "using T2 = {t2}; constexpr bool IS_BF16 = {bf16}; constexpr int TILES = {tiles}; \
                 constexpr int TOKENS = {eights}; constexpr int WARPS = {warps};\n"
            );
            let id = format!("few_{tiles}_{eights}_{warps}");
            let each = 16 * tiles / half;
            (
                include_str!("products.cu"),
                id,
                outputs.div_ceil(each),
                warps * 32,
            )
        };
        let id = format!("biplane_product_{t}_{group}_{gate}_{bias}_{add}_{id}");
        let id = CString::new(id).map_err(|e| Exception::custom(e.to_string()))?;
        let inputs = [
            c"x", c"w", c"scales", c"biases", c"norm", c"eps", c"bias", c"add",
        ];
        Ok(Launch {
            kernel: Kernel::new(&id, &inputs, &[c"y"], &(constants + source), true)?,
            config: Config::new([blocks * threads, 1, 1], [threads, 1, 1])?
                .output(Shape::from([self.tokens, outputs]).as_slice(), self.dtype)?,
        })
    }
}
