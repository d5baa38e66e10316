//! Builders for one kind of checkpoint or one backend each, by the names that users of mistral.rs
//! know.

use std::{path::PathBuf, sync::Arc};

use biplane_backend::{DType, Device, KvType};
use biplane_models::{IsqOverride, IsqType};

use crate::{
    BackendKind, EngineConfig, Error, Model, ModelBuilder, Progress, Result, TokenSource,
    ToolConfig,
    builder::Format,
    tools::{Tool, ToolCallback, ToolDefinition, ToolFormat},
};

/// The options that all builders share, handed on to [`ModelBuilder`].
macro_rules! builder {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug)]
        pub struct $name {
            inner: ModelBuilder,
            refused: Option<String>,
        }

        impl $name {
            /// As [`ModelBuilder::with_logging`].
            pub fn with_logging(self) -> Self {
                self.with(ModelBuilder::with_logging)
            }

            /// As [`ModelBuilder::with_isq`].
            pub fn with_isq(self, isq: IsqType) -> Self {
                self.with(|b| b.with_isq(isq))
            }

            /// As [`ModelBuilder::with_isq_override`].
            pub fn with_isq_override(self, exception: IsqOverride) -> Self {
                self.with(|b| b.with_isq_override(exception))
            }

            /// As [`ModelBuilder::with_dtype`].
            pub fn with_dtype(self, dtype: DType) -> Self {
                self.with(|b| b.with_dtype(dtype))
            }

            /// As [`ModelBuilder::with_kv_type`].
            pub fn with_kv_type(self, kv_type: KvType) -> Self {
                self.with(|b| b.with_kv_type(kv_type))
            }

            /// As [`ModelBuilder::with_context_length`].
            pub fn with_context_length(self, tokens: usize) -> Self {
                self.with(|b| b.with_context_length(tokens))
            }

            /// As [`ModelBuilder::with_self_check`].
            pub fn with_self_check(self, check: bool) -> Self {
                self.with(|b| b.with_self_check(check))
            }

            /// As [`ModelBuilder::with_exact`].
            pub fn with_exact(self, exact: bool) -> Self {
                self.with(|b| b.with_exact(exact))
            }

            /// As [`ModelBuilder::with_chat_template_literal`].
            pub fn with_chat_template_literal(self, template: impl Into<String>) -> Self {
                self.with(|b| b.with_chat_template_literal(template))
            }

            /// As [`ModelBuilder::with_chat_template`].
            pub fn with_chat_template(self, file: impl Into<PathBuf>) -> Self {
                self.with(|b| b.with_chat_template(file))
            }

            /// As [`ModelBuilder::with_tokenizer_json`].
            pub fn with_tokenizer_json(self, file: impl Into<PathBuf>) -> Self {
                self.with(|b| b.with_tokenizer_json(file))
            }

            /// As [`ModelBuilder::with_hf_revision`].
            pub fn with_hf_revision(self, revision: impl Into<String>) -> Self {
                self.with(|b| b.with_hf_revision(revision))
            }

            /// As [`ModelBuilder::with_token_source`].
            pub fn with_token_source(self, source: TokenSource) -> Self {
                self.with(|b| b.with_token_source(source))
            }

            /// As [`ModelBuilder::from_hf_cache_path`].
            pub fn from_hf_cache_path(self, folder: impl Into<PathBuf>) -> Self {
                self.with(|b| b.from_hf_cache_path(folder))
            }

            /// As [`ModelBuilder::with_max_num_seqs`].
            pub fn with_max_num_seqs(self, most: usize) -> Self {
                self.with(|b| b.with_max_num_seqs(most))
            }

            /// As [`ModelBuilder::with_prefix_cache_n`].
            pub fn with_prefix_cache_n(self, most: Option<usize>) -> Self {
                self.with(|b| b.with_prefix_cache_n(most))
            }

            /// As [`ModelBuilder::with_tool_format`].
            pub fn with_tool_format(self, format: ToolFormat) -> Self {
                self.with(|b| b.with_tool_format(format))
            }

            /// As [`ModelBuilder::with_tools`].
            pub fn with_tools(self, tools: impl IntoIterator<Item = Tool>) -> Self {
                self.with(|b| b.with_tools(tools))
            }

            /// As [`ModelBuilder::with_tool_callback`].
            pub fn with_tool_callback(
                self,
                name: impl Into<String>,
                callback: Arc<ToolCallback>,
            ) -> Self {
                self.with(|b| b.with_tool_callback(name, callback))
            }

            /// As [`ModelBuilder::with_tool_callback_and_tool`].
            pub fn with_tool_callback_and_tool(
                self,
                callback: Arc<ToolCallback>,
                definition: ToolDefinition,
            ) -> Self {
                self.with(|b| b.with_tool_callback_and_tool(callback, definition))
            }

            /// As [`ModelBuilder::with_tool_config`].
            pub fn with_tool_config(self, config: ToolConfig) -> Self {
                self.with(|b| b.with_tool_config(config))
            }

            /// As [`ModelBuilder::with_mcp_config`].
            #[cfg(feature = "mcp")]
            pub fn with_mcp_config(self, config: crate::McpConfig) -> Self {
                self.with(|b| b.with_mcp_config(config))
            }

            /// As [`ModelBuilder::with_engine`].
            pub fn with_engine(self, config: EngineConfig) -> Self {
                self.with(|b| b.with_engine(config))
            }

            /// As [`ModelBuilder::with_progress`].
            pub fn with_progress(
                self,
                f: impl Fn(Progress<'_>) + Send + Sync + 'static,
            ) -> Self {
                self.with(|b| b.with_progress(f))
            }

            /// As [`ModelBuilder::build`].
            ///
            /// # Errors
            /// As there, or [`Error::Unsupported`] for an option that cannot be honoured.
            pub async fn build(self) -> Result<Model> {
                self.checked()?.build().await
            }

            /// As [`ModelBuilder::build_blocking`].
            ///
            /// # Errors
            /// As [`Self::build`].
            pub fn build_blocking(self) -> Result<Model> {
                self.checked()?.build_blocking()
            }

            fn of(inner: ModelBuilder) -> Self {
                $name {
                    inner,
                    refused: None,
                }
            }

            fn with(mut self, f: impl FnOnce(ModelBuilder) -> ModelBuilder) -> Self {
                self.inner = f(self.inner);
                self
            }

            fn checked(self) -> Result<ModelBuilder> {
                match self.refused {
                    Some(reason) => Err(Error::Unsupported(reason)),
                    None => Ok(self.inner),
                }
            }
        }
    };
}

/// As of `with_backend` and `with_device`, for the builders that may run on any backend.
macro_rules! any_backend {
    ($name:ident) => {
        impl $name {
            /// As [`ModelBuilder::with_backend`].
            pub fn with_backend(self, backend: BackendKind) -> Self {
                self.with(|b| b.with_backend(backend))
            }

            /// As [`ModelBuilder::with_device`].
            pub fn with_device(self, device: Device) -> Self {
                self.with(|b| b.with_device(device))
            }
        }
    };
}

builder! {
    /// A Hugging Face or mlx-community directory, local or from the hub.
    TextModelBuilder
}
any_backend!(TextModelBuilder);

impl TextModelBuilder {
    /// A model by directory or Hugging Face id.
    pub fn new(model: impl Into<String>) -> Self {
        Self::of(ModelBuilder::new(model).only(Format::Directory))
    }
}

builder! {
    /// A GGUF file, local or from the hub.
    GgufModelBuilder
}
any_backend!(GgufModelBuilder);

impl GgufModelBuilder {
    /// A model by file, by a directory with one GGUF file, or by Hugging Face id with the quantization
    /// wanted, as `org/name:Q4_K_M`.
    pub fn new(model: impl Into<String>) -> Self {
        Self::of(ModelBuilder::new(model).only(Format::Gguf))
    }
}

builder! {
    /// Any checkpoint on MLX.
    ///
    /// ```no_run
    /// # async fn example() -> biplane::Result<()> {
    /// use biplane::{IsqType, MlxDevice, MlxModelBuilder, MlxSpecificConfig};
    ///
    /// let model = MlxModelBuilder::new("mlx-community/gemma-3-1b-it-4bit")
    ///     .with_logging()
    ///     .with_isq(IsqType::Q4K)
    ///     .with_mlx_config(MlxSpecificConfig {
    ///         device_preference: MlxDevice::Auto,
    ///         lazy_evaluation: true,
    ///         unified_memory: true,
    ///     })
    ///     .build()
    ///     .await?;
    /// assert!(model.is_loaded());
    /// # Ok(())
    /// # }
    /// ```
    MlxModelBuilder
}

/// Where MLX computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MlxDevice {
    /// The processor.
    Cpu,
    /// The GPU: Metal on Apple's systems, CUDA elsewhere.
    Gpu,
    /// The GPU where there is one.
    #[default]
    Auto,
}

/// What only MLX has to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MlxSpecificConfig {
    /// Where to compute.
    pub device_preference: MlxDevice,
    /// Whether a whole step's graph is described before any of it is computed: MLX's way, and the
    /// fast one. Without it each layer is computed before the next is described: less memory at
    /// once, and errors come where they arise.
    pub lazy_evaluation: bool,
    /// Whether processor and GPU share their memory. MLX has no other mode: `false` is an error when
    /// the model is built.
    pub unified_memory: bool,
}

impl Default for MlxSpecificConfig {
    fn default() -> Self {
        MlxSpecificConfig {
            device_preference: MlxDevice::Auto,
            lazy_evaluation: true,
            unified_memory: true,
        }
    }
}

impl MlxModelBuilder {
    /// A model by path or Hugging Face id.
    pub fn new(model: impl Into<String>) -> Self {
        Self::of(ModelBuilder::new(model).with_backend(BackendKind::Mlx))
    }

    /// MLX's own options.
    pub fn with_mlx_config(mut self, config: MlxSpecificConfig) -> Self {
        if !config.unified_memory {
            self.refused = Some(
                "MLX's memory is always unified: leave unified_memory true, or use the candle backend"
                    .into(),
            );
        }
        let device = match config.device_preference {
            MlxDevice::Cpu => Device::Cpu,
            MlxDevice::Gpu => Device::Gpu,
            MlxDevice::Auto => Device::Auto,
        };
        self.with(|b| {
            b.with_device(device)
                .with_eager_evaluation(!config.lazy_evaluation)
        })
    }
}
