//! A loaded model and the builder that makes one.

use std::{path::PathBuf, sync::Arc};

use biplane_backend::{DType, Device};
use biplane_models::{
    Isq, IsqOverride, IsqType, ModelInfo, ModelRunner,
    checkpoint::{self, Opened},
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    BackendKind, Error, Event, Request, Response, Result, SamplingParams,
    backends::{self, RunnerSpec},
    engine::{Engine, Vocabulary},
    hub,
    template::{self, ChatTemplate, Message},
    texts::{Texts, find_template, guard},
    tokenizer::{Specials, Tokenizer},
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
#[derive(Clone)]
enum Source {
    Starter,
    Spec(String),
}

/// Chooses a model and how to run it.
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
    backend: Option<BackendKind>,
    device: Device,
    dtype: Option<DType>,
    context_length: Option<usize>,
    isq: Isq,
    eager: bool,
    chat_template: Option<String>,
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
            backend: None,
            device: Device::Auto,
            dtype: None,
            context_length: None,
            isq: Isq::default(),
            eager: false,
            chat_template: None,
            progress: Arc::new(|_| {}),
        }
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

    /// A chat template (Jinja) to use instead of the model's own.
    pub fn with_chat_template_literal(mut self, template: impl Into<String>) -> Self {
        self.chat_template = Some(template.into());
        self
    }

    /// Is told how far downloading and loading have come, from any thread.
    pub fn with_progress(mut self, f: impl Fn(Progress<'_>) + Send + Sync + 'static) -> Self {
        self.progress = Arc::new(f);
        self
    }

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
        let opened = Arc::new(checkpoint::open(&self.locate()?)?);
        let spec = self.spec(&opened)?;
        let backend = spec.backend;
        let (send_vocabulary, vocabulary) = oneshot::channel();
        let loading = Engine::start(spec, vocabulary)?;
        // The tokenizer is made here while the weights load there; on an error the sender is dropped,
        // and the thread ends by itself.
        let texts = Texts::read(&opened)?;
        let tokenizer = Arc::new(texts.tokenizer);
        let template = find_template(&opened, self.chat_template.as_deref(), &tokenizer)?;
        let _ = send_vocabulary.send(Vocabulary {
            tokenizer: Arc::clone(&tokenizer),
            stop_ids: texts.stop_ids.into_iter().collect(),
        });
        let engine = loading
            .blocking_recv()
            .map_err(|_| Error::Stopped("loading was interrupted".into()))??;
        Ok(Model {
            inner: Arc::new(Inner {
                engine,
                tokenizer,
                template,
                sampling: texts.sampling,
                backend,
            }),
        })
    }

    /// The bare model on the calling thread, without tokenizer and engine: for tools that look at
    /// logits.
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn build_runner(self) -> Result<Box<dyn ModelRunner>> {
        let opened = Arc::new(checkpoint::open(&self.locate()?)?);
        backends::load(&self.spec(&opened)?)
    }

    fn spec(&self, opened: &Arc<Opened>) -> Result<RunnerSpec> {
        let total = opened.checkpoint.size_in_bytes() as u64;
        let progress = Arc::clone(&self.progress);
        Ok(RunnerSpec {
            backend: match self.backend {
                Some(backend) => backend,
                None => BackendKind::default_here()?,
            },
            device: self.device,
            dtype: self.dtype,
            context_length: self.context_length,
            isq: self.isq.clone(),
            eager: self.eager,
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

    fn locate(&self) -> Result<PathBuf> {
        let mut progress = |p: hub::Progress<'_>| {
            (self.progress)(Progress {
                task: p.file,
                done: p.done,
                total: p.total,
            });
        };
        Ok(match &self.source {
            Source::Starter => hub::starter(&mut progress)?,
            Source::Spec(spec) => hub::resolve(spec, &hub::Options::default(), &mut progress)?,
        })
    }
}

/// A loaded model. Cheap to clone; all clones share one engine thread, which ends with the last.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    template: Result<ChatTemplate, Arc<template::Error>>,
    sampling: SamplingParams,
    backend: BackendKind,
}

impl Model {
    /// What is known of the model.
    pub fn info(&self) -> &ModelInfo {
        &self.inner.engine.info
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.inner.tokenizer
    }

    /// Threads that compute on the processor.
    pub fn threads(&self) -> usize {
        backends::threads(self.inner.backend)
    }

    /// What the checkpoint recommends for sampling; greedy where it says nothing.
    pub fn default_sampling(&self) -> SamplingParams {
        self.inner.sampling
    }

    /// The tokens of a text to continue, with a beginning-of-sequence token where the model wants one.
    /// Names of control tokens in it are control tokens.
    ///
    /// # Errors
    /// [`Error::Tokenizer`].
    pub fn prompt_tokens(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self
            .inner
            .tokenizer
            .encode_with_bos(text, Specials::Parse)?)
    }

    /// The tokens of a conversation in the model's own chat template, ready for an answer. Names of
    /// control tokens in the messages stay text.
    ///
    /// # Errors
    /// [`Error::Template`] for a model without a template or a conversation that it refuses.
    pub fn chat_tokens(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let template = match &self.inner.template {
            Ok(template) => template,
            Err(error) => return Err(Error::Template(Arc::clone(error))),
        };
        let tokenizer = &self.inner.tokenizer;
        let guarded = messages
            .iter()
            .map(|message| guard(serde_json::to_value(message).unwrap_or_default(), tokenizer))
            .collect::<Result<Vec<_>>>()?;
        let options = template::Options {
            add_generation_prompt: true,
            ..template::Options::default()
        };
        let text = template.render(&guarded, &options)?;
        Ok(tokenizer.encode_with_bos(&text, Specials::Guarded)?)
    }

    /// Starts a request; its events come through the channel, and dropping that cancels it.
    ///
    /// # Errors
    /// [`Error::Stopped`] when the engine's thread is gone.
    pub fn submit(&self, request: Request) -> Result<mpsc::Receiver<Event>> {
        self.inner.engine.submit(request)
    }

    /// Continues a text.
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn generate(&self, prompt: &str) -> Result<Response> {
        self.answer(self.prompt_tokens(prompt)?).await
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn chat(&self, messages: &[Message]) -> Result<Response> {
        self.answer(self.chat_tokens(messages)?).await
    }

    async fn answer(&self, tokens: Vec<u32>) -> Result<Response> {
        let mut events = self.submit(Request {
            tokens,
            sampling: self.inner.sampling,
            max_tokens: None,
            ignore_eos: false,
        })?;
        let (mut text, mut ids) = (String::new(), Vec::new());
        while let Some(event) = events.recv().await {
            match event {
                Event::Token { id, text: piece } => {
                    ids.push(id);
                    text.push_str(&piece);
                }
                Event::Done {
                    text: rest,
                    reason,
                    timings,
                } => {
                    text.push_str(&rest);
                    let rate = match timings.decode_tokens_per_second() {
                        0.0 => timings.prompt_tokens_per_second(),
                        rate => rate,
                    };
                    return Ok(Response {
                        text,
                        tokens: ids,
                        finish_reason: reason,
                        tokens_per_second: rate,
                        timings,
                    });
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(Error::Stopped("its thread ended during the request".into()))
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("info", self.info())
            .finish_non_exhaustive()
    }
}
