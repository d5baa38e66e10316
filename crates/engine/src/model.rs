//! A loaded model.

use std::{
    any::Any,
    sync::{Arc, OnceLock},
};

use biplane_models::ModelInfo;
use tokio::sync::mpsc;

use crate::{
    BackendKind, ChatRequest, Dry, Error, Event, Metrics, Pooling, Request, Response, Result,
    SamplingChanges, SamplingParams, ToolLoop, backends,
    engine::Engine,
    grammar::{self, GrammarEngine},
    memory, sampling,
    template::{self, ChatTemplate, Message},
    tokenizer::{Specials, Tokenizer},
    tools::{Tool, ToolBox, ToolFormat},
};

/// A loaded model. Cheap to clone; all clones share one engine thread, which ends with the last.
#[derive(Clone)]
pub struct Model {
    inner: Arc<Inner>,
    tools: ToolLoop,
    #[cfg(feature = "mcp")]
    mcp: Option<crate::McpClient>,
    /// The last field, so that it is dropped when the rest of the handle is gone.
    kept: Option<Arc<dyn Any + Send + Sync>>,
}

struct Inner {
    engine: Engine,
    tokenizer: Arc<Tokenizer>,
    template: Result<ChatTemplate, Arc<template::Error>>,
    tool_format: Option<ToolFormat>,
    sampling: SamplingParams,
    backend: BackendKind,
    stop_ids: Vec<u32>,
    /// Made when the first constraint comes.
    grammars: OnceLock<Result<GrammarEngine, grammar::Error>>,
}

impl Model {
    pub(crate) fn new(
        engine: Engine,
        tokenizer: Arc<Tokenizer>,
        stop_ids: Vec<u32>,
        template: Result<ChatTemplate, Arc<template::Error>>,
        tool_format: Option<ToolFormat>,
        sampling: SamplingParams,
        backend: BackendKind,
    ) -> Self {
        Model {
            inner: Arc::new(Inner {
                engine,
                tokenizer,
                template,
                tool_format,
                sampling,
                backend,
                stop_ids,
                grammars: OnceLock::new(),
            }),
            tools: ToolLoop::default(),
            #[cfg(feature = "mcp")]
            mcp: None,
            kept: None,
        }
    }

    #[cfg(feature = "mcp")]
    pub(crate) fn with_mcp(mut self, mcp: crate::McpClient) -> Self {
        self.mcp = Some(mcp);
        self
    }

    /// The MCP servers that the model was built with.
    #[cfg(feature = "mcp")]
    pub fn mcp(&self) -> Option<&crate::McpClient> {
        self.mcp.as_ref()
    }

    /// Runs tools as this says, in place of what the model ran before: of this handle and its
    /// clones, not of those made earlier.
    pub fn with_tool_loop(mut self, tools: ToolLoop) -> Self {
        self.tools = tools;
        self
    }

    /// As [`with_tool_loop`](Self::with_tool_loop), with these tools in place of those before.
    ///
    /// # Errors
    /// As [`ToolBox::add`].
    pub fn with_tools(self, tools: impl IntoIterator<Item = Tool>) -> Result<Self> {
        let tool_box = ToolBox::new();
        tools.into_iter().try_for_each(|tool| tool_box.add(tool))?;
        let config = self.tools.config.clone();
        Ok(self.with_tool_loop(ToolLoop::new(tool_box, config)))
    }

    /// The tools that [`stream_chat_request`](Self::stream_chat_request) runs, and how. To add one
    /// for all clones: `model.tools().tools.add(..)`.
    pub fn tools(&self) -> &ToolLoop {
        &self.tools
    }

    /// Keeps something until this handle and the clones made of it are gone: whoever lends a model out
    /// knows by that when it is given back.
    pub fn keeping(mut self, kept: Arc<dyn Any + Send + Sync>) -> Self {
        self.kept = Some(kept);
        self
    }

    /// Whether the model answers: true until its thread has ended by a fault.
    pub fn is_loaded(&self) -> bool {
        self.inner.engine.is_alive()
    }

    /// Waits until the engine has ended, and all it writes is written (a prompt cache, a recording);
    /// at once where a clone keeps the model. Streams under way come to their end first.
    pub async fn close(self) {
        if let Some(inner) = Arc::into_inner(self.inner) {
            inner.engine.close().await;
        }
    }

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
        self.inner.sampling.clone()
    }

    /// The same with changes.
    ///
    /// # Errors
    /// [`Error::Request`] for texts in `dry_breakers` that are empty, or without `dry`;
    /// [`Error::Tokenizer`] when the tokenizer's own rules fail on one.
    pub fn sampling(&self, changes: &SamplingChanges) -> Result<SamplingParams> {
        let mut params = changes.apply(self.default_sampling());
        let texts = changes.dry_breakers.as_deref().unwrap_or_default();
        if texts.iter().any(String::is_empty) {
            return Err(Error::Request(
                "dry_sequence_breakers: one is an empty text, expected at least a character".into(),
            ));
        }
        match &mut params.dry {
            Some(dry) if dry.multiplier > 0.0 => {
                for text in texts {
                    let more = Dry::breakers(self.tokenizer(), text)?;
                    dry.sequence_breakers.extend(more);
                }
            }
            None if !texts.is_empty() => {
                return Err(Error::Request(
                    "dry_sequence_breakers are there, but no dry; set dry as well".into(),
                ));
            }
            _ => {}
        }
        Ok(params)
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
        let chat = ChatRequest::new(messages);
        Ok(self.prepare_chat(chat)?.request.tokens)
    }

    pub(crate) fn template(&self) -> Result<&ChatTemplate> {
        let template = self.inner.template.as_ref();
        template.map_err(|error| Error::Template(Arc::clone(error)))
    }

    pub(crate) fn chosen_tool_format(&self) -> Option<ToolFormat> {
        self.inner.tool_format
    }

    /// Starts a request; its events come through the channel, and dropping that cancels it. A
    /// constraint is compiled here first, which takes up to two seconds for a large one. A request
    /// without a seed gets one.
    ///
    /// # Errors
    /// [`Error::Request`] for a request that cannot be, [`Error::Grammar`] for a constraint that cannot
    /// be kept, [`Error::Busy`] when too many wait already, [`Error::Stopped`] when the engine's thread
    /// is gone.
    pub fn submit(&self, mut request: Request) -> Result<mpsc::Receiver<Event>> {
        request.validate()?;
        request.sampling.seed.get_or_insert_with(sampling::entropy);
        let grammar = match &request.constraint {
            Some(constraint) => Some(self.grammars()?.state(constraint)?),
            None => None,
        };
        self.inner.engine.submit(request, grammar)
    }

    /// Prepares the vocabulary for constraints, which the first of them waits for otherwise: about a
    /// second for 262,144 tokens.
    ///
    /// # Errors
    /// [`Error::Grammar`] for a vocabulary that cannot be constrained.
    pub fn prepare_constraints(&self) -> Result<()> {
        self.grammars().map(|_| ())
    }

    fn grammars(&self) -> Result<&GrammarEngine> {
        let inner = &self.inner;
        let made = inner.grammars.get_or_init(|| {
            let width = inner.engine.info.vocab_size;
            let made = GrammarEngine::new(Arc::clone(&inner.tokenizer), &inner.stop_ids, width);
            // Its tables are made of larger ones.
            memory::give_back();
            made
        });
        made.as_ref().map_err(|error| error.clone().into())
    }

    /// Computes a request to its end.
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn complete(&self, request: Request) -> Result<Response> {
        let model = self.clone();
        let events = match request.constraint {
            // Compiling must not hold up the caller's other tasks.
            Some(_) => tokio::task::spawn_blocking(move || model.submit(request))
                .await
                .map_err(|e| Error::Stopped(format!("compiling the constraint: {e}")))?,
            None => self.submit(request),
        };
        Response::collect(events?).await
    }

    /// Continues a text.
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn generate(&self, prompt: &str) -> Result<Response> {
        self.answer(Request::new(self.prompt_tokens(prompt)?)).await
    }

    /// Answers a conversation.
    ///
    /// # Errors
    /// Whatever the request fails with.
    pub async fn chat(&self, messages: &[Message]) -> Result<Response> {
        self.answer(Request {
            continues: false,
            ..Request::new(self.chat_tokens(messages)?)
        })
        .await
    }

    async fn answer(&self, request: Request) -> Result<Response> {
        self.complete(Request {
            sampling: self.default_sampling(),
            ..request
        })
        .await
    }

    /// Vectors of texts, of length 1: the more alike, the larger their product.
    ///
    /// # Errors
    /// Whatever a text fails with.
    pub async fn embed(
        &self,
        texts: &[impl AsRef<str>],
        pooling: Pooling,
    ) -> Result<Vec<Vec<f32>>> {
        let tokens = texts.iter().map(|text| self.prompt_tokens(text.as_ref()));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_>>()?;
        self.embed_tokens(&tokens, pooling).await
    }

    /// As [`Model::embed`], of texts that are tokens already.
    ///
    /// # Errors
    /// Whatever a text fails with.
    pub async fn embed_tokens(
        &self,
        texts: &[Vec<u32>],
        pooling: Pooling,
    ) -> Result<Vec<Vec<f32>>> {
        let mut replies = Vec::with_capacity(texts.len());
        for tokens in texts {
            replies.push(self.inner.engine.embed(tokens.clone(), pooling)?);
        }
        let mut vectors = Vec::with_capacity(texts.len());
        for reply in replies {
            let gone = || Error::Stopped("its thread ended during the request".into());
            vectors.push(reply.await.map_err(|_| gone())??);
        }
        Ok(vectors)
    }

    /// The engine's figures.
    pub fn metrics(&self) -> Metrics {
        self.inner.engine.metrics()
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model")
            .field("info", self.info())
            .finish_non_exhaustive()
    }
}
