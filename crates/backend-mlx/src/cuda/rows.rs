//! Rows of an embedding in one operation.

use std::ffi::CString;

use biplane_backend::Device;
use mlx_rs::error::Exception;
use mlx_rs::{Array, Dtype};

use super::kernel::{Config, Kernel};
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
        let (t, s) = (name(self.dtype), name(self.scales));
        let Key {
            group,
            zero,
            tokens,
            cols,
            ..
        } = *self;
        let constants = format!(
            "using T = {t}; using S = {s}; constexpr int GROUP = {group}; constexpr float ZERO = {zero}.0f;\n"
        );
        let id = CString::new(format!("biplane_rows_{t}_{s}_{group}_{zero}"))
            .map_err(|e| Exception::custom(e.to_string()))?;
        let inputs = [c"ids", c"codes", c"scales", c"biases"];
        let source = constants + include_str!("rows.cu");
        let threads = 128;
        Ok(Launch {
            kernel: Kernel::new(&id, &inputs, &[c"y"], &source, true)?,
            config: Config::new([tokens * threads, 1, 1], [threads, 1, 1])?
                .output(&[tokens, cols], self.dtype)?,
        })
    }
}
