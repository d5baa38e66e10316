//! What to load, and how to run it.

mod load;

use std::{path::PathBuf, sync::Arc};

use biplane_backend::{DType, Device, KvType};
use biplane_models::{Isq, IsqOverride, IsqType};

use crate::{
    BackendKind, ToolConfig,
    engine::EngineConfig,
    hub,
    source::{GivenTemplate, TokenSource},
    tools::{Tool, ToolCallback, ToolDefinition, ToolFormat},
};

/// How far loading has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// What is being done: a download's file name, or `loading weights`.
    pub task: &'a str,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all; 0 where that is not known.
    pub total: u64,
}

type OnProgress = Arc<dyn Fn(Progress<'_>) + Send + Sync>;

/// What to load.
#[derive(Clone, Debug)]
enum Source {
    Starter,
    Spec(String),
}

/// What kind of checkpoint is expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Any,
    Gguf,
    Directory,
}

/// Chooses a model and how to run it: any format, any backend.
///
/// ```no_run
/// # async fn example() -> biplane::Result<()> {
/// let model = biplane::ModelBuilder::new("model.gguf").build().await?;
/// let answer = model.generate("The capital of France is").await?;
/// println!("{}", answer.text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ModelBuilder {
    source: Source,
    format: Format,
    backend: Option<BackendKind>,
    device: Device,
    dtype: Option<DType>,
    kv_type: KvType,
    context_length: Option<usize>,
    isq: Isq,
    eager: bool,
    self_check: bool,
    exact: bool,
    chat_template: Option<GivenTemplate>,
    tokenizer_json: Option<PathBuf>,
    revision: Option<String>,
    hub: hub::Options,
    token: Option<TokenSource>,
    tool_format: Option<ToolFormat>,
    tools: Vec<Tool>,
    callbacks: Vec<(String, Arc<ToolCallback>)>,
    tool_config: ToolConfig,
    #[cfg(feature = "mcp")]
    mcp: Option<crate::McpConfig>,
    engine: EngineConfig,
    progress: OnProgress,
}

impl ModelBuilder {
    /// A model by path (a GGUF file or a directory) or Hugging Face id (`org/name`).
    pub fn new(model: impl Into<String>) -> Self {
        Self::of(Source::Spec(model.into()))
    }

    /// The small starter model, SmolLM2-135M-Instruct; downloaded once.
    pub fn starter() -> Self {
        Self::of(Source::Starter)
    }

    fn of(source: Source) -> Self {
        ModelBuilder {
            source,
            format: Format::Any,
            backend: None,
            device: Device::Auto,
            dtype: None,
            kv_type: KvType::Auto,
            context_length: None,
            isq: Isq::default(),
            eager: false,
            self_check: false,
            exact: false,
            chat_template: None,
            tokenizer_json: None,
            revision: None,
            hub: hub::Options::default(),
            token: None,
            tool_format: None,
            tools: Vec::new(),
            callbacks: Vec::new(),
            tool_config: ToolConfig::default(),
            #[cfg(feature = "mcp")]
            mcp: None,
            engine: EngineConfig::default(),
            progress: Arc::new(|_| {}),
        }
    }

    /// Only checkpoints of this format.
    pub(crate) fn only(mut self, format: Format) -> Self {
        self.format = format;
        self
    }

    /// The engine that computes; the first one in this build by default.
    pub fn with_backend(mut self, backend: BackendKind) -> Self {
        self.backend = Some(backend);
        self
    }

    /// Where to compute; the fastest device by default.
    pub fn with_device(mut self, device: Device) -> Self {
        self.device = device;
        self
    }

    /// Element type of activations; the checkpoint's on a GPU and `F32` on a processor by default.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// How keys and values are kept: in 8 bits ([`KvType::Q8`]) they take a little more than half the
    /// memory of half precision, in 4 a third, so that longer and more sequences fit. Attention is a
    /// little less exact then, in 4 bits noticeably. A draft model's are kept as ever.
    pub fn with_kv_type(mut self, kv_type: KvType) -> Self {
        self.kv_type = kv_type;
        self
    }

    /// Longest sequence in tokens; what the model was made for by default.
    pub fn with_context_length(mut self, tokens: usize) -> Self {
        self.context_length = Some(tokens);
        self
    }

    /// Quantizes the weights while they are loaded, into this form; embeddings and head into a finer
    /// one of the same family. What is stored in as coarse a form already stays as it is.
    pub fn with_isq(mut self, isq: IsqType) -> Self {
        self.isq.default = Some(isq);
        self
    }

    /// Another form for the weights whose Hugging Face names match, as `lm_head=Q8_0` or
    /// `layers.0=none`; of several the last that matches counts. A pattern that matches no weight
    /// is an error when the model is built.
    pub fn with_isq_override(mut self, exception: IsqOverride) -> Self {
        self.isq.overrides.push(exception);
        self
    }

    /// Computes layer by layer on a backend that is lazy: slower, but errors come where they arise.
    pub fn with_eager_evaluation(mut self, eager: bool) -> Self {
        self.eager = eager;
        self
    }

    /// Multiplies by a small matrix of every form before loading, and compares with plain `f32`
    /// arithmetic: an error where this machine's kernels are wrong.
    pub fn with_self_check(mut self, check: bool) -> Self {
        self.self_check = check;
        self
    }

    /// Multiplies quantized weights in the activations' own type. Without it candle's processor rounds
    /// activations to 8 bits there, which is several times faster.
    pub fn with_exact(mut self, exact: bool) -> Self {
        self.exact = exact;
        self
    }

    /// A chat template (Jinja) to use instead of the model's own.
    pub fn with_chat_template_literal(mut self, template: impl Into<String>) -> Self {
        self.chat_template = Some(GivenTemplate::Literal(template.into()));
        self
    }

    /// A file of a chat template (Jinja) to use instead of the model's own.
    pub fn with_chat_template(mut self, file: impl Into<PathBuf>) -> Self {
        self.chat_template = Some(GivenTemplate::File(file.into()));
        self
    }

    /// A `tokenizer.json` to use instead of the model's own tokenizer; `tokenizer_config.json` beside
    /// it counts too.
    pub fn with_tokenizer_json(mut self, file: impl Into<PathBuf>) -> Self {
        self.tokenizer_json = Some(file.into());
        self
    }

    /// The branch, tag or commit of a model on the hub; the newest by default.
    pub fn with_hf_revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = Some(revision.into());
        self
    }

    /// Where the hub's token comes from; the hub's usual places by default.
    pub fn with_token_source(mut self, source: TokenSource) -> Self {
        self.token = Some(source);
        self
    }

    /// The folder that keeps the hub's models; the hub's usual one by default.
    pub fn from_hf_cache_path(mut self, folder: impl Into<PathBuf>) -> Self {
        self.hub.cache_dir = Some(folder.into());
        self
    }

    /// [`EngineConfig::max_sequences`].
    pub fn with_max_num_seqs(mut self, most: usize) -> Self {
        self.engine.max_sequences = most;
        self
    }

    /// Keeps what was computed of so many requests for later ones that begin alike; `None` for
    /// nothing. As many as the memory takes by default.
    pub fn with_prefix_cache_n(mut self, most: Option<usize>) -> Self {
        self.engine.prefix_cache = most.is_some_and(|most| most > 0);
        self.engine.kept_prefixes = most;
        self
    }

    /// How the model calls tools; what its chat template says by default. A template that writes
    /// calls otherwise, or says nothing of tools, is helped out by instructions in the system's
    /// message.
    pub fn with_tool_format(mut self, format: ToolFormat) -> Self {
        self.tool_format = Some(format);
        self
    }

    /// Tools that the model may call, and that are run for it by
    /// [`Model::send_chat_request`](crate::Model::send_chat_request) and
    /// [`Model::stream_chat_request`](crate::Model::stream_chat_request). One that cannot be is an error when the model is built.
    pub fn with_tools(mut self, tools: impl IntoIterator<Item = Tool>) -> Self {
        self.tools.extend(tools);
        self
    }

    /// Runs the calls of a tool that requests define themselves.
    pub fn with_tool_callback(
        mut self,
        name: impl Into<String>,
        callback: Arc<ToolCallback>,
    ) -> Self {
        self.callbacks.push((name.into(), callback));
        self
    }

    /// A tool, and what runs its calls.
    pub fn with_tool_callback_and_tool(
        self,
        callback: Arc<ToolCallback>,
        definition: ToolDefinition,
    ) -> Self {
        self.with_tools([Tool::of_callback(definition, callback)])
    }

    /// How tools are run.
    pub fn with_tool_config(mut self, config: ToolConfig) -> Self {
        self.tool_config = config;
        self
    }

    /// MCP servers, which are connected once the model is loaded, and whose tools are run for it as
    /// those of [`with_tools`](Self::with_tools). One that cannot be reached is no error: see
    /// [`Model::mcp`](crate::Model::mcp).
    #[cfg(feature = "mcp")]
    pub fn with_mcp_config(mut self, config: crate::McpConfig) -> Self {
        self.mcp = Some(config);
        self
    }

    /// How the model serves many requests at once.
    pub fn with_engine(mut self, config: EngineConfig) -> Self {
        self.engine = config;
        self
    }

    pub(crate) fn asked_context(&self) -> Option<usize> {
        self.context_length
    }

    pub(crate) fn given_template(&self) -> Option<&GivenTemplate> {
        self.chat_template.as_ref()
    }

    pub(crate) fn given_tokenizer(&self) -> Option<&std::path::Path> {
        self.tokenizer_json.as_deref()
    }

    pub(crate) fn given_tool_format(&self) -> Option<ToolFormat> {
        self.tool_format
    }

    /// Never asks the hub: a model that is not here already is an error.
    pub fn offline(mut self) -> Self {
        self.hub.offline = true;
        self
    }

    /// Writes the log to standard error, as the environment variable `BIPLANE_LOG` filters it (`info`
    /// by default), unless the program has a subscriber of its own.
    pub fn with_logging(self) -> Self {
        let filter = tracing_subscriber::EnvFilter::try_from_env("BIPLANE_LOG")
            .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,hyper=warn,hf_hub=off"));
        let _ = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_target(false)
            .compact()
            .try_init();
        self
    }

    /// Is told how far downloading and loading have come, from any thread.
    pub fn with_progress(mut self, f: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(f);
        self
    }
}

impl std::fmt::Debug for ModelBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelBuilder")
            .field("source", &self.source)
            .field("backend", &self.backend)
            .field("device", &self.device)
            .finish_non_exhaustive()
    }
}
