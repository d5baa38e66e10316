//! Products of a few rows, with what comes before and after them.

use biplane_backend::{Around, Device, Gate, Shape, Tensor};
use mlx_rs::{Array, Dtype};

use super::kernel::{Config, Kernel, Source};
use super::{Launch, Result, is_half, name, with};
use crate::MlxTensor;
use crate::matrix::Form;

/// Most rows of the kernels on tensor cores.
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
    /// Type of its weights, and epsilon's bits.
    norm: Option<(Dtype, u32)>,
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
    let (group, cols) = match form {
        Form::Affine(a) => (Some(a.spec.group_size), a.columns()),
        Form::Dense(w) => (None, w.shape().last("columns").unwrap_or_default()),
    };
    let key = Key {
        dtype: x.dtype(),
        group,
        tokens,
        rows,
        cols,
        norm: around
            .norm
            .map(|(w, eps)| (w.array().dtype(), eps.to_bits())),
        gate: around.gate,
        bias: around.bias.is_some(),
        add: around.add.is_some(),
    };
    let norm = around.norm.map(|(weight, _)| weight);
    let rest = [norm, around.bias, around.add];
    let inputs: Vec<&Array> = std::iter::once(x)
        .chain(form.parts().into_iter().map(MlxTensor::array))
        .chain(rest.into_iter().flatten().map(MlxTensor::array))
        .collect();
    with(|kernels| {
        let launch = match kernels.products.get(&key) {
            Some(launch) => launch,
            None => kernels.products.entry(key).or_insert(key.launch()?),
        };
        let [y] = launch.kernel.apply(&launch.config, &inputs)?;
        Ok(y)
    })
}

impl Key {
    fn launch(&self) -> Result<Launch> {
        let (source, blocks, threads) = self.source();
        let shape = Shape::from([self.tokens, self.outputs()]);
        Ok(Launch {
            kernel: Kernel::new(source)?,
            config: Config::new([blocks * threads, 1, 1], [threads, 1, 1])?
                .output(shape.as_slice(), self.dtype)?,
        })
    }

    /// Rows of the matrix for an output.
    fn half(&self) -> usize {
        match self.gate {
            Some(_) => 2,
            None => 1,
        }
    }

    fn outputs(&self) -> usize {
        self.rows / self.half()
    }

    /// Columns that a block of codes.cu holds at a time, in rounds of `round`: as many as fit into the shared memory that
    /// every kernel may have, with their groups' scales.
    fn segment(&self, group: usize, tiles: usize, round: usize) -> usize {
        const SHARED: usize = 40 << 10;
        let elements = if self.norm.is_some() { 4 } else { 2 };
        let bytes = round * elements + 16 * tiles * 4 * (round / group);
        let rounds = self.cols.div_ceil(round);
        round * (SHARED / bytes).clamp(1, rounds)
    }

    /// The kernel, and its blocks and their threads.
    fn source(&self) -> (Source, usize, usize) {
        let (half, outputs) = (self.half(), self.outputs());
        let gate = match self.gate {
            None => 0,
            Some(Gate::Silu) => 1,
            Some(Gate::GeluTanh) => 2,
        };
        let (bias, add) = (self.bias, self.add);
        let t = name(self.dtype);
        let codes = self.group.is_some();
        let group = self.group.unwrap_or(1);
        let (norm, nw, eps) = match self.norm {
            Some((dtype, eps)) => (true, name(dtype), f32::from_bits(eps)),
            None => (false, t, 0.0),
        };
        let mut constants = format!(
            "using T = {t}; constexpr int GROUP = {group}; constexpr int GATE = {gate}; \
             constexpr bool BIAS = {bias}; constexpr bool ADD = {add}; using NW = {nw}; \
             constexpr bool NORM = {norm}; constexpr float EPS = {eps:e}f;\n"
        );
        // An input costs time at every call: those that are not there are null in the source.
        let given = [
            (codes, c"scales", t),
            (codes, c"biases", t),
            (norm, c"norm", nw),
            (bias, c"bias", t),
            (add, c"add", t),
        ];
        let mut inputs = vec![(c"x", t), (c"w", if codes { "uint32_t" } else { t })];
        for (is_there, input, of) in given {
            match is_there {
                true => inputs.push((input, of)),
                false => {
                    let input = input.to_string_lossy();
                    constants += &format!("const {of}* {input} = nullptr;\n");
                }
            }
        }
        let Key { rows, cols, .. } = *self;
        constants += &format!("constexpr int N = {rows}; constexpr int K = {cols};\n");
        let (t2, is_bf16) = match self.dtype {
            Dtype::Bfloat16 => ("__nv_bfloat162", true),
            _ => ("__half2", false),
        };
        constants += &format!("using T2 = {t2}; constexpr bool IS_BF16 = {is_bf16};\n");
        let tiles = if half == 2 || outputs >= 16_384 { 2 } else { 1 };
        let chunks = cols.div_ceil(128);
        // Of so many warps, as many as share the columns most evenly.
        let sharing = |least: usize, most: usize| {
            let idle = |warps: &usize| (chunks.div_ceil(*warps) * warps - chunks, most - warps);
            (least..=most).min_by_key(idle).unwrap_or(most)
        };
        let on_tensor_cores = |body| include_str!("fragments.cu").to_owned() + body;
        let (what, body, blocks, warps) = match (self.group, self.tokens) {
            (None, _) => {
                let (each, warps, team) = match cols {
                    4096.. => (half, 8, 8),
                    2048.. => (2 * half, 4, 4),
                    _ => (2 * half, 4, 1),
                };
                constants += &format!(
                    "constexpr int R = {each}; constexpr int TEAM = {team}; constexpr int WARPS = {warps};\n"
                );
                let blocks = outputs.div_ceil(each / half * (warps / team));
                ("product", include_str!("product.cu").into(), blocks, warps)
            }
            (Some(group), 1) => {
                let warps = match cols {
                    _ if tiles == 2 => sharing(2, 4),
                    8192.. => sharing(8, 16),
                    _ => sharing(4, 8),
                };
                let segment = self.segment(group, tiles, warps * 128);
                constants += &format!(
                    "constexpr int TILES = {tiles}; constexpr int WARPS = {warps}; constexpr int SEGMENT = {segment};\n"
                );
                let blocks = outputs.div_ceil(16 * tiles / half);
                (
                    "codes",
                    on_tensor_cores(include_str!("codes.cu")),
                    blocks,
                    warps,
                )
            }
            (Some(_), tokens) => {
                let eights = tokens.div_ceil(8).next_power_of_two();
                let warps = sharing(3, 8);
                constants += &format!(
                    "constexpr int TILES = {tiles}; constexpr int TOKENS = {eights}; constexpr int WARPS = {warps};\n"
                );
                let blocks = outputs.div_ceil(16 * tiles / half);
                (
                    "products",
                    on_tensor_cores(include_str!("products.cu")),
                    blocks,
                    warps,
                )
            }
        };
        let source = Source {
            what,
            inputs,
            outputs: vec![(c"y", t)],
            body: constants + include_str!("around.cu") + &body,
            contiguous: true,
        };
        (source, blocks, warps * 32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::compile::tests::compiles;

    #[test]
    fn all_products_compile() {
        let norms = [None, Some((Dtype::Bfloat16, 0)), Some((Dtype::Float32, 0))];
        let mut cases = Vec::new();
        for (i, gate) in [None, Some(Gate::Silu), Some(Gate::GeluTanh)]
            .into_iter()
            .enumerate()
        {
            for (group, tokens) in [(None, 1), (Some(64), 1), (Some(32), 2), (Some(128), 32)] {
                cases.push(Key {
                    dtype: [Dtype::Bfloat16, Dtype::Float16][i % 2],
                    group,
                    tokens,
                    rows: 4096,
                    cols: 1024 << i,
                    norm: if tokens == 1 { norms[i] } else { None },
                    gate,
                    bias: i == 1,
                    add: i != 1,
                });
            }
        }
        for key in cases {
            let (source, ..) = key.source();
            assert!(compiles(&source.function("product")));
        }
    }
}
