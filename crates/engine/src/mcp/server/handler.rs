//! The server as a client's session sees it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering::Relaxed},
};

use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, ContentBlock,
        GetPromptRequestParams, GetPromptResponse, GetPromptResult, Implementation,
        ListPromptsResult, ListResourcesResult, ListToolsResult, PaginatedRequestParams, Prompt,
        PromptArgument, PromptMessage, ReadResourceRequestParams, ReadResourceResponse,
        ReadResourceResult, Resource, ResourceContents, Role, ServerCapabilities, ServerConfig,
    },
    service::RequestContext,
};
use serde_json::Value;
use tokio::sync::watch;

use super::{
    session::{SILENT, Session},
    tools::{self, Tools},
};
use crate::Message;

/// The card of the first model.
const CARD: &str = "biplane://model";
/// What the address of any model's card begins with.
const CARDS: &str = "biplane://models/";
/// The prompt that shows the chat template.
const TEMPLATE: &str = "chat_template";

pub(super) struct Handler {
    tools: Arc<Tools>,
    /// Calls under way, of all sessions.
    active: watch::Sender<usize>,
    /// The least level that this session's client wants to read.
    level: AtomicU8,
}

type Answer<T> = Result<T, ErrorData>;

impl Handler {
    /// A session's.
    pub fn new(tools: &Arc<Tools>, active: &watch::Sender<usize>) -> Self {
        Handler {
            tools: Arc::clone(tools),
            active: active.clone(),
            level: AtomicU8::new(SILENT),
        }
    }
}

/// A call under way.
struct Active<'a>(&'a watch::Sender<usize>);

impl<'a> Active<'a> {
    fn new(count: &'a watch::Sender<usize>) -> Self {
        count.send_modify(|n| *n += 1);
        Active(count)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|n| *n = n.saturating_sub(1));
    }
}

impl ServerHandler for Handler {
    #[expect(
        deprecated,
        reason = "clients of the protocol with a handshake set a level"
    )]
    fn get_info(&self) -> ServerConfig {
        let capabilities = ServerCapabilities::builder()
            .enable_tools()
            .enable_resources()
            .enable_prompts()
            .enable_logging()
            .build();
        let me = Implementation::new("biplane", env!("CARGO_PKG_VERSION"));
        ServerConfig::new(capabilities).with_server_info(me)
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Answer<ListToolsResult> {
        Ok(ListToolsResult::with_all_items(tools::list()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Answer<CallToolResponse> {
        let _active = Active::new(&self.active);
        let arguments = Value::Object(request.arguments.unwrap_or_default());
        let session = Session::new(&context, &self.level);
        let outcome = tokio::select! {
            () = context.ct.cancelled() => Some(Err("it was cancelled".into())),
            outcome = self.tools.run(&request.name, arguments, &session) => outcome,
        };
        let name = &request.name;
        match outcome {
            Some(Ok(value)) => {
                session.log(false, format!("{name} was run")).await;
                Ok(CallToolResult::structured(value).into())
            }
            Some(Err(reason)) => {
                session.log(true, format!("{name} failed: {reason}")).await;
                Ok(CallToolResult::error(vec![ContentBlock::text(reason)]).into())
            }
            None => {
                let reason = format!("there is no tool {name:?}");
                Err(ErrorData::invalid_params(reason, None))
            }
        }
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Answer<ListResourcesResult> {
        let models = self.tools.models.list();
        let card = |(i, name): (usize, String)| {
            let uri = match i {
                0 => CARD.to_owned(),
                _ => format!("{CARDS}{name}"),
            };
            Resource::new(uri, name)
                .with_description("The model's card")
                .with_mime_type("application/json")
        };
        let names = models.into_iter().map(|model| model.name).enumerate();
        Ok(ListResourcesResult::with_all_items(
            names.map(card).collect(),
        ))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Answer<ReadResourceResponse> {
        let models = self.tools.models.list();
        let found = match request.uri.strip_prefix(CARDS) {
            Some(name) => models.iter().find(|model| model.name == name),
            None if request.uri == CARD => models.first(),
            None => None,
        };
        let Some(model) = found else {
            let reason = format!("there is no resource {:?}; there is {CARD}", request.uri);
            let uri = serde_json::json!({"uri": request.uri});
            return Err(ErrorData::resource_not_found(reason, Some(uri)));
        };
        let card = ResourceContents::text(tools::card(model).to_string(), request.uri)
            .with_mime_type("application/json");
        Ok(ReadResourceResult::new(vec![card]).into())
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Answer<ListPromptsResult> {
        let argument = |name: &str, about: &str, required| {
            PromptArgument::new(name)
                .with_description(about)
                .with_required(required)
        };
        let arguments = vec![
            argument("user", "What the user says", true),
            argument("system", "What the system's message says", false),
            argument("model", "The model; see the tool list_models", false),
        ];
        let about =
            "A conversation as the model's chat template writes it: a prompt for the tool complete";
        let prompt = Prompt::new(TEMPLATE, Some(about), Some(arguments));
        Ok(ListPromptsResult::with_all_items(vec![prompt]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Answer<GetPromptResponse> {
        let wrong = |reason: String| ErrorData::invalid_params(reason, None);
        if request.name != TEMPLATE {
            let reason = format!("there is no prompt {:?}; there is {TEMPLATE}", request.name);
            return Err(wrong(reason));
        }
        let arguments = request.arguments.unwrap_or_default();
        let text = |name: &str| arguments.get(name).and_then(|value| value.as_str());
        let user = text("user").ok_or_else(|| wrong("user: a text is needed".into()))?;
        let system = text("system").map(|text| Message::new("system", text));
        let mut messages: Vec<Message> = system.into_iter().collect();
        messages.push(Message::new("user", user));
        let model = self.tools.models.find(text("model")).await.map_err(wrong)?;
        let prompt = tools::templated(&model, messages).await.map_err(wrong)?;
        let message = PromptMessage::new_text(Role::User, prompt);
        Ok(GetPromptResult::new(vec![message]).into())
    }

    #[expect(
        deprecated,
        reason = "clients of the protocol with a handshake send it"
    )]
    async fn set_level(
        &self,
        request: rmcp::model::SetLevelRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Answer<()> {
        self.level.store(request.level as u8, Relaxed);
        Ok(())
    }
}
