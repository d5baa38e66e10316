//! What the server's tools do.

use std::sync::Arc;

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock, Implementation,
        ListResourcesResult, ListToolsResult, PaginatedRequestParams, ProgressNotificationParam,
        ReadResourceRequestParams, ReadResourceResponse, ReadResourceResult, Resource,
        ResourceContents, ServerCapabilities, ServerConfig, Tool,
    },
    service::RequestContext,
};
use schemars::JsonSchema;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    ChatEvent, ChatRequest, Event, Message, Model, Pooling, Request, Result, SamplingChanges,
    tools::{Delta, schema_of},
};

const CARD: &str = "biplane://model";

/// Tokens of an answer where nothing else is asked.
const TOKENS: usize = 1024;

#[derive(Clone, Debug)]
pub(super) struct Handler {
    model: Model,
    pub name: String,
}

/// How to generate.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Chat {
    /// The conversation so far, ending with what is to be answered.
    messages: Vec<ChatLine>,
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
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Tokenize {
    text: String,
}

#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Handler {
    pub fn new(model: Model, name: String) -> Self {
        Handler { model, name }
    }

    fn card(&self) -> Value {
        let info = self.model.info();
        json!({
            "id": self.name,
            "architecture": info.architecture,
            "backend": info.backend,
            "device": format!("{:?}", info.device),
            "dtype": format!("{:?}", info.dtype),
            "context_length": info.context_length,
            "parameters": info.parameters,
            "vocab_size": info.vocab_size,
        })
    }

    /// Runs a tool; `None` where there is none of the name.
    async fn run(&self, name: &str, arguments: Value, progress: &Progress<'_>) -> Option<Outcome> {
        Some(match name {
            "chat" => match read(arguments) {
                Ok(chat) => self.chat(chat, progress).await.map_err(|e| e.to_string()),
                Err(error) => Err(error),
            },
            "complete" => match read(arguments) {
                Ok(chat) => self
                    .complete(chat, progress)
                    .await
                    .map_err(|e| e.to_string()),
                Err(error) => Err(error),
            },
            "embed" => match read::<Embed>(arguments) {
                Ok(Embed { texts }) => {
                    let vectors = self.model.embed(&texts, Pooling::default()).await;
                    let vectors = vectors.map_err(|e| e.to_string());
                    vectors.map(|vectors| json!({"embeddings": vectors}))
                }
                Err(error) => Err(error),
            },
            "tokenize" => read::<Tokenize>(arguments).and_then(|Tokenize { text }| {
                let tokens = self.model.prompt_tokens(&text).map_err(|e| e.to_string())?;
                Ok(json!({"tokens": tokens, "count": tokens.len()}))
            }),
            "list_models" => read::<Nothing>(arguments).map(|_| json!({"models": [self.card()]})),
            _ => return None,
        })
    }

    async fn chat(&self, chat: Chat, progress: &Progress<'_>) -> Result<Value> {
        let lines = chat.messages.into_iter();
        let messages: Vec<Message> = lines.map(|m| Message::new(m.role, m.content)).collect();
        let request = ChatRequest {
            generation: generation(chat.max_tokens, Vec::new()),
            sampling: Some(SamplingChanges {
                temperature: chat.temperature,
                seed: chat.seed,
                ..SamplingChanges::default()
            }),
            ..ChatRequest::new(messages)
        };
        let mut stream = self.model.stream_chat_request(request).await?;
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
                    progress.tell(made).await;
                }
                ChatEvent::Round { deltas } => take(deltas),
                ChatEvent::ToolResult(_) => {}
                ChatEvent::Done {
                    deltas,
                    reason,
                    timings,
                } => {
                    take(deltas);
                    return Ok(json!({
                        "text": text,
                        "finish_reason": format!("{reason:?}"),
                        "prompt_tokens": timings.prompt_tokens,
                        "generated_tokens": timings.generated_tokens,
                    }));
                }
                ChatEvent::Failed(error) => return Err(error),
            }
        }
        Err(crate::Error::Stopped("an answer had no end".into()))
    }

    async fn complete(&self, asked: Complete, progress: &Progress<'_>) -> Result<Value> {
        let changes = SamplingChanges {
            temperature: asked.temperature,
            seed: asked.seed,
            ..SamplingChanges::default()
        };
        let tokens = self.model.prompt_tokens(&asked.prompt)?;
        let mut request = generation(asked.max_tokens, tokens);
        request.sampling = changes.apply(self.model.default_sampling());
        let mut events = self.model.submit(request)?;
        let mut text = String::new();
        let mut made = 0;
        while let Some(event) = events.recv().await {
            match event {
                Event::Prompt(_) => {}
                Event::Token { text: more, .. } => {
                    text.push_str(&more);
                    made += 1;
                    progress.tell(made).await;
                }
                Event::Done {
                    text: rest,
                    reason,
                    timings,
                } => {
                    text.push_str(&rest);
                    return Ok(json!({
                        "text": text,
                        "finish_reason": format!("{reason:?}"),
                        "prompt_tokens": timings.prompt_tokens,
                        "generated_tokens": timings.generated_tokens,
                    }));
                }
                Event::Failed(error) => return Err(error),
            }
        }
        Err(crate::Error::Stopped("an answer had no end".into()))
    }
}

type Outcome = std::result::Result<Value, String>;

fn generation(max_tokens: Option<usize>, tokens: Vec<u32>) -> Request {
    Request {
        max_tokens: Some(max_tokens.unwrap_or(TOKENS)),
        ..Request::new(tokens)
    }
}

fn read<T: DeserializeOwned>(arguments: Value) -> std::result::Result<T, String> {
    serde_json::from_value(arguments).map_err(|e| format!("the arguments are wrong: {e}"))
}

/// Tells who asked how many tokens there are.
struct Progress<'a>(&'a RequestContext<RoleServer>);

impl Progress<'_> {
    async fn tell(&self, made: usize) {
        if let Some(token) = self.0.meta.get_progress_token() {
            let progress = ProgressNotificationParam::new(token, made as f64);
            let _ = self.0.peer.notify_progress(progress).await;
        }
    }
}

fn tool<T: JsonSchema>(name: &'static str, description: &'static str) -> Tool {
    let schema = match schema_of::<T>() {
        Value::Object(schema) => schema,
        _ => serde_json::Map::new(),
    };
    Tool::new(name, description, Arc::new(schema))
}

impl ServerHandler for Handler {
    #[expect(deprecated, reason = "clients of today's protocol set a level")]
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_logging()
            .build();
        let me = Implementation::new("biplane", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(me)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> std::result::Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(vec![
            tool::<Chat>("chat", "Answers a conversation."),
            tool::<Complete>("complete", "Goes on with a text."),
            tool::<Embed>(
                "embed",
                "Vectors of texts: the more alike, the larger their product.",
            ),
            tool::<Tokenize>("tokenize", "The model's tokens of a text."),
            tool::<Nothing>("list_models", "The models that are served."),
        ]))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> std::result::Result<CallToolResponse, ErrorData> {
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let progress = Progress(&context);
        let outcome = tokio::select! {
            () = context.ct.cancelled() => Some(Err("it was cancelled".into())),
            outcome = self.run(&request.name, arguments, &progress) => outcome,
        };
        match outcome {
            Some(Ok(value)) => Ok(CallToolResult::structured(value).into()),
            Some(Err(reason)) => Ok(CallToolResult::error(vec![ContentBlock::text(reason)]).into()),
            None => {
                let reason = format!("there is no tool {:?}", request.name);
                Err(ErrorData::invalid_params(reason, None))
            }
        }
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> std::result::Result<ListResourcesResult, ErrorData> {
        let card = Resource::new(CARD, self.name.as_str())
            .with_description("The model's card")
            .with_mime_type("application/json");
        Ok(ListResourcesResult::with_all_items(vec![card]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> std::result::Result<ReadResourceResponse, ErrorData> {
        if request.uri != CARD {
            let reason = format!("there is no resource {:?}; there is {CARD}", request.uri);
            return Err(ErrorData::resource_not_found(reason, None));
        }
        let card = ResourceContents::text(self.card().to_string(), CARD);
        Ok(ReadResourceResult::new(vec![card]).into())
    }

    /// Nothing is logged to clients, so every level is kept.
    #[expect(deprecated, reason = "clients of today's protocol send it")]
    async fn set_level(
        &self,
        _: rmcp::model::SetLevelRequestParams,
        _: RequestContext<RoleServer>,
    ) -> std::result::Result<(), ErrorData> {
        Ok(())
    }
}
