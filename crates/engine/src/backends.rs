//! The backends in this build. The only file that names one.

use std::{str::FromStr, sync::Arc};

use biplane_backend::{Backend, DType, Device, KvType};
use biplane_models::{Isq, LoadRequest, ModelRunner, checkpoint::Opened};

use crate::{Error, Result, memory};

/// Which engine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BackendKind {
    /// candle: CPU, CUDA, Metal.
    Candle,
    /// Apple's MLX.
    Mlx,
}

impl BackendKind {
    /// Every backend there is, in this build or not.
    pub const ALL: [BackendKind; 2] = [BackendKind::Candle, BackendKind::Mlx];

    /// The backends in this build.
    pub fn compiled() -> impl Iterator<Item = BackendKind> {
        Self::ALL.into_iter().filter(|kind| kind.is_compiled())
    }

    /// Whether this build has it.
    pub fn is_compiled(self) -> bool {
        match self {
            BackendKind::Candle => cfg!(feature = "candle"),
            BackendKind::Mlx => cfg!(feature = "mlx"),
        }
    }

    /// The one to use where the user does not say: the first in this build.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a build without any.
    pub fn default_here() -> Result<BackendKind> {
        Self::compiled().next().ok_or_else(|| {
            Error::Unsupported(
                "this build has no backend; build with --features candle or --features mlx".into(),
            )
        })
    }

    /// Opens a device of it, and says which that is; once it is open MLX keeps to it.
    ///
    /// # Errors
    /// [`Error::Backend`] for a device that is not there, [`Error::Unsupported`] for a backend that
    /// this build has not.
    pub fn open_device(self, device: Device) -> Result<Device> {
        match self {
            #[cfg(feature = "candle")]
            BackendKind::Candle => Ok(biplane_candle::CandleBackend::new(device)?.device()),
            #[cfg(feature = "mlx")]
            BackendKind::Mlx => Ok(biplane_mlx::MlxBackend::new(device)?.device()),
            #[allow(unreachable_patterns)]
            other => Err(absent(other)),
        }
    }

    /// The name users choose it by.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::Candle => "candle",
            BackendKind::Mlx => "mlx",
        }
    }
}

impl std::fmt::Display for BackendKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == s)
            .ok_or_else(|| {
                Error::Unsupported(format!(
                    "backend {s:?} is not known; there are candle and mlx"
                ))
            })
    }
}

/// What to load onto a backend.
#[derive(Clone)]
pub(crate) struct RunnerSpec {
    pub backend: BackendKind,
    pub device: Device,
    pub dtype: Option<DType>,
    pub kv_type: KvType,
    pub context_length: Option<usize>,
    pub isq: Isq,
    pub eager: bool,
    pub self_check: bool,
    pub exact: bool,
    pub opened: Arc<Opened>,
    pub progress: Arc<dyn Fn(usize) + Send + Sync>,
}

/// Loads a model. To be called on the thread that will run it.
pub(crate) fn load(spec: &RunnerSpec) -> Result<Box<dyn ModelRunner>> {
    match spec.backend {
        #[cfg(feature = "candle")]
        BackendKind::Candle => load_on::<biplane_candle::CandleBackend>(spec),
        #[cfg(feature = "mlx")]
        BackendKind::Mlx => load_on::<biplane_mlx::MlxBackend>(spec),
        #[allow(unreachable_patterns)]
        other => Err(absent(other)),
    }
}

#[allow(dead_code)]
fn absent(backend: BackendKind) -> Error {
    Error::Unsupported(format!(
        "this build has no {backend} backend; build with --features {backend}"
    ))
}

/// Instruction sets that candle's kernels on the processor are compiled for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kernels {
    /// The one that is used.
    pub chosen: &'static str,
    /// Those that this machine can run, the best one last.
    pub available: Vec<&'static str>,
}

/// Which kernels compute on the processor; none without candle.
pub fn kernels() -> Option<Kernels> {
    #[cfg(feature = "candle")]
    {
        let (chosen, available) = biplane_candle::instruction_sets();
        Some(Kernels { chosen, available })
    }
    #[cfg(not(feature = "candle"))]
    None
}

#[cfg_attr(not(any(feature = "candle", feature = "mlx")), allow(dead_code))]
fn load_on<B: Backend>(spec: &RunnerSpec) -> Result<Box<dyn ModelRunner>> {
    let backend = B::new(spec.device)?.with_exact(spec.exact);
    // Before anything is read.
    backend.kv_format(spec.kv_type, spec.dtype.unwrap_or(DType::F32))?;
    if backend.device().is_cpu() {
        memory::check_weights(spec)?;
    }
    if spec.self_check {
        let dtype = match (spec.dtype, backend.device().is_cpu()) {
            (Some(dtype), _) => dtype,
            (None, true) => DType::F32,
            (None, false) => DType::BF16,
        };
        for check in biplane_backend::self_check(&backend, dtype)? {
            tracing::info!(
                "self-check on {}: {} is off by {:.2e} of {:.0e}",
                B::NAME,
                check.form,
                check.error,
                check.tolerance
            );
        }
    }
    let runner = biplane_models::load(
        &spec.opened,
        &LoadRequest {
            backend: &backend,
            dtype: spec.dtype,
            kv_type: spec.kv_type,
            context_length: spec.context_length,
            isq: spec.isq.clone(),
            eager: spec.eager,
            progress: &*spec.progress,
        },
    )?;
    Ok(runner)
}

/// Sets how many threads compute on the processor, for all models of this process.
pub fn set_threads(threads: usize) {
    #[cfg(feature = "candle")]
    biplane_candle::set_threads(threads);
    #[cfg(not(feature = "candle"))]
    let _ = threads;
}

/// How many threads compute on the processor.
pub fn threads(kind: BackendKind) -> usize {
    match kind {
        #[cfg(feature = "candle")]
        BackendKind::Candle => biplane_candle::threads(),
        // MLX's processor kernels run on one thread, but for the matrix product of its BLAS.
        _ => 1,
    }
}
