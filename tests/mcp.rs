//! MCP: servers' tools for a model.

#![cfg(feature = "mcp")]

use std::time::Duration;

use biplane::{
    BackendKind, ChatFinish, ChatRequest, EngineConfig, McpClient, McpConfig, McpServer, Message,
    ModelBuilder, Recorded, Request, ToolChoice, ToolConfig, ToolLoop,
    mcp::{McpServerConfig, McpServerState, McpServerStatus, McpSource},
    tools::ToolCall,
};
use biplane_tests::{fixture, real_model};
use serde_json::json;

const SERVER: &str = env!("CARGO_BIN_EXE_biplane-test-mcp-server");

fn server(name: &str) -> McpServerConfig {
    let no_arguments: [&str; 0] = [];
    McpServerConfig::new(name, McpSource::process(SERVER, no_arguments))
}

fn config(servers: impl Into<Vec<McpServerConfig>>) -> McpConfig {
    McpConfig {
        servers: servers.into(),
        ..McpConfig::default()
    }
}

async fn call(
    client: &McpClient,
    name: &str,
    arguments: serde_json::Value,
) -> Result<String, String> {
    let call = ToolCall {
        id: "1".into(),
        name: name.into(),
        arguments: arguments.to_string(),
    };
    client.tools().call(&call).await
}

#[tokio::test]
async fn tools_of_all_pages_are_there_and_odd_ones_are_reported() {
    let client = McpClient::connect(config([server("one")])).await.unwrap();
    let status = client.servers().remove(0);
    let McpServerState::Ready { tools } = &status.state else {
        panic!("{status:?}");
    };
    assert!(
        tools.contains(&"echo".into()) && tools.contains(&"add".into()),
        "{tools:?}"
    );
    assert!(tools.contains(&"odd_name_".into()), "{tools:?}");
    let left_out = status.left_out.join("\n");
    assert!(
        left_out.contains("odd: ") && left_out.contains("list: "),
        "{left_out}"
    );
    assert_eq!(status.left_out.len(), 2);

    let sum = call(&client, "add", json!({"a": 2, "b": 40})).await;
    assert_eq!(sum.as_deref(), Ok(r#"{"sum":42}"#));
    let picture = call(&client, "picture", json!({})).await;
    assert_eq!(picture.as_deref(), Ok("See:\n[an image, image/png]"));
    assert_eq!(
        call(&client, "fail", json!({})).await,
        Err("it is broken".into())
    );
    let large = call(&client, "large", json!({})).await.unwrap_err();
    assert!(large.contains("1048577 bytes, at most 1048576"), "{large}");
}

#[tokio::test]
async fn tools_that_change_are_listed_again() {
    let client = McpClient::connect(config([server("one")])).await.unwrap();
    let before = call(&client, "later", json!({})).await.unwrap_err();
    assert_eq!(before, "there is no tool \"later\"");
    let said = call(&client, "more", json!({})).await;
    assert_eq!(said.as_deref(), Ok("changed"));
    let listed = |tools: &[String]| tools == ["echo", "later"];
    let is_new =
        |s: &McpServerStatus| matches!(&s.state, McpServerState::Ready { tools } if listed(tools));
    let status = client.wait_for("one", is_new).await.unwrap();
    assert_eq!(status.connections, 1);
    assert_eq!(
        call(&client, "later", json!({})).await.as_deref(),
        Ok("it came")
    );
    // What the server no longer has is not offered either.
    assert!(!client.tools().has("picture"));
    let said = call(&client, "echo", json!({"text": "still"})).await;
    assert_eq!(said.as_deref(), Ok("still"));
}

#[tokio::test]
async fn a_reader_that_leaves_cancels_the_call() {
    let client = McpClient::connect(config([server("one")])).await.unwrap();
    let model = ModelBuilder::new(fixture("llama/mlx-4bit").display().to_string());
    let model = model.build().await.unwrap();
    let request = ChatRequest {
        tool_choice: ToolChoice::Named("sleep".into()),
        ..ChatRequest::new([Message::new("user", "Hello")])
    };
    let tools = ToolLoop::new(client.tools().clone(), ToolConfig::default());
    let stream = tools.start(&model, request).await.unwrap();
    let until = async |tool: &str| {
        while call(&client, tool, json!({})).await.as_deref() != Ok("1") {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until("asleep").await;
    drop(stream);
    until("cancelled").await;
}

#[tokio::test]
async fn resources_and_prompts_are_read() {
    let client = McpClient::connect(config([server("one")])).await.unwrap();
    let resources = client.list_resources("one").await.unwrap();
    assert_eq!(resources, [("test://one".to_owned(), "one".to_owned())]);
    assert_eq!(
        client.read_resource("one", "test://one").await.unwrap(),
        "its text"
    );
    let prompts = client.list_prompts("one").await.unwrap();
    assert_eq!(prompts, [("greet".to_owned(), Some("Greets".to_owned()))]);
    let who = json!({"who": "Ada"}).as_object().unwrap().clone();
    let messages = client.get_prompt("one", "greet", who).await.unwrap();
    assert_eq!(messages, [Message::new("user", "Hello Ada")]);
    let error = client.list_prompts("two").await.unwrap_err().to_string();
    assert_eq!(error, "there is no MCP server \"two\"");
}

#[tokio::test]
async fn a_broken_server_leaves_the_others_alone() {
    let broken = McpServerConfig::new("broken", McpSource::process(SERVER, ["broken"]));
    let missing: [&str; 0] = [];
    let missing = McpServerConfig::new("missing", McpSource::process("/no/such/program", missing));
    let mut prefixed = server("three");
    prefixed.tool_prefix = Some("p".into());
    let all = [server("one"), broken, missing, server("two"), prefixed];
    let client = McpClient::connect(config(all)).await.unwrap();
    let states = client.servers();
    for (status, name) in states
        .iter()
        .zip(["one", "broken", "missing", "two", "three"])
    {
        assert_eq!(status.name, name);
        let ready = matches!(status.state, McpServerState::Ready { .. });
        assert_eq!(ready, !["broken", "missing"].contains(&name), "{status:?}");
    }
    let reason = format!("{:?}", states[2].state);
    assert!(
        reason.contains("/no/such/program cannot be started"),
        "{reason}"
    );
    for name in ["echo", "two_echo", "p_echo"] {
        let said = call(&client, name, json!({"text": name})).await;
        assert_eq!(said.as_deref(), Ok(name));
    }
}

#[tokio::test]
async fn a_server_that_ends_in_a_call_is_started_again() {
    let client = McpClient::connect(config([server("one"), server("two")]))
        .await
        .unwrap();
    let asleep = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "sleep", json!({})).await }
    });
    let error = call(&client, "die", json!({})).await.unwrap_err();
    assert!(error.contains("\"one\" ended during the call"), "{error}");
    // It either was on its way, or came too late.
    let error = asleep.await.unwrap().unwrap_err();
    assert!(error.contains("\"one\""), "{error}");
    assert_eq!(
        call(&client, "two_echo", json!({"text": "x"}))
            .await
            .as_deref(),
        Ok("x")
    );
    let again =
        |s: &McpServerStatus| s.connections == 2 && matches!(s.state, McpServerState::Ready { .. });
    let status = client.wait_for("one", again).await.unwrap();
    // Which of its two ends is noticed first is chance.
    let reason = status.last_error.unwrap();
    assert!(
        ["it ended", "it cannot be reached"].contains(&reason.as_str()),
        "{reason}"
    );
    assert_eq!(status.protocol.as_deref(), Some("2025-06-18"));
    assert_eq!(
        call(&client, "echo", json!({"text": "y"})).await.as_deref(),
        Ok("y")
    );
}

#[tokio::test]
async fn a_hundred_calls_at_once_get_their_own_answers() {
    let mut config = config([server("one")]);
    config.max_concurrent_calls = 16;
    let client = McpClient::connect(config).await.unwrap();
    let mut calls = tokio::task::JoinSet::new();
    for i in 0..100 {
        let client = client.clone();
        calls.spawn(async move {
            let said = call(&client, "echo", json!({"text": format!("call {i}")})).await;
            assert_eq!(said, Ok(format!("call {i}")));
        });
    }
    assert_eq!(calls.join_all().await.len(), 100);
}

#[tokio::test]
async fn a_call_that_takes_too_long_is_given_up() {
    let mut config = config([server("one")]);
    config.tool_timeout = Duration::from_secs(1);
    let client = McpClient::connect(config).await.unwrap();
    let late = call(&client, "sleep", json!({})).await;
    assert_eq!(late, Err("it did not answer within 1 s".into()));
    // The server was told, before it is asked for anything else.
    let cancelled = call(&client, "cancelled", json!({})).await;
    assert_eq!(cancelled.as_deref(), Ok("1"));
    assert_eq!(
        call(&client, "echo", json!({"text": "x"})).await.as_deref(),
        Ok("x")
    );
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn programs_end_with_the_client() {
    let stubborn = McpServerConfig::new("one", McpSource::process(SERVER, ["stubborn"]));
    let client = McpClient::connect(config([stubborn])).await.unwrap();
    let process = call(&client, "process", json!({})).await.unwrap();
    let lives = || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"));
        status.is_ok_and(|status| !status.contains("State:\tZ"))
    };
    assert!(lives());
    let tools = client.tools().clone();
    drop(client);
    let start = std::time::Instant::now();
    while lives() {
        assert!(start.elapsed() < Duration::from_secs(60), "it lives on");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let late = ToolCall {
        id: "1".into(),
        name: "echo".into(),
        arguments: "{}".into(),
    };
    let error = tools.call(&late).await.unwrap_err();
    assert_eq!(error, "its connection is closed");
}

#[tokio::test]
async fn programs_get_their_environment_and_folder() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    let text = json!({"mcpServers": {"one": {
        "command": SERVER, "env": {"MCP_TEST": "given"}, "cwd": folder}}});
    let config = McpConfig::parse(&text.to_string()).unwrap();
    let client = McpClient::connect(config).await.unwrap();
    let said = call(&client, "environment", json!({})).await;
    assert_eq!(said, Ok(format!("given in {}", folder.display())));
}

#[tokio::test]
async fn a_model_is_served_over_http() {
    let model = ModelBuilder::new(fixture("llama/mlx-4bit").display().to_string());
    let server = McpServer::new(model.build().await.unwrap())
        .with_model_name("tiny")
        .with_api_key("secret");
    let serving = server.start().await.unwrap();
    let at = |key: Option<&str>| {
        let mut source = McpSource::http(serving.url());
        if let McpSource::Http { bearer_token, .. } = &mut source {
            *bearer_token = key.map(str::to_owned);
        }
        source
    };
    let none = McpServerConfig::new("none", at(None));
    let wrong = McpServerConfig::new("wrong", at(Some("secreT")));
    let right = McpServerConfig::new("right", at(Some("secret")));
    let all = config([none, wrong, right]);
    let client = McpClient::connect(all).await.unwrap();
    let states = client.servers();
    for (status, said) in states.iter().zip(["it wants a key", "it refuses the key"]) {
        let McpServerState::Failed { reason } = &status.state else {
            panic!("{states:?}");
        };
        assert!(
            reason.contains(said) && reason.contains("OAuth"),
            "{reason}"
        );
    }
    let McpServerState::Ready { tools } = &states[2].state else {
        panic!("{states:?}");
    };
    assert_eq!(
        tools,
        &[
            "chat",
            "complete",
            "embed",
            "tokenize",
            "list_models",
            "verify_backends"
        ]
    );
    assert_eq!(states[2].protocol.as_deref(), Some("2026-07-28"));

    let asked = json!({"prompt": "Hello", "max_tokens": 4, "temperature": 0.0});
    let answer = call(&client, "complete", asked.clone()).await.unwrap();
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["generated_tokens"], 4, "{answer}");
    let again = call(&client, "complete", asked).await.unwrap();
    assert_eq!(
        serde_json::from_str::<serde_json::Value>(&again).unwrap()["text"],
        answer["text"]
    );
    let tokens = call(&client, "tokenize", json!({"text": "Hello"}))
        .await
        .unwrap();
    assert!(tokens.starts_with(r#"{"tokens":["#), "{tokens}");
    let vectors = call(&client, "embed", json!({"texts": ["a", "b"]}))
        .await
        .unwrap();
    let vectors: serde_json::Value = serde_json::from_str(&vectors).unwrap();
    assert_eq!(vectors["embeddings"].as_array().unwrap().len(), 2);
    let error = call(&client, "tokenize", json!({"txt": "Hello"}))
        .await
        .unwrap_err();
    assert!(error.contains("unknown field `txt`"), "{error}");
    let error = call(&client, "tokenize", json!({"text": "a", "model": "b"}))
        .await
        .unwrap_err();
    assert_eq!(error, "there is no model \"b\" here; there is \"tiny\"");
    let error = call(&client, "verify_backends", json!({}))
        .await
        .unwrap_err();
    assert!(error.contains("biplane verify"), "{error}");
    let card = client
        .read_resource("right", "biplane://model")
        .await
        .unwrap();
    assert!(card.contains(r#""id":"tiny""#), "{card}");
}

#[tokio::test]
async fn a_call_that_is_given_up_stops_the_model() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama/mlx-4bit")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config_file = folder.path().join("config.json");
    let text = std::fs::read(&config_file).unwrap();
    let mut fields: serde_json::Value = serde_json::from_slice(&text).unwrap();
    fields["max_position_embeddings"] = 200_000.into();
    std::fs::write(&config_file, fields.to_string()).unwrap();
    let model = ModelBuilder::new(folder.path().display().to_string());
    let model = model.build().await.unwrap();
    let serving = McpServer::new(model.clone()).start().await.unwrap();
    let mut hasty = config([McpServerConfig::new("one", McpSource::http(serving.url()))]);
    hasty.tool_timeout = Duration::from_secs(1);
    let client = McpClient::connect(hasty).await.unwrap();
    let endless = json!({"prompt": "Hello", "max_tokens": 199_000, "temperature": 0.0});
    let late = call(&client, "complete", endless).await;
    assert_eq!(late, Err("it did not answer within 1 s".into()));
    let begin = std::time::Instant::now();
    while model.metrics().cancelled == 0 {
        assert_eq!(model.metrics().finished, 0, "it came to its end");
        assert!(begin.elapsed() < Duration::from_secs(60), "it goes on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_server_refuses_web_pages_and_other_hosts() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let model = ModelBuilder::new(fixture("llama/mlx-4bit").display().to_string());
    let model = model.build().await.unwrap();
    let serving = McpServer::new(model.clone()).start().await.unwrap();
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;
    for (headers, status) in [
        ("Host: 127.0.0.1", "200"),
        ("Host: evil.example", "403"),
        ("Host: 127.0.0.1\r\nOrigin: https://evil.example", "403"),
    ] {
        let mut stream = tokio::net::TcpStream::connect(serving.address())
            .await
            .unwrap();
        let request = format!(
            "POST /mcp HTTP/1.1\r\n{headers}\r\nContent-Type: application/json\r\nAccept: application/json, text/event-stream\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut first = [0; 12];
        stream.read_exact(&mut first).await.unwrap();
        let first = String::from_utf8_lossy(&first);
        assert_eq!(first, format!("HTTP/1.1 {status}"), "{headers}");
    }
    let open = McpServer::new(model)
        .with_address("0.0.0.0:0")
        .start()
        .await;
    let error = open.unwrap_err().to_string();
    assert!(error.contains("with_allowed_hosts"), "{error}");
}

#[tokio::test]
async fn a_model_calls_a_servers_tool() {
    let Some(path) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    for backend in BackendKind::compiled() {
        let folder = tempfile::tempdir().unwrap();
        let record = folder.path().join("requests.jsonl");
        let model = ModelBuilder::new(path.display().to_string())
            .with_backend(backend)
            .with_engine(EngineConfig {
                record: Some(record.clone()),
                ..EngineConfig::default()
            })
            .with_mcp_config(config([server("one")]))
            .with_tool_config(ToolConfig {
                max_rounds: 1,
                ..ToolConfig::default()
            })
            .build()
            .await
            .unwrap();
        let request = ChatRequest {
            tool_choice: ToolChoice::Named("add".into()),
            generation: Request {
                max_tokens: Some(32),
                ..Request::default()
            },
            ..ChatRequest::new([Message::new("user", "What is 2 and 40?")])
        };
        let answer = model.send_chat_request(request).await.unwrap();
        let run = &answer.trace[0];
        assert_eq!(run.call.name, "add");
        assert!(
            run.result.as_ref().unwrap().starts_with(r#"{"sum":"#),
            "{run:?}"
        );
        // Another round has read the call's result, and answered it.
        let [_, second] = &Recorded::read(&record).unwrap()[..] else {
            panic!("not two rounds: {answer:?}");
        };
        assert_eq!(second.backend, backend.name());
        let prompt = model.detokenize(&second.request.tokens);
        assert!(prompt.contains(run.result.as_ref().unwrap()), "{prompt}");
        assert!(answer.text.ends_with(&second.text), "{answer:?}");
    }
}

#[tokio::test]
async fn calls_that_are_run_here_can_be_left_out_of_the_answer() {
    let Some(path) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let client = McpClient::connect(config([server("one")])).await.unwrap();
    let model = ModelBuilder::new(path.display().to_string());
    let model = model.build().await.unwrap();
    let answer = async |max_rounds| {
        let setting = ToolConfig {
            max_rounds,
            show_calls: false,
            ..ToolConfig::default()
        };
        let tools = ToolLoop::new(client.tools().clone(), setting);
        let request = ChatRequest {
            tool_choice: ToolChoice::Named("add".into()),
            generation: Request {
                max_tokens: Some(48),
                ..Request::default()
            },
            ..ChatRequest::new([Message::new("user", "What is 2 and 40?")])
        };
        tools.complete(&model, request).await.unwrap()
    };
    let ran = answer(1).await;
    assert!(ran.tool_calls.is_empty(), "{ran:?}");
    assert!(ran.trace[0].result.is_ok(), "{ran:?}");
    let given_up = answer(0).await;
    assert!(given_up.tool_calls.is_empty(), "{given_up:?}");
    assert_eq!(given_up.finish_reason, ChatFinish::Stop);
    let reason = given_up.trace[0].result.clone().unwrap_err();
    assert!(reason.contains("tools were run 0 times"), "{reason}");
}
