//! From a builder to a model.

use std::{path::PathBuf, sync::Arc};

use biplane_models::{
    Isq, ModelRunner,
    checkpoint::{self, Metadata, Opened},
};
use tokio::sync::oneshot;

use super::{Format, ModelBuilder, Progress, Source};
use crate::{
    BackendKind, Error, Model, Result, ToolLoop,
    backends::{self, RunnerSpec},
    engine::{Engine, Guess, Setup, Vocabulary},
    hub,
    source::{GivenTemplate, at_revision},
    texts::{Texts, find_template},
    tokenizer::Tokenizer,
    tools::ToolBox,
};

impl ModelBuilder {
    /// Downloads where needed, loads, and starts the model's thread.
    ///
    /// # Errors
    /// Whatever is wrong with the model, named.
    pub async fn build(self) -> Result<Model> {
        tokio::task::spawn_blocking(move || self.build_blocking())
            .await
            .map_err(|e| Error::Stopped(format!("loading: {e}")))?
    }

    /// As [`Self::build`], on the calling thread. Not to be called from async code.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_blocking(self) -> Result<Model> {
        let tools = self.tool_loop()?;
        #[cfg(feature = "mcp")]
        if let Some(config) = &self.mcp {
            config.validate().map_err(crate::mcp::McpError::from)?;
        }
        let opened = self.open()?;
        let spec = self.spec(&opened, self.backend)?;
        let backend = spec.backend;
        let draft = self.draft()?;
        let (send_vocabulary, vocabulary) = oneshot::channel();
        let loading = Engine::start(Setup {
            spec,
            config: self.engine.clone(),
            draft,
            vocabulary,
        })?;
        // The tokenizer is made here while the weights load there; on an error the sender is dropped,
        // and the thread ends by itself.
        let texts = Texts::read_with(&opened, self.tokenizer_json.as_deref())?;
        let tokenizer = Arc::new(texts.tokenizer);
        let given = self.chat_template.as_ref().map(GivenTemplate::source);
        let template = find_template(&opened, given.transpose()?, &tokenizer)?;
        let _ = send_vocabulary.send(Vocabulary {
            tokenizer: Arc::clone(&tokenizer),
            stop_ids: texts.stop_ids.iter().copied().collect(),
        });
        let engine = loading
            .blocking_recv()
            .map_err(|_| Error::Stopped("loading was interrupted".into()))??;
        let (tokens, rows) = (tokenizer.vocab_size(), engine.info.vocab_size);
        if let (Some(path), true) = (&self.tokenizer_json, tokens > rows) {
            return Err(Error::Request(format!(
                "{} has {tokens} tokens, but the model knows {rows}: it is another model's",
                path.display()
            )));
        }
        let model = Model::new(
            engine,
            tokenizer,
            texts.stop_ids,
            template,
            self.tool_format,
            texts.sampling,
            backend,
        );
        #[cfg(feature = "mcp")]
        if let Some(config) = self.mcp.filter(|config| !config.servers.is_empty()) {
            let client = crate::McpClient::start_with(config, tools.tools.clone())?;
            futures::executor::block_on(client.settled());
            return Ok(model.with_tool_loop(tools).with_mcp(client));
        }
        Ok(model.with_tool_loop(tools))
    }

    /// The bare model on the calling thread, without tokenizer and engine: for tools that look at
    /// logits.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_runner(self) -> Result<Box<dyn ModelRunner>> {
        let opened = self.open()?;
        backends::load(&self.spec(&opened, self.backend)?)
    }

    /// The bare model on several backends, or on the chosen one, and its tokenizer.
    pub(crate) fn build_runners(
        self,
        on: &[BackendKind],
    ) -> Result<(Vec<Box<dyn ModelRunner>>, Tokenizer)> {
        let opened = self.open()?;
        let tokenizer = Texts::read(&opened)?.tokenizer;
        let chosen: Vec<_> = match on {
            [] => vec![self.backend],
            on => on.iter().copied().map(Some).collect(),
        };
        let load = |backend| backends::load(&self.spec(&opened, backend)?);
        let runners = chosen.into_iter().map(load).collect::<Result<_>>()?;
        Ok((runners, tokenizer))
    }

    /// Finds the files and checks them.
    pub(crate) fn open(&self) -> Result<Arc<Opened>> {
        let path = self.locate()?;
        let opened = checkpoint::open(&path)?;
        let gguf = matches!(opened.metadata, Metadata::Gguf(_));
        match (self.format, gguf) {
            (Format::Gguf, false) => Err(Error::Request(format!(
                "{} is no GGUF file; use ModelBuilder, or TextModelBuilder for Hugging Face directories",
                path.display()
            ))),
            (Format::Directory, true) => Err(Error::Request(format!(
                "{} is a GGUF file; use ModelBuilder or GgufModelBuilder",
                path.display()
            ))),
            _ => Ok(Arc::new(opened)),
        }
    }

    /// What to quantize.
    pub(crate) fn isq(&self) -> &Isq {
        &self.isq
    }

    fn spec(&self, opened: &Arc<Opened>, backend: Option<BackendKind>) -> Result<RunnerSpec> {
        let total = opened.checkpoint.size_in_bytes() as u64;
        let progress = Arc::clone(&self.progress);
        Ok(RunnerSpec {
            backend: match backend {
                Some(backend) => backend,
                None => BackendKind::default_here()?,
            },
            device: self.device,
            dtype: self.dtype,
            kv_type: self.kv_type,
            context_length: self.context_length,
            isq: self.isq.clone(),
            eager: self.eager,
            self_check: self.self_check,
            exact: self.exact,
            opened: Arc::clone(opened),
            progress: Arc::new(move |done| {
                progress(Progress {
                    task: "loading weights",
                    done: done as u64,
                    total,
                });
            }),
        })
    }

    /// The smaller model that guesses, where there is one: loaded as this one is, but for quantization.
    fn draft(&self) -> Result<Option<RunnerSpec>> {
        let Some(Guess::Draft(name)) = self.engine.speculation.as_ref().map(|s| &s.from) else {
            return Ok(None);
        };
        let mut builder = ModelBuilder::new(name.as_str()).with_device(self.device);
        builder.backend = self.backend;
        builder.dtype = self.dtype;
        builder.hub = self.hub.clone();
        builder.token = self.token.clone();
        builder.progress = Arc::clone(&self.progress);
        let opened = builder.open()?;
        builder.spec(&opened, self.backend).map(Some)
    }

    /// Tells the reader of [`Self::with_progress`].
    pub(crate) fn report(&self, progress: Progress<'_>) {
        (self.progress)(progress);
    }

    fn locate(&self) -> Result<PathBuf> {
        let mut progress = |p: hub::Progress<'_>| {
            self.report(Progress {
                task: p.file,
                done: p.done,
                total: p.total,
            });
        };
        let mut options = self.hub.clone();
        if let Some(source) = &self.token {
            options.token = source.token()?;
        }
        Ok(match (&self.source, &self.revision) {
            (Source::Starter, None) => hub::starter(&mut progress)?,
            (Source::Spec(spec), None) => hub::resolve(spec, &options, &mut progress)?,
            (Source::Spec(spec), Some(revision)) => {
                let spec = at_revision(spec, revision)?;
                hub::resolve(&spec, &options, &mut progress)?
            }
            (Source::Starter, Some(revision)) => {
                return Err(Error::Request(format!(
                    "the starter model has no revision {revision:?}; leave out with_hf_revision"
                )));
            }
        })
    }

    fn tool_loop(&self) -> Result<ToolLoop> {
        let tools = ToolBox::new();
        for tool in &self.tools {
            tools.add(tool.clone())?;
        }
        for (name, callback) in &self.callbacks {
            tools.add_callback(name.as_str(), Arc::clone(callback))?;
        }
        Ok(ToolLoop::new(tools, self.tool_config.clone()))
    }
}
