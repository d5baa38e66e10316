//! What models are made of besides tensors' own operations: linear layers, embeddings, norms.

use biplane_backend::{Backend, DType, Error, Result, Tensor, WeightMatrix};

/// `x · Wᵀ + b`.
#[derive(Clone, Debug)]
pub struct Linear<B: Backend> {
    pub(crate) weight: B::Matrix,
    pub(crate) bias: Option<B::Tensor>,
}

impl<B: Backend> Linear<B> {
    /// `x [tokens, in]` gives `[tokens, out]`.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t`].
    pub fn forward(&self, x: &B::Tensor) -> Result<B::Tensor> {
        self.add_bias(self.weight.matmul_t(x)?)
    }

    /// What [`Self::forward`] gives with each of some layers, together.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t`].
    pub fn forward_each<const N: usize>(
        layers: [&Self; N],
        x: &B::Tensor,
    ) -> Result<[B::Tensor; N]> {
        let products = B::Matrix::matmul_t_each(&layers.map(|l| &l.weight), x)?;
        let ys = layers.iter().zip(products).map(|(l, y)| l.add_bias(y));
        let ys: Vec<_> = ys.collect::<Result<_>>()?;
        ys.try_into().map_err(|ys: Vec<_>| Error::Backend {
            backend: B::NAME,
            op: "matmul_t_each",
            message: format!("{} products of {N} matrices", ys.len()),
        })
    }

    fn add_bias(&self, y: B::Tensor) -> Result<B::Tensor> {
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}

/// A table of token vectors; a tied head is the same matrix used as a linear layer.
#[derive(Clone, Debug)]
pub struct Embedding<B: Backend> {
    pub(crate) table: B::Matrix,
    pub(crate) dtype: DType,
}

impl<B: Backend> Embedding<B> {
    /// `ids` a `U32` vector `[tokens]` gives `[tokens, hidden]` in the model's element type.
    ///
    /// # Errors
    /// As [`WeightMatrix::take_rows`].
    pub fn forward(&self, ids: &B::Tensor) -> Result<B::Tensor> {
        self.table.take_rows(ids, self.dtype)
    }

    /// The table as an output head without bias.
    pub fn as_head(&self) -> Linear<B> {
        Linear {
            weight: self.table.clone(),
            bias: None,
        }
    }
}

/// RMSNorm with a learnt weight (Zhang and Sennrich 2019).
#[derive(Clone, Debug)]
pub struct RmsNorm<B: Backend> {
    pub(crate) weight: B::Tensor,
    pub(crate) eps: f32,
}

impl<B: Backend> RmsNorm<B> {
    /// Normalizes the last axis.
    ///
    /// # Errors
    /// As [`Tensor::rms_norm`].
    pub fn forward(&self, x: &B::Tensor) -> Result<B::Tensor> {
        x.rms_norm(&self.weight, self.eps)
    }
}

/// LayerNorm with a learnt weight and perhaps a bias (Ba et al. 2016).
#[derive(Clone, Debug)]
pub struct LayerNorm<B: Backend> {
    pub(crate) weight: B::Tensor,
    pub(crate) bias: Option<B::Tensor>,
    pub(crate) eps: f32,
}

impl<B: Backend> LayerNorm<B> {
    /// Normalizes the last axis.
    ///
    /// # Errors
    /// As [`Tensor::layer_norm`].
    pub fn forward(&self, x: &B::Tensor) -> Result<B::Tensor> {
        x.layer_norm(&self.weight, self.bias.as_ref(), self.eps)
    }
}
