//! Tools that are run here between a model's answers, and what is told of them.

use biplane::{ChatRequest, Error, Model, ToolChoice, ToolLoop, ToolRun};
use serde_json::{Value, json};

use super::{
    error::ApiError,
    openai::chat::{Started, fits},
};

/// The tools that are run for a request. What it brings itself is its own to run, also where a tool
/// here has the same name.
pub fn of(model: &Model, chat: &ChatRequest) -> Option<ToolLoop> {
    let all = model.tools();
    if all.tools.is_empty() || chat.tool_choice == ToolChoice::None {
        return None;
    }
    let own: Vec<&str> = chat.tools.iter().map(|tool| tool.name.as_str()).collect();
    let tools = all.tools.without(&own);
    (!tools.is_empty()).then(|| ToolLoop::new(tools, all.config.clone()))
}

/// Starts `n` answers with these tools.
pub async fn start(
    tools: &ToolLoop,
    model: &Model,
    chat: ChatRequest,
    n: usize,
) -> Result<Started, ApiError> {
    let mut whole = chat.clone();
    whole.tools.extend(tools.tools.definitions());
    let asked = model.clone();
    let prepare = move || fits(&asked, &asked.prepare_chat(whole)?);
    let tokens = tokio::task::spawn_blocking(prepare)
        .await
        .map_err(|e| Error::Stopped(format!("preparing the prompt: {e}")))??;
    let mut streams = Vec::with_capacity(n);
    for i in 0..n as u64 {
        let mut chat = chat.clone();
        if let Some(seed) = chat.sampling.as_mut().and_then(|s| s.seed.as_mut()) {
            *seed = seed.wrapping_add(i);
        }
        streams.push(tools.start(model, chat).await?);
    }
    Ok(Started { streams, tokens })
}

/// What was run on the way to an answer.
pub fn trace(runs: &[ToolRun]) -> Vec<Value> {
    runs.iter().map(entry).collect()
}

/// A call, and what the model was given for it.
pub fn entry(run: &ToolRun) -> Value {
    let (content, failed) = match &run.result {
        Ok(text) => (text, false),
        Err(text) => (text, true),
    };
    json!({
        "tool_call_id": run.call.id,
        "name": run.call.name,
        "arguments": run.call.arguments,
        "content": content,
        "is_error": failed,
        "round": run.round,
        "duration_ms": run.duration.as_secs_f64() * 1e3,
    })
}
