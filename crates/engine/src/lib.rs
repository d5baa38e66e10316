//! Run language models on your own machine, from Rust, on two engines: candle (CPU, CUDA, Metal) and
//! Apple's MLX. The same model code runs on both; a Cargo feature brings an engine, and
//! [`ModelBuilder::with_backend`] chooses one.
//!
//! ```no_run
//! # async fn example() -> biplane::Result<()> {
//! use biplane::{Message, ModelBuilder};
//!
//! let model = ModelBuilder::starter().build().await?;
//! let answer = model.chat(&[Message::new("user", "Why is the sky blue?")]).await?;
//! println!("{} ({:.1} tokens/s)", answer.text, answer.tokens_per_second);
//! # Ok(())
//! # }
//! ```

mod backends;
pub mod bench;
pub mod blocking;
mod builder;
mod builders;
pub mod chat;
mod convert;
mod describe;
mod engine;
mod error;
pub mod evaluate;
mod files;
mod generation;
pub mod grammar;
pub mod hub;
#[cfg(feature = "mcp")]
pub mod mcp;
pub mod memory;
mod model;
mod replay;
mod sampling;
mod source;
pub mod stop;
pub mod template;
mod texts;
pub mod tokenizer;
pub mod tools;

pub use backends::{BackendKind, Kernels, kernels, set_threads, threads};
pub use biplane_backend::{DType, Device, Error as BackendError, KvFormat, KvType};
pub use biplane_models::{
    Converted, Error as ModelError, Isq, IsqOverride, IsqType, ModelInfo, ModelRunner,
    OutputFormat, SlotId, SpanOutput, SpanPlan, StepPlan, Want,
};
pub use builder::{ModelBuilder, Progress};
pub use builders::{
    GgufModelBuilder, MlxDevice, MlxModelBuilder, MlxSpecificConfig, TextModelBuilder,
};
pub use chat::{
    ChatEvent, ChatFinish, ChatMessage, ChatRequest, ChatResponse, ChatStream, OnToolError,
    PreparedChat, RequestBuilder, SamplingChanges, ToolConfig, ToolLoop, ToolRun,
};
pub use convert::{convert, remove_unfinished};
pub use describe::{Description, Outline, PromptMaker, RenderedPrompt};
pub use engine::{
    BUCKETS, EngineConfig, Guess, Histogram, Metrics, Pooling, Recorded, Speculation,
};
pub use error::{Error, Result};
pub use generation::{Event, FinishReason, Request, Response, Timings};
pub use grammar::Constraint;
#[cfg(feature = "mcp")]
pub use mcp::{McpClient, McpConfig, McpServer};
pub use model::Model;
pub use replay::{Replayed, replay};
pub use sampling::{Choice, Dry, Sampler, SamplingParams, TokenLogprobs, TokenMask, logprobs};
pub use schemars;
pub use source::TokenSource;
pub use template::Message;
pub use tools::{
    CalledFunction, Tool, ToolBox, ToolCall, ToolCallback, ToolChoice, ToolDefinition,
};
