//! A small MCP server over standard input and output, for tests: plain JSON, so that it can be as odd
//! as real servers are.

use std::{
    io::{BufRead, Write},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use serde_json::{Value, json};

/// Calls that nobody waits for any more.
static CANCELLED: AtomicUsize = AtomicUsize::new(0);

/// Calls that never end.
static ASLEEP: AtomicUsize = AtomicUsize::new(0);

/// Whether the tools are others than at first.
static CHANGED: AtomicBool = AtomicBool::new(false);

fn main() {
    if std::env::args().nth(1).as_deref() == Some("broken") {
        println!("this is no MCP");
        std::process::exit(3);
    }
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let Ok(message) = serde_json::from_str::<Value>(&line) else {
            continue;
        };
        let id = message["id"].clone();
        if id.is_null() {
            if message["method"] == "notifications/cancelled" {
                CANCELLED.fetch_add(1, Ordering::SeqCst);
            }
            continue;
        }
        let method = message["method"].as_str().unwrap_or_default().to_owned();
        let params = message["params"].clone();
        // Calls of one connection end in any order.
        std::thread::spawn(move || match answer(&method, &params) {
            Some(result) => send(json!({"jsonrpc": "2.0", "id": id, "result": result})),
            None => {
                let error = json!({"code": -32601, "message": "no such method"});
                send(json!({"jsonrpc": "2.0", "id": id, "error": error}));
            }
        });
    }
    // As a server that does not notice that nobody is there any more.
    while std::env::args().nth(1).as_deref() == Some("stubborn") {
        std::thread::park();
    }
}

fn send(message: Value) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{message}");
    let _ = out.flush();
}

fn answer(method: &str, params: &Value) -> Option<Value> {
    Some(match method {
        "initialize" => json!({
            "protocolVersion": "2025-06-18",
            "capabilities": {"tools": {"listChanged": true}, "resources": {}, "prompts": {}},
            "serverInfo": {"name": "small", "version": "1"},
        }),
        "tools/list" if CHANGED.load(Ordering::SeqCst) => json!({"tools": [
            tool("echo", json!({"type": "object"})),
            tool("later", json!({"type": "object"})),
        ]}),
        "tools/list" if params["cursor"] == "more" => json!({"tools": [
            tool("add", json!({"type": "object", "properties": {
                "a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]})),
            tool("odd name!", json!({"type": "object"})),
            {"name": "odd", "inputSchema": "no schema"},
            tool("list", json!({"type": "array"})),
        ]}),
        "tools/list" => json!({"nextCursor": "more", "tools": [
            tool("echo", json!({"type": "object", "properties": {"text": {"type": "string"}}})),
            tool("more", json!({"type": "object"})),
            tool("die", json!({"type": "object"})),
            tool("fail", json!({"type": "object"})),
            tool("large", json!({"type": "object"})),
            tool("picture", json!({"type": "object"})),
            tool("cancelled", json!({"type": "object"})),
            tool("sleep", json!({"type": "object", "additionalProperties": false})),
            tool("asleep", json!({"type": "object"})),
            tool("process", json!({"type": "object"})),
            tool("environment", json!({"type": "object"})),
        ]}),
        "tools/call" => call(params["name"].as_str()?, &params["arguments"]),
        "resources/list" => json!({"resources": [{"uri": "test://one", "name": "one"}]}),
        "resources/read" => json!({"contents": [{"uri": params["uri"], "text": "its text"}]}),
        "prompts/list" => json!({"prompts": [{"name": "greet", "description": "Greets"}]}),
        "prompts/get" => json!({"messages": [{"role": "user", "content":
            {"type": "text", "text": format!("Hello {}", params["arguments"]["who"].as_str()?)}}]}),
        _ => return None,
    })
}

fn tool(name: &str, schema: Value) -> Value {
    json!({"name": name, "description": "A tool", "inputSchema": schema})
}

fn call(name: &str, arguments: &Value) -> Value {
    let text = |text: String| json!({"content": [{"type": "text", "text": text}]});
    match name {
        "add" => {
            let sum = arguments["a"].as_i64().unwrap_or(0) + arguments["b"].as_i64().unwrap_or(0);
            json!({"content": [], "structuredContent": {"sum": sum}})
        }
        "echo" => text(arguments["text"].as_str().unwrap_or_default().to_owned()),
        "later" => text("it came".into()),
        "more" => {
            CHANGED.store(true, Ordering::SeqCst);
            send(json!({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"}));
            text("changed".into())
        }
        "cancelled" => text(CANCELLED.load(Ordering::SeqCst).to_string()),
        "process" => text(std::process::id().to_string()),
        "die" => std::process::exit(1),
        "fail" => json!({"isError": true, "content": [{"type": "text", "text": "it is broken"}]}),
        "large" => text("x".repeat(1024 * 1024 + 1)),
        "picture" => json!({"content": [
            {"type": "text", "text": "See:"},
            {"type": "image", "data": "", "mimeType": "image/png"}]}),
        "asleep" => text(ASLEEP.load(Ordering::SeqCst).to_string()),
        "sleep" => {
            ASLEEP.fetch_add(1, Ordering::SeqCst);
            loop {
                std::thread::park();
            }
        }
        _ => text(format!(
            "{} in {}",
            std::env::var("MCP_TEST").unwrap_or_default(),
            std::env::current_dir().unwrap_or_default().display()
        )),
    }
}
