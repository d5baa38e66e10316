//! What the server's tools do.

use std::sync::Arc;

use rmcp::model::{Tool, ToolAnnotations};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{McpModel, McpModels, session::Session};
use crate::{
    BackendKind, ChatEvent, ChatRequest, Event, Message, Model, ModelBuilder, Pooling, Request,
    SamplingChanges,
    evaluate::{self, VerifySettings},
    tools::{Delta, schema_of},
};

/// Tokens of an answer where nothing else is asked.
const TOKENS: usize = 1024;

/// What a tool gives, or what the caller is told.
pub(super) type Outcome = Result<Value, String>;

/// The tools, and what they work on.
pub(super) struct Tools {
    pub models: Arc<dyn McpModels>,
    /// What loads the model anew, for verification.
    pub builder: Option<ModelBuilder>,
    /// Verifying loads two more models: one at a time.
    pub verifying: Semaphore,
}

/// How to generate.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Chat {
    /// The conversation so far, ending with what is to be answered.
    messages: Vec<ChatLine>,
    /// The model to ask; see list_models.
    model: Option<String>,
    /// Most tokens of the answer; 1024 by default.
    max_tokens: Option<usize>,
    /// 0 for the most likely answer; what the model recommends by default.
    temperature: Option<f32>,
    /// The same seed gives the same answer.
    seed: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ChatLine {
    /// system, user or assistant.
    role: String,
    content: String,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Complete {
    /// The text to go on with.
    prompt: String,
    /// The model to ask; see list_models.
    model: Option<String>,
    /// Most tokens to add; 1024 by default.
    max_tokens: Option<usize>,
    /// 0 for the most likely text; what the model recommends by default.
    temperature: Option<f32>,
    /// The same seed gives the same text.
    seed: Option<u64>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Embed {
    texts: Vec<String>,
    /// The model to ask; see list_models.
    model: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tokenize {
    text: String,
    /// The model to ask; see list_models.
    model: Option<String>,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Verify {
    /// Tokens to generate after each of the prompts; 16 by default.
    generate: Option<usize>,
}

/// The tools for a client's list.
pub(super) fn list() -> Vec<Tool> {
    vec![
        tool::<Chat>("chat", "Answers a conversation."),
        tool::<Complete>("complete", "Goes on with a text."),
        tool::<Embed>(
            "embed",
            "Vectors of texts: the more alike, the larger their product.",
        ),
        tool::<Tokenize>("tokenize", "The model's tokens of a text."),
        tool::<Nothing>("list_models", "The models that are served."),
        tool::<Verify>(
            "verify_backends",
            "Runs the model on both engines, candle and MLX, and says how far they agree. Takes a while, \
             and the memory of two more models.",
        ),
    ]
}

fn tool<T: JsonSchema>(name: &'static str, description: &'static str) -> Tool {
    let schema = match schema_of::<T>() {
        Value::Object(schema) => schema,
        _ => serde_json::Map::new(),
    };
    let harmless = ToolAnnotations::new().read_only(true).open_world(false);
    Tool::new(name, description, Arc::new(schema)).with_annotations(harmless)
}

/// What is known of a model.
pub(super) fn card(model: &McpModel) -> Value {
    let Some(loaded) = &model.model else {
        return json!({"id": model.name, "loaded": false});
    };
    let info = loaded.info();
    json!({
        "id": model.name,
        "loaded": true,
        "architecture": info.architecture,
        "backend": info.backend,
        "device": format!("{:?}", info.device),
        "dtype": format!("{:?}", info.dtype),
        "context_length": info.context_length,
        "parameters": info.parameters,
        "vocab_size": info.vocab_size,
    })
}

impl Tools {
    /// Runs a tool; `None` where there is none of the name.
    pub async fn run(
        &self,
        name: &str,
        arguments: Value,
        session: &Session<'_>,
    ) -> Option<Outcome> {
        Some(match name {
            "chat" => match read(arguments) {
                Ok(chat) => self.chat(chat, session).await,
                Err(error) => Err(error),
            },
            "complete" => match read(arguments) {
                Ok(asked) => self.complete(asked, session).await,
                Err(error) => Err(error),
            },
            "embed" => match read(arguments) {
                Ok(asked) => self.embed(asked).await,
                Err(error) => Err(error),
            },
            "tokenize" => match read(arguments) {
                Ok(asked) => self.tokenize(asked).await,
                Err(error) => Err(error),
            },
            "list_models" => read::<Nothing>(arguments).map(|_| {
                let models: Vec<Value> = self.models.list().iter().map(card).collect();
                json!({"models": models})
            }),
            "verify_backends" => match read(arguments) {
                Ok(asked) => self.verify(asked).await,
                Err(error) => Err(error),
            },
            _ => return None,
        })
    }

    async fn embed(&self, asked: Embed) -> Outcome {
        let model = self.models.find(asked.model.as_deref()).await?;
        let vectors = model.embed(&asked.texts, Pooling::default()).await;
        let vectors = vectors.map_err(|e| e.to_string())?;
        Ok(json!({"embeddings": vectors}))
    }

    async fn tokenize(&self, asked: Tokenize) -> Outcome {
        let model = self.models.find(asked.model.as_deref()).await?;
        // A long text must not hold up the server's other tasks.
        let tokens = tokio::task::spawn_blocking(move || model.prompt_tokens(&asked.text)).await;
        let tokens = tokens.map_err(|e| e.to_string())?;
        let tokens = tokens.map_err(|e| e.to_string())?;
        Ok(json!({"tokens": tokens, "count": tokens.len()}))
    }

    async fn chat(&self, chat: Chat, session: &Session<'_>) -> Outcome {
        let model = self.models.find(chat.model.as_deref()).await?;
        let lines = chat.messages.into_iter();
        let messages: Vec<Message> = lines.map(|m| Message::new(m.role, m.content)).collect();
        let most = chat.max_tokens.unwrap_or(TOKENS);
        let request = ChatRequest {
            generation: Request {
                max_tokens: Some(most),
                ..Request::default()
            },
            sampling: Some(changes(chat.temperature, chat.seed)),
            ..ChatRequest::new(messages)
        };
        let started = model.stream_chat_request(request).await;
        let mut stream = started.map_err(|e| e.to_string())?;
        let mut text = String::new();
        let mut made = 0;
        let mut take = |deltas: Vec<Delta>| {
            for delta in deltas {
                if let Delta::Content(more) = delta {
                    text.push_str(&more);
                }
            }
        };
        while let Some(event) = stream.next().await {
            match event {
                ChatEvent::Token { deltas, .. } => {
                    take(deltas);
                    made += 1;
                    session.progress(made, most).await;
                }
                ChatEvent::Round { deltas } => take(deltas),
                ChatEvent::ToolResult(_) => {}
                ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                } => {
                    take(deltas);
                    return Ok(answer(text, &format!("{reason:?}"), &timings));
                }
                ChatEvent::Failed(error) => return Err(error.to_string()),
            }
        }
        Err("the answer had no end".into())
    }

    async fn complete(&self, asked: Complete, session: &Session<'_>) -> Outcome {
        let model = self.models.find(asked.model.as_deref()).await?;
        let most = asked.max_tokens.unwrap_or(TOKENS);
        let changes = changes(asked.temperature, asked.seed);
        let start = move || {
            let request = Request {
                max_tokens: Some(most),
                sampling: changes.apply(model.default_sampling()),
                ..Request::new(model.prompt_tokens(&asked.prompt)?)
            };
            model.submit(request)
        };
        let started = tokio::task::spawn_blocking(start).await;
        let started = started.map_err(|e| e.to_string())?;
        let mut events = started.map_err(|e| e.to_string())?;
        let mut text = String::new();
        let mut made = 0;
        while let Some(event) = events.recv().await {
            match event {
                Event::Prompt(_) => {}
                Event::Token { text: more, .. } => {
                    text.push_str(&more);
                    made += 1;
                    session.progress(made, most).await;
                }
                Event::Done {
                    text: rest,
                    reason,
                    timings,
                } => {
                    text.push_str(&rest);
                    return Ok(answer(text, &format!("{reason:?}"), &timings));
                }
                Event::Failed(error) => return Err(error.to_string()),
            }
        }
        Err("the answer had no end".into())
    }

    async fn verify(&self, asked: Verify) -> Outcome {
        let Some(builder) = self.builder.clone() else {
            return Err(
                "this server does not know where its model is from; use the program's \
                        `biplane verify`, or McpServer::with_verification"
                    .into(),
            );
        };
        let all: Vec<_> = BackendKind::compiled().collect();
        let Ok(backends) = <[BackendKind; 2]>::try_from(all) else {
            return Err("this build has one backend only; build with --features mlx".into());
        };
        let Ok(_permit) = self.verifying.try_acquire() else {
            return Err("another verification is under way; try again later".into());
        };
        let settings = VerifySettings {
            backends,
            generate: asked.generate.unwrap_or(16).clamp(1, 256),
            ..VerifySettings::default()
        };
        let work = tokio::task::spawn_blocking(move || evaluate::verify(builder, &settings)).await;
        let report = work.map_err(|e| format!("verifying failed: {e}"))?;
        let report = report.map_err(|e| e.to_string())?;
        serde_json::to_value(report).map_err(|e| e.to_string())
    }
}

/// A prompt in the form that the model's chat template gives it.
pub(super) async fn templated(model: &Model, messages: Vec<Message>) -> Result<String, String> {
    let model = model.clone();
    let render = move || model.prepare_chat(ChatRequest::new(messages));
    let prepared = tokio::task::spawn_blocking(render).await;
    let prepared = prepared.map_err(|e| e.to_string())?;
    Ok(prepared.map_err(|e| e.to_string())?.prompt)
}

fn changes(temperature: Option<f32>, seed: Option<u64>) -> SamplingChanges {
    SamplingChanges {
        temperature,
        seed,
        ..SamplingChanges::default()
    }
}

fn answer(text: String, finish: &str, timings: &crate::Timings) -> Value {
    json!({
        "text": text,
        "finish_reason": finish,
        "prompt_tokens": timings.prompt_tokens,
        "generated_tokens": timings.generated_tokens,
    })
}

fn read<T: DeserializeOwned>(arguments: Value) -> Result<T, String> {
    serde_json::from_value(arguments).map_err(|e| format!("the arguments are wrong: {e}"))
}
