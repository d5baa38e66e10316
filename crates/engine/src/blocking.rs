//! The library without async: the same model, each call waiting for its end.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::{
    ChatEvent, ChatRequest, ChatResponse, ChatStream, Error, ModelBuilder, Pooling, Response,
    Result,
};

/// A model whose calls wait. Not for async code, where every call is an error.
///
/// ```no_run
/// # fn main() -> biplane::Result<()> {
/// use biplane::{ModelBuilder, blocking};
///
/// let model = blocking::Model::load(ModelBuilder::starter())?;
/// println!("{}", model.chat("Why is the sky blue?")?.text);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Model {
    model: crate::Model,
    clock: Arc<Clock>,
}

/// The runtime, for what needs one: it must not be dropped where it would wait.
#[derive(Debug)]
struct Clock(Option<Runtime>);

impl Clock {
    fn wait<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        if Handle::try_current().is_ok() {
            return Err(Error::Unsupported(
                "biplane::blocking cannot wait within async code; use biplane::Model there".into(),
            ));
        }
        match &self.0 {
            Some(runtime) => runtime.block_on(work),
            None => Err(Error::Stopped("its runtime is gone".into())),
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Model {
    /// Downloads where needed, and loads.
    ///
    /// # Errors
    /// As [`ModelBuilder::build`].
    pub fn load(builder: ModelBuilder) -> Result<Self> {
        Self::new(builder.build_blocking()?)
    }

    /// The same model, its calls waiting.
    ///
    /// # Errors
    /// [`Error::Stopped`] where the system gives no threads.
    pub fn new(model: crate::Model) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .thread_name("biplane-blocking")
            .build()
            .map_err(|e| Error::Stopped(format!("no thread can be started: {e}")))?;
        Ok(Self {
            model,
            clock: Arc::new(Clock(Some(runtime))),
        })
    }

    /// The model, for what does not wait.
    pub fn inner(&self) -> &crate::Model {
        &self.model
    }

    /// As [`Model::generate`](crate::Model::generate).
    ///
    /// # Errors
    /// As there.
    pub fn generate(&self, prompt: &str) -> Result<Response> {
        self.clock.wait(self.model.generate(prompt))
    }

    /// As [`Model::send_chat_request`](crate::Model::send_chat_request).
    ///
    /// # Errors
    /// As there.
    pub fn chat(&self, request: impl Into<ChatRequest>) -> Result<ChatResponse> {
        self.clock.wait(self.model.send_chat_request(request))
    }

    /// As [`Model::stream_chat_request`](crate::Model::stream_chat_request).
    ///
    /// # Errors
    /// As there.
    pub fn stream(&self, request: impl Into<ChatRequest>) -> Result<Events> {
        let stream = self.clock.wait(self.model.stream_chat_request(request))?;
        Ok(Events {
            stream,
            clock: Arc::clone(&self.clock),
            failed: false,
        })
    }

    /// As [`Model::generate_structured`](crate::Model::generate_structured).
    ///
    /// # Errors
    /// As there.
    pub fn generate_structured<T: DeserializeOwned + JsonSchema>(
        &self,
        prompt: impl Into<ChatRequest>,
    ) -> Result<T> {
        self.clock.wait(self.model.generate_structured(prompt))
    }

    /// As [`Model::embed`](crate::Model::embed).
    ///
    /// # Errors
    /// As there.
    pub fn embed(&self, texts: &[impl AsRef<str>], pooling: Pooling) -> Result<Vec<Vec<f32>>> {
        self.clock.wait(self.model.embed(texts, pooling))
    }
}

/// An answer as it comes. Dropping it cancels.
#[derive(Debug)]
pub struct Events {
    stream: ChatStream,
    clock: Arc<Clock>,
    failed: bool,
}

impl Iterator for Events {
    type Item = ChatEvent;

    fn next(&mut self) -> Option<ChatEvent> {
        if self.failed {
            return None;
        }
        let next = async { Ok(self.stream.next().await) };
        self.clock.wait(next).unwrap_or_else(|error| {
            self.failed = true;
            Some(ChatEvent::Failed(error))
        })
    }
}
