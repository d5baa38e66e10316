//! Biplane's MCP client against official servers, for `tests/mcp/run.sh`.
//!
//! `conformance URL` does what the conformance suite's scenarios wait for; `everything URL` and
//! `everything COMMAND ARGS..` use the official server that has everything.
#![allow(clippy::print_stdout)]

use biplane::{
    McpClient, McpConfig,
    mcp::{McpServerConfig, McpServerState, McpServerStatus, McpSource},
};
use serde_json::{Value, json};

const NAME: &str = "peer";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let task = args.next().ok_or("what is to be done?")?;
    let place = args.next().ok_or("where is the server?")?;
    let source = match place.starts_with("http") {
        true => McpSource::http(place),
        false => McpSource::process(place, args),
    };
    let config = McpConfig {
        servers: vec![McpServerConfig::new(NAME, source)],
        ..McpConfig::default()
    };
    let client = McpClient::connect(config).await?;
    let status = client.servers().remove(0);
    let McpServerState::Ready { tools } = &status.state else {
        return Err(format!("{status:?}").into());
    };
    match task.as_str() {
        "conformance" => conformance(&client, tools).await,
        "everything" => everything(&client, &status, tools).await,
        other => Err(format!("{other}: conformance or everything is expected").into()),
    }
}

type Done = Result<(), Box<dyn std::error::Error>>;

async fn call(client: &McpClient, tool: &str, arguments: Value) -> Result<String, String> {
    let called = client.call_tool(NAME, tool, arguments).await;
    called.map_err(|e| e.to_string())?
}

/// Calls those of the scenarios' tools that are there, and what a scenario asks for in its context.
async fn conformance(client: &McpClient, tools: &[String]) -> Done {
    let mut calls = vec![
        ("add_numbers".to_owned(), json!({"a": 5, "b": 3})),
        ("test_reconnection".to_owned(), json!({})),
        ("valid_tool".to_owned(), json!({})),
    ];
    if let Ok(context) = std::env::var("MCP_CONFORMANCE_CONTEXT") {
        let context: Value = serde_json::from_str(&context)?;
        for asked in context["toolCalls"].as_array().into_iter().flatten() {
            let name = asked["name"].as_str().unwrap_or_default();
            calls.push((name.to_owned(), asked["arguments"].clone()));
        }
    }
    // Schemas reach the model as the server wrote them.
    let echo = "json_schema_echo";
    if let Some(other) = tools.iter().find(|tool| *tool != echo) {
        let definitions = client.tools().definitions();
        let found = definitions.into_iter().find(|tool| tool.name == *other);
        let schema = found.map(|tool| tool.parameters);
        calls.push((echo.to_owned(), json!({"schema": schema})));
    }
    for (tool, arguments) in calls {
        if tools.contains(&tool) {
            let said = call(client, &tool, arguments).await?;
            println!("{tool}: {said}");
        }
    }
    Ok(())
}

async fn everything(client: &McpClient, status: &McpServerStatus, tools: &[String]) -> Done {
    let echo = call(client, "echo", json!({"message": "hello"})).await?;
    same("echo", &echo, "Echo: hello")?;
    let sum = call(client, "get-sum", json!({"a": 2, "b": 40})).await?;
    same("get-sum", &sum, "The sum of 2 and 40 is 42.")?;
    let image = call(client, "get-tiny-image", json!({})).await?;
    if !image.contains("[an image, image/png]") {
        return Err(format!("get-tiny-image: {image}").into());
    }
    let wrong = call(client, "get-sum", json!({"a": "two"})).await;
    if wrong.is_ok() {
        return Err(format!("get-sum took a text: {wrong:?}").into());
    }
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..100 {
        let client = client.clone();
        calls.spawn(async move {
            (
                i,
                call(&client, "echo", json!({"message": i.to_string()})).await,
            )
        });
    }
    while let Some(done) = calls.join_next().await {
        let (i, said) = done?;
        same("echo", &said?, &format!("Echo: {i}"))?;
    }
    let resources = client.list_resources(NAME).await?;
    let (uri, _) = resources.first().ok_or("there are no resources")?;
    let text = client.read_resource(NAME, uri).await?;
    if text.is_empty() {
        return Err(format!("{uri} is empty").into());
    }
    let prompts = client.list_prompts(NAME).await?;
    let (prompt, _) = prompts.first().ok_or("there are no prompts")?;
    let messages = client
        .get_prompt(NAME, prompt, serde_json::Map::new())
        .await?;
    if messages.is_empty() {
        return Err(format!("the prompt {prompt} is empty").into());
    }
    println!(
        "everything: protocol {}, {} tools ({} left out), 100 calls at once, {} resources, {} prompts",
        status.protocol.as_deref().unwrap_or("?"),
        tools.len(),
        status.left_out.len(),
        resources.len(),
        prompts.len(),
    );
    Ok(())
}

fn same(tool: &str, said: &str, wanted: &str) -> Done {
    match said == wanted {
        true => Ok(()),
        false => Err(format!("{tool}: {said:?}, expected {wanted:?}").into()),
    }
}
