//! A loaded model.

use std::sync::Arc;

use biplane_models::ModelInfo;
use tokio::sync::mpsc;

use crate::{
    BackendKind, Error, Event, Request, Response, Result, SamplingParams, backends,
    engine::Engine,
    template::{self, ChatTemplate, Message},
    texts::guard,
    tokenizer::{Specials, Tokenizer},
};

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
    pub(crate) fn new(
        engine: Engine,
        tokenizer: Arc<Tokenizer>,
        template: Result<ChatTemplate, Arc<template::Error>>,
        sampling: SamplingParams,
        backend: BackendKind,
    ) -> Self {
        Model {
            inner: Arc::new(Inner {
                engine,
                tokenizer,
                template,
                sampling,
                backend,
            }),
        }
    }

    /// Whether the model answers: true until its thread has ended by a fault.
    pub fn is_loaded(&self) -> bool {
        self.inner.engine.is_alive()
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
        // In the template's own form first: what is decoded or joined later would not be guarded.
        let guarded = template
            .prepare(messages)?
            .into_iter()
            .map(|message| guard(message, tokenizer))
            .collect::<Result<Vec<_>>>()?;
        let options = template::Options {
            add_generation_prompt: true,
            ..template::Options::default()
        };
        let text = template.render_as_is(&guarded, &options)?;
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
            sampling: self.inner.sampling.clone(),
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
