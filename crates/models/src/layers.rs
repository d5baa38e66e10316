//! What models are made of besides tensors' own operations: linear layers, embeddings, norms.

use biplane_backend::{Around, Backend, DType, Error, Gate, Result, Tensor, WeightMatrix};

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

    /// Where each row's largest output is, `U32 [tokens]`.
    ///
    /// # Errors
    /// As [`WeightMatrix::argmax_t`].
    pub fn argmax(&self, x: &B::Tensor) -> Result<B::Tensor> {
        match self.bias {
            None => self.weight.argmax_t(x),
            Some(_) => self.forward(x)?.argmax(),
        }
    }

    /// [`Linear::forward`], added to `to`.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t_with`].
    pub fn forward_add(&self, x: &B::Tensor, to: &B::Tensor) -> Result<B::Tensor> {
        let around = Around {
            add: Some(to),
            ..self.biased()
        };
        self.weight.matmul_t_with(x, &around)
    }

    /// [`Linear::forward`], normed and then added to `to`.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t_with`].
    pub fn forward_norm_add(
        &self,
        x: &B::Tensor,
        norm: &RmsNorm<B>,
        to: &B::Tensor,
    ) -> Result<B::Tensor> {
        let around = Around {
            norm_after: Some(norm.parts()),
            add: Some(to),
            ..self.biased()
        };
        self.weight.matmul_t_with(x, &around)
    }

    fn biased(&self) -> Around<'_, B::Tensor> {
        Around {
            bias: self.bias.as_ref(),
            ..Around::default()
        }
    }

    fn add_bias(&self, y: B::Tensor) -> Result<B::Tensor> {
        match &self.bias {
            Some(bias) => y.add(bias),
            None => Ok(y),
        }
    }
}

/// Linear layers of one input: one matrix where the backend prefers that ([`WeightMatrix::join`]).
#[derive(Clone, Debug)]
pub struct Joined<B: Backend, const N: usize> {
    whole: Option<Linear<B>>,
    /// Empty where they are one.
    parts: Vec<Linear<B>>,
    outputs: [usize; N],
}

impl<B: Backend, const N: usize> Joined<B, N> {
    /// Takes the layers together.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub fn new(layers: [Linear<B>; N]) -> Result<Self> {
        let outputs = layers.each_ref().map(|l| l.weight.shape()[0]);
        let mut parts = Vec::from(layers);
        let biases: Vec<_> = parts.iter().filter_map(|l| l.bias.as_ref()).collect();
        let weights: Vec<_> = parts.iter().map(|l| &l.weight).collect();
        let weight = match biases.len() {
            0 => B::Matrix::join(&weights)?,
            n if n == N => B::Matrix::join(&weights)?,
            _ => None,
        };
        let whole = match (weight, biases.as_slice()) {
            (Some(weight), []) => Some(Linear { weight, bias: None }),
            (Some(weight), biases) => {
                let bias = Some(B::Tensor::concat(biases, 0)?);
                Some(Linear { weight, bias })
            }
            (None, _) => None,
        };
        if whole.is_some() {
            parts.clear();
        }
        Ok(Joined {
            whole,
            parts,
            outputs,
        })
    }

    /// `x [tokens, in]` gives each layer's `[tokens, out]`.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t`].
    pub fn forward(&self, x: &B::Tensor) -> Result<[B::Tensor; N]> {
        self.project(x, None)?.split()
    }

    /// [`Joined::forward`], perhaps of the normed input, not taken apart yet.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t_with`].
    pub fn project(&self, x: &B::Tensor, norm: Option<&RmsNorm<B>>) -> Result<Projected<B, N>> {
        let values = match &self.whole {
            Some(whole) => {
                let around = Around {
                    norm: norm.map(RmsNorm::parts),
                    ..whole.biased()
                };
                Values::Whole(whole.weight.matmul_t_with(x, &around)?)
            }
            None => {
                let normed = norm.map(|norm| norm.forward(x)).transpose()?;
                let x = normed.as_ref().unwrap_or(x);
                let ys = self.parts.iter().map(|l| l.forward(x));
                Values::Parts(ys.collect::<Result<_>>()?)
            }
        };
        Ok(Projected {
            values,
            outputs: self.outputs,
        })
    }
}

impl<B: Backend> Joined<B, 2> {
    /// Of the normed `x [tokens, in]`, the second layer's outputs gated by the first's.
    ///
    /// # Errors
    /// As [`WeightMatrix::matmul_t_with`].
    pub fn forward_gated(&self, x: &B::Tensor, norm: &RmsNorm<B>, gate: Gate) -> Result<B::Tensor> {
        if let Some(whole) = &self.whole {
            let around = Around {
                norm: Some(norm.parts()),
                gate: Some(gate),
                ..whole.biased()
            };
            return whole.weight.matmul_t_with(x, &around);
        }
        let [values, up] = self.project(x, Some(norm))?.split()?;
        gate.apply(&values, &up)
    }
}

/// What [`Joined`] layers gave.
#[derive(Debug)]
pub struct Projected<B: Backend, const N: usize> {
    values: Values<B>,
    outputs: [usize; N],
}

#[derive(Debug)]
enum Values<B: Backend> {
    /// Side by side.
    Whole(B::Tensor),
    Parts(Vec<B::Tensor>),
}

impl<B: Backend, const N: usize> Projected<B, N> {
    /// All side by side, where they are one tensor.
    pub(crate) fn whole(&self) -> Option<&B::Tensor> {
        match &self.values {
            Values::Whole(y) => Some(y),
            Values::Parts(_) => None,
        }
    }

    /// Each layer's outputs as some heads of `d` elements, `[tokens, heads, d]`: views where they are one
    /// tensor.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub(crate) fn heads(self, heads: [usize; N], d: usize) -> Result<[B::Tensor; N]> {
        let mut start = 0;
        let ys: Vec<_> = match self.values {
            Values::Whole(y) => {
                let all = heads.iter().sum();
                let y = y.reshape([y.shape().dim("reshape", 0)?, all, d])?;
                let next = |&n: &usize| {
                    start += n;
                    y.narrow(1, start - n, n)
                };
                heads.iter().map(next).collect::<Result<_>>()?
            }
            Values::Parts(ys) => ys
                .iter()
                .zip(heads)
                .map(|(y, n)| y.reshape([y.shape().dim("reshape", 0)?, n, d]))
                .collect::<Result<_>>()?,
        };
        each(ys)
    }

    /// Each layer's `[tokens, out]`.
    ///
    /// # Errors
    /// Only what the backend reports.
    pub fn split(self) -> Result<[B::Tensor; N]> {
        let ys = match self.values {
            Values::Parts(ys) => ys,
            Values::Whole(y) => {
                let mut start = 0;
                let next = |&len: &usize| {
                    start += len;
                    y.narrow(1, start - len, len)
                };
                self.outputs.iter().map(next).collect::<Result<_>>()?
            }
        };
        each(ys)
    }
}

/// As many tensors as there are layers.
fn each<T: Tensor, const N: usize>(ys: Vec<T>) -> Result<[T; N]> {
    ys.try_into().map_err(|ys: Vec<_>| Error::OutOfRange {
        op: "join",
        index: ys.len(),
        limit: N,
    })
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
    pub(crate) fn parts(&self) -> (&B::Tensor, f32) {
        (&self.weight, self.eps)
    }

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
