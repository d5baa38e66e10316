//! MCP: other servers' tools for the model, and the model for MCP's clients. The program itself, as
//! `biplane mcp`, is the other server.

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Stdio},
};

use biplane::BackendKind;
use biplane_tests::{fixture, real_model};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Reply, Server, hello, program, start};

/// The program as a server of MCP, in a configuration.
fn own(model: &Path) -> Value {
    json!({
        "command": env!("CARGO_BIN_EXE_biplane"),
        "args": ["mcp", "-m", model, "--model-name", "tiny", "--kv-memory", "64M"],
        "env": {"BIPLANE_DEVICE": "cpu", "MCP_CONFIG_PATH": "/no/such/file"},
    })
}

fn configuration(servers: Value) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("mcp.json");
    std::fs::write(&file, json!({"mcpServers": servers}).to_string()).unwrap();
    (folder, file)
}

fn with_tools(model: &Path, backend: BackendKind) -> (TempDir, Server) {
    let mut own = own(&fixture("llama/mlx-4bit"));
    own["env"]
        .as_object_mut()
        .unwrap()
        .remove("MCP_CONFIG_PATH");
    let (folder, file) = configuration(json!({"own": own}));
    let server = start(
        model,
        &[
            "--mcp-config",
            file.to_str().unwrap(),
            "--max-tool-rounds",
            "1",
            "--backend",
            backend.name(),
        ],
    );
    (folder, server)
}

fn servers(server: &Server) -> Vec<Value> {
    let reply = server.get("/v1/mcp/servers");
    assert_eq!(reply.status, 200, "{reply:?}");
    reply.json()["data"].as_array().unwrap().clone()
}

#[test]
fn one_broken_server_leaves_the_others_alone() {
    let tiny = fixture("llama/mlx-4bit");
    let mut one = own(&tiny);
    one["env"]
        .as_object_mut()
        .unwrap()
        .remove("MCP_CONFIG_PATH");
    // Whose own configuration is not there.
    let broken = own(&tiny);
    let (_folder, file) = configuration(json!({"one": one, "broken": broken, "two": one}));
    let server = start(&tiny, &["--mcp-config", file.to_str().unwrap()]);
    let [one, broken, two] = &servers(&server)[..] else {
        panic!("not three servers");
    };
    for (status, prefix) in [(one, ""), (two, "two_")] {
        assert_eq!(status["state"], "ready", "{status}");
        assert_eq!(status["protocol"], "2026-07-28", "{status}");
        let tools = status["tools"].as_array().unwrap();
        assert!(tools.contains(&format!("{prefix}chat").into()), "{status}");
        assert_eq!(tools.len(), 6);
    }
    assert_eq!(broken["state"], "failed", "{broken}");
    let reason = broken["last_error"].as_str().unwrap();
    assert!(reason.contains("ended at once"), "{reason}");
    assert_eq!(broken["tools"], json!([]));
}

#[test]
fn without_servers_there_are_none() {
    let server = start(&fixture("llama/mlx-4bit"), &["--enable-tools"]);
    assert!(servers(&server).is_empty());
}

#[test]
fn configurations_that_cannot_be_are_named() {
    let (_folder, file) = configuration(json!({"one": {"command": "x", "args": 1}}));
    let out = program(&["serve", "--port", "0", "-m"])
        .arg(fixture("llama/mlx-4bit"))
        .env("MCP_CONFIG_PATH", &file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success());
    assert!(said.contains("MCP_CONFIG_PATH"), "{said}");
    assert!(said.contains("the server \"one\": args"), "{said}");
}

/// Asks for a call of a tool.
fn calling(name: &str, more: Value) -> Value {
    let mut body = hello(json!({"max_tokens": 48,
        "tool_choice": {"type": "function", "function": {"name": name}}}));
    let more = more.as_object().unwrap().clone();
    body.as_object_mut().unwrap().extend(more);
    body
}

fn run_of(trace: &Value) -> &Value {
    let run = &trace["tool_trace"][0];
    assert_eq!(run["name"], "tokenize", "{trace}");
    assert_eq!(run["round"], 0);
    run
}

#[test]
fn forced_calls_are_run_and_their_results_reach_the_model() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    // What computes makes no difference to the server; `tests/mcp.rs` has every backend.
    forced_calls_are_run_on(&model, BackendKind::default_here().unwrap());
}

fn forced_calls_are_run_on(model: &Path, backend: BackendKind) {
    let (_folder, server) = with_tools(model, backend);
    let whole = server.chat(&calling("tokenize", json!({}))).json();
    let choice = &whole["choices"][0];
    run_of(&choice["message"]["biplane"]);
    assert!(choice["message"].get("tool_calls").is_none(), "{whole}");
    assert_ne!(choice["finish_reason"], "tool_calls");
    // Both rounds' prompts count; the last offers no tools any more, so that it may be the shorter one.
    let once = server
        .chat(&calling("tokenize", json!({"max_tokens": 1})))
        .json();
    let tokens = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(tokens(&whole) > tokens(&once), "{whole} {once}");

    let events = server
        .chat(&calling("tokenize", json!({"stream": true})))
        .events();
    let deltas = events.iter().map(|event| &event["choices"][0]["delta"]);
    assert!(
        deltas
            .clone()
            .all(|delta| delta.get("tool_calls").is_none())
    );
    let results: Vec<_> = deltas
        .filter(|delta| delta.get("biplane").is_some())
        .collect();
    let result = &results[0]["biplane"]["tool_result"];
    assert_eq!(result["name"], "tokenize");
    assert!(
        result["arguments"].as_str().unwrap().starts_with('{'),
        "{result}"
    );

    let messages = json!({"max_tokens": 48, "temperature": 0,
        "messages": [{"role": "user", "content": "Hello"}],
        "tool_choice": {"type": "tool", "name": "tokenize"}});
    let answer = server.post("/v1/messages", &messages).json();
    run_of(&answer["biplane"]);
    let kinds = answer["content"].as_array().unwrap();
    assert!(
        kinds.iter().all(|block| block["type"] != "tool_use"),
        "{answer}"
    );

    let responses = json!({"max_output_tokens": 48, "temperature": 0, "input": "Hello",
        "tool_choice": {"type": "function", "name": "tokenize"}});
    let answer = server.post("/v1/responses", &responses).json();
    run_of(&answer["biplane"]);
    let items = answer["output"].as_array().unwrap();
    assert!(
        items.iter().all(|item| item["type"] != "function_call"),
        "{answer}"
    );
}

#[test]
fn clients_own_tools_are_theirs_to_run() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let (_folder, server) = with_tools(&model, BackendKind::default_here().unwrap());
    // The second has the name of a tool that is run here.
    for name in ["weather", "tokenize"] {
        let tools = json!([{"type": "function", "function": {"name": name,
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}}]);
        let answer = server.chat(&calling(name, json!({"tools": tools}))).json();
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{answer}");
        let call = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!(call["name"], name, "{answer}");
        assert!(choice["message"].get("biplane").is_none(), "{answer}");
    }
    let none = server.chat(&hello(json!({"tool_choice": "none"}))).json();
    assert!(
        none["choices"][0]["message"].get("biplane").is_none(),
        "{none}"
    );
}

#[test]
fn run_calls_tools_too() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let mut own = own(&fixture("llama/mlx-4bit"));
    own["env"]
        .as_object_mut()
        .unwrap()
        .remove("MCP_CONFIG_PATH");
    let (_folder, file) = configuration(json!({"own": own, "broken": {"command": "/no/such"}}));
    let run = |more: &[&str]| {
        let mut command = program(&["run", "--temperature", "0", "-n", "24", "-m"]);
        command
            .arg(&model)
            .args(more)
            .arg("--mcp-config")
            .arg(&file);
        let out = command.arg("What is 2 plus 2?").output().unwrap();
        (
            out.status,
            String::from_utf8_lossy(&out.stderr).into_owned(),
            out.stdout,
        )
    };
    let (status, said, out) = run(&[]);
    assert!(status.success() && out.ends_with(b"\n"), "{said}");
    assert!(
        said.contains("\"broken\": /no/such cannot be started"),
        "{said}"
    );
    // The tools are described in the prompt, which is short otherwise.
    let prompt = said.split("prompt ").nth(1).unwrap();
    let tokens: usize = prompt.split(' ').next().unwrap().parse().unwrap();
    assert!(tokens > 300, "{said}");
    let (status, said, _) = run(&["--raw"]);
    assert!(
        !status.success() && said.contains("leave out --raw"),
        "{said}"
    );
}

const INITIALIZE: &str = r#"{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-11-25","capabilities":{},"clientInfo":{"name":"t","version":"1"}}}"#;

fn initialize(server: &Server, path: &str, more: &str) -> Reply {
    let accept =
        "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n";
    let head = server.head("POST", path, &format!("{accept}{more}"), INITIALIZE.len());
    server.ask(&head, INITIALIZE.as_bytes())
}

#[test]
fn the_route_checks_who_asks() {
    let server = start(&fixture("llama/mlx-4bit"), &["--api-key", "secret"]);
    let key = "Authorization: Bearer secret\r\n";
    let good = initialize(&server, "/mcp", key);
    assert_eq!(good.status, 200, "{good:?}");
    assert!(good.body.contains(r#""name":"biplane""#), "{good:?}");
    assert!(good.head.contains("mcp-session-id"), "{good:?}");
    assert_eq!(initialize(&server, "/mcp", "").status, 401);
    let page = initialize(
        &server,
        "/mcp",
        &format!("{key}Origin: https://evil.example\r\n"),
    );
    assert_eq!(page.status, 403, "{page:?}");
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: evil.example\r\n{key}Connection: close\r\nContent-Length: 0\r\n\r\n"
    );
    assert_eq!(server.ask(&head, b"").status, 403);
    assert_eq!(server.get("/v1/mcp/servers").status, 401);
}

#[test]
fn a_port_of_its_own() {
    // Which port is free is known only for a moment.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let more = ["--api-key", "secret", "--mcp-port", &port.to_string()];
    let mut server = start(&fixture("llama/mlx-4bit"), &more);
    server.port = port;
    let key = "Authorization: Bearer secret\r\n";
    assert_eq!(initialize(&server, "/mcp", key).status, 200);
    assert_eq!(initialize(&server, "/mcp", "").status, 401);
    // There is nothing else.
    let head = server.head("GET", "/v1/models", key, 0);
    assert_eq!(server.ask(&head, b"").status, 404);
}

/// `biplane mcp`, spoken to by lines.
struct Lines {
    child: Child,
    /// Until it is closed.
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Lines {
    fn start() -> Self {
        let mut child = program(&["mcp", "--kv-memory", "64M", "-m"])
            .arg(fixture("llama/mlx-4bit"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().unwrap());
        Self {
            child,
            input,
            output,
        }
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
    }

    /// The next message; everything there is must be one.
    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        let message: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert_eq!(message["jsonrpc"], "2.0");
        message
    }

    /// The answer to a request, and the notifications before it.
    fn ask(&mut self, id: u64, method: &str, params: Value) -> (Value, Vec<Value>) {
        self.send(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        let mut before = Vec::new();
        loop {
            let message = self.read();
            match message["id"] == id {
                true => return (message, before),
                false => before.push(message),
            }
        }
    }
}

#[test]
fn standard_output_has_the_protocol_and_nothing_else() {
    let mut server = Lines::start();
    let params = serde_json::from_str::<Value>(INITIALIZE).unwrap()["params"].clone();
    let (begun, _) = server.ask(1, "initialize", params);
    assert_eq!(begun["result"]["protocolVersion"], "2025-11-25", "{begun}");
    server.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
    server.ask(2, "logging/setLevel", json!({"level": "info"}));
    let complete = json!({"name": "complete", "arguments": {"prompt": "Hello", "max_tokens": 8,
        "temperature": 0}, "_meta": {"progressToken": "p"}});
    let (answer, told) = server.ask(3, "tools/call", complete);
    let given = &answer["result"]["structuredContent"];
    assert_eq!(given["generated_tokens"], 8, "{answer}");
    let of = |method: &str| {
        told.iter()
            .filter(|m| m["method"] == method)
            .collect::<Vec<_>>()
    };
    let progress = of("notifications/progress");
    assert_eq!(progress[0]["params"]["progressToken"], "p", "{told:?}");
    assert_eq!(progress[0]["params"]["total"], 8.0);
    let log = of("notifications/message");
    assert_eq!(log[0]["params"]["data"], "complete was run", "{told:?}");

    let (prompts, _) = server.ask(4, "prompts/list", json!({}));
    assert_eq!(prompts["result"]["prompts"][0]["name"], "chat_template");
    let (wrong, _) = server.ask(5, "prompts/get", json!({"name": "chat_template"}));
    assert!(
        wrong["error"]["message"].as_str().unwrap().contains("user"),
        "{wrong}"
    );
    let (unknown, _) = server.ask(6, "tools/call", json!({"name": "no", "arguments": {}}));
    assert!(unknown["error"].is_object(), "{unknown}");

    // The end of the input is the end.
    server.input = None;
    assert!(server.child.wait().unwrap().success());
}
