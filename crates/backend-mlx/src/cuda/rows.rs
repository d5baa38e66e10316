//! Rows of an embedding in one operation.

use biplane_backend::Device;
use mlx_rs::{Array, Dtype};

use super::kernel::{Config, Kernel, Source};
use super::{Launch, Result, name, with};
use crate::MlxTensor;
use crate::matrix::Affine;

/// Most tokens at once: more are prompts, where the number of operations counts little.
const MOST_TOKENS: usize = 64;

/// What rows are taken for.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    dtype: Dtype,
    scales: Dtype,
    group: usize,
    zero: u8,
    tokens: usize,
    cols: usize,
}

/// Whether [`take_rows`] is the way to take as many rows.
pub(crate) fn takes_rows(ids: &MlxTensor, tokens: usize, from: &Affine) -> bool {
    matches!(ids.device(), Device::Cuda(_))
        && from.spec.bits == 4
        && from.spec.group_size.is_multiple_of(8)
        && (1..=MOST_TOKENS).contains(&tokens)
}

/// `[tokens, columns]` of the rows `ids`, which must exist.
pub(crate) fn take_rows(ids: &Array, tokens: usize, from: &Affine, dtype: Dtype) -> Result<Array> {
    let key = Key {
        dtype,
        scales: from.scales.array().dtype(),
        group: from.spec.group_size,
        zero: from.zero_point,
        tokens,
        cols: from.columns(),
    };
    with(|kernels| {
        let launch = match kernels.rows.get(&key) {
            Some(launch) => launch,
            None => kernels.rows.entry(key).or_insert(key.launch()?),
        };
        let [codes, scales, biases] =
            [&from.codes, &from.scales, &from.biases].map(MlxTensor::array);
        let [y] = launch
            .kernel
            .apply(&launch.config, &[ids, codes, scales, biases])?;
        Ok(y)
    })
}

impl Key {
    fn launch(&self) -> Result<Launch> {
        let threads = 128;
        Ok(Launch {
            kernel: Kernel::new(self.source())?,
            config: Config::new([self.tokens * threads, 1, 1], [threads, 1, 1])?
                .output(&[self.tokens, self.cols], self.dtype)?,
        })
    }

    fn source(&self) -> Source {
        let (t, s) = (name(self.dtype), name(self.scales));
        let Key { group, zero, .. } = *self;
        let constants = format!(
            "using T = {t}; using S = {s}; constexpr int GROUP = {group}; constexpr float ZERO = {zero}.0f;\n"
        );
        Source {
            what: "rows",
            inputs: vec![
                (c"ids", "uint32_t"),
                (c"codes", "uint32_t"),
                (c"scales", s),
                (c"biases", s),
            ],
            outputs: vec![(c"y", t)],
            body: constants + include_str!("rows.cu"),
            contiguous: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::compile::tests::compiles;

    #[test]
    fn rows_compile() {
        for (dtype, zero) in [(Dtype::Bfloat16, 0), (Dtype::Float32, 8)] {
            let key = Key {
                dtype,
                scales: dtype,
                group: 64,
                zero,
                tokens: 1,
                cols: 64,
            };
            assert!(compiles(&key.source().function("rows")));
        }
    }
}
