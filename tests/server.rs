//! The program as an HTTP server, over plain TCP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use biplane_tests::{fixture, real_model};
use serde_json::{Value, json};

/// A server that ends with the test.
struct Server {
    child: Child,
    port: u16,
    name: String,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_biplane"));
    for name in [
        "MODEL",
        "BACKEND",
        "THREADS",
        "HOST",
        "PORT",
        "API_KEY",
        "KV_MEMORY",
    ] {
        command.env_remove(format!("BIPLANE_{name}"));
    }
    command.env("BIPLANE_DEVICE", "cpu").args(args);
    command
}

fn start_loading(model: &Path, more: &[&str]) -> Server {
    let mut child = program(&["serve", "--port", "0", "--kv-memory", "256M", "-m"])
        .arg(model)
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    let rest = line
        .split("http://")
        .nth(1)
        .unwrap_or_else(|| panic!("{line}"));
    let digits = rest.split(':').nth(1).unwrap();
    let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
    // Whoever writes to a closed pipe would hear of it.
    std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
    let name = model.file_stem().unwrap().to_str().unwrap().to_owned();
    Server {
        child,
        port: digits.parse().unwrap(),
        name,
    }
}

fn start(model: &Path, more: &[&str]) -> Server {
    let server = start_loading(model, more);
    let begin = Instant::now();
    while server.get("/health").status != 200 {
        assert!(
            begin.elapsed() < Duration::from_secs(120),
            "the model does not load"
        );
        std::thread::sleep(Duration::from_millis(50));
    }
    server
}

fn tiny() -> Server {
    start(&fixture("llama/mlx-4bit"), &[])
}

/// As [`tiny`], with answers as long as one likes.
fn endless(more: &[&str]) -> Server {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama/mlx-4bit")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = folder.path().join("config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    fields["max_position_embeddings"] = 200_000.into();
    std::fs::write(&config, fields.to_string()).unwrap();
    // The files are mapped when the server is ready; their names may go.
    start(folder.path(), more)
}

fn smollm() -> Option<Server> {
    Some(start(&real_model("smollm2-135m-instruct-q4_1.gguf")?, &[]))
}

#[derive(Debug)]
struct Reply {
    status: u16,
    head: String,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// A stream's events.
    fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        assert!(self.body.ends_with("data: [DONE]\n\n"), "{}", self.body);
        let data = self
            .body
            .split("\n\n")
            .filter_map(|e| e.strip_prefix("data: "));
        let data = data.filter(|e| *e != "[DONE]");
        data.map(|e| serde_json::from_str(e).unwrap()).collect()
    }

    fn error(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        let error = self.json()["error"].clone();
        for name in ["message", "type", "param", "code"] {
            assert!(error.get(name).is_some(), "no {name}: {error}");
        }
        error
    }
}

fn unchunk(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|w| w == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).unwrap();
        let size = usize::from_str_radix(size, 16).unwrap();
        out.extend_from_slice(&body[end + 2..end + 2 + size]);
        body = &body[end + 4 + size..];
    }
    out
}

impl Server {
    fn open(&self, head: &str, body: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(120)))
            .unwrap();
        stream.write_all(head.as_bytes()).unwrap();
        // A server that refuses a body may close before all of it is there.
        let _ = stream.write_all(body);
        stream
    }

    fn ask(&self, head: &str, body: &[u8]) -> Reply {
        read(self.open(head, body))
    }

    fn head(&self, method: &str, path: &str, more: &str, length: usize) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost:{}\r\nConnection: close\r\nContent-Length: {length}\r\n{more}\r\n",
            self.port
        )
    }

    fn get(&self, path: &str) -> Reply {
        self.ask(&self.head("GET", path, "", 0), b"")
    }

    fn post(&self, path: &str, body: &Value) -> Reply {
        let body = body.to_string();
        self.ask(&self.head("POST", path, "", body.len()), body.as_bytes())
    }

    fn chat(&self, body: &Value) -> Reply {
        self.post("/v1/chat/completions", body)
    }

    /// A figure of `/metrics`.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics").body;
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("biplane_{name} ")));
        line.unwrap_or_else(|| panic!("no {name}: {text}"))
            .parse()
            .unwrap()
    }

    fn wait_for(&self, name: &str, good: impl Fn(f64) -> bool) {
        let begin = Instant::now();
        while !good(self.metric(name)) {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{name} stays {}",
                self.metric(name)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

fn read(mut stream: TcpStream) -> Reply {
    let mut all = Vec::new();
    // What came before a reset counts.
    let _ = stream.read_to_end(&mut all);
    let end = all.windows(4).position(|w| w == b"\r\n\r\n");
    let end = end.unwrap_or_else(|| panic!("no head: {:?}", String::from_utf8_lossy(&all)));
    let head = String::from_utf8(all[..end].to_vec())
        .unwrap()
        .to_ascii_lowercase();
    let body = match head.contains("transfer-encoding: chunked") {
        true => unchunk(&all[end + 4..]),
        false => all[end + 4..].to_vec(),
    };
    Reply {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        body: String::from_utf8(body).unwrap(),
        head,
    }
}

fn hello(more: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "Hello"}], "temperature": 0, "max_tokens": 12});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    body
}

/// What the chunks of one choice say.
fn text_of(chunks: &[Value], index: u64) -> String {
    let choices = chunks.iter().flat_map(|c| c["choices"].as_array().unwrap());
    let own = choices.filter(|c| c["index"] == index);
    own.filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn streamed_is_whole() {
    let server = tiny();
    let whole = server.chat(&hello(json!({"logprobs": true, "top_logprobs": 2})));
    assert_eq!(whole.status, 200, "{whole:?}");
    let whole = whole.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], server.name);
    let text = whole["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.is_empty());
    assert_eq!(whole["usage"]["completion_tokens"], 12);
    assert!(whole["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
    assert!(whole["timings"]["predicted_per_second"].as_f64().unwrap() > 0.0);
    let tokens = whole["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap();
    assert!(
        tokens
            .iter()
            .all(|t| t["top_logprobs"].as_array().unwrap().len() == 2)
    );

    let more = json!({"stream": true, "logprobs": true, "top_logprobs": 2, "stream_options": {"include_usage": true}});
    let chunks = server.chat(&hello(more)).events();
    assert_eq!(text_of(&chunks, 0), text);
    assert_eq!(chunks[0]["choices"][0]["delta"]["role"], "assistant");
    let [.., last, usage] = &chunks[..] else {
        panic!()
    };
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(last["timings"]["predicted_n"], 12);
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["completion_tokens"], 12);
    let lists = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["content"].as_array());
    assert_eq!(lists.flatten().count(), tokens.len());

    let two = server
        .chat(&hello(json!({"n": 2, "temperature": 1.5, "seed": 1})))
        .json();
    let [a, b] = [0, 1].map(|i| two["choices"][i]["message"]["content"].clone());
    assert_ne!(a, b);
    let chunks = server.chat(&hello(
        json!({"n": 2, "temperature": 1.5, "seed": 1, "stream": true}),
    ));
    let chunks = chunks.events();
    assert_eq!([a, b], [0, 1].map(|i| Value::from(text_of(&chunks, i))));
}

#[test]
fn wrong_requests_are_named_and_disturb_no_one() {
    let server = tiny();
    let long = hello(json!({"stream": true, "max_tokens": 200, "ignore_eos": true}));
    let alone = text_of(&server.chat(&long).events(), 0);
    let body = long.to_string();
    let head = server.head("POST", "/v1/chat/completions", "", body.len());
    let beside = server.open(&head, body.as_bytes());
    for (more, status, param) in [
        (json!({"stop": 5}), 400, json!("stop")),
        (json!({"temperature": -1}), 400, json!("temperature")),
        (json!({"temperature": "hot"}), 400, json!("temperature")),
        (json!({"n": 100}), 400, json!("n")),
        (
            json!({"functions": [{"name": "f"}]}),
            400,
            json!("functions"),
        ),
        (json!({"model": "gpt-4"}), 404, json!("model")),
        (json!({"messages": []}), 400, json!("messages")),
        (
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            400,
            json!("messages[0].role"),
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
            400,
            json!("messages[0].content[0]"),
        ),
        (
            json!({"messages": [{"role": "user", "content": "word ".repeat(5000)}]}),
            400,
            json!("messages"),
        ),
        (
            json!({"response_format": {"type": "regex", "regex": "("}}),
            400,
            json!("response_format"),
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 5}}}}),
            400,
            json!("response_format"),
        ),
        (
            json!({"tool_choice": "required"}),
            400,
            json!("tool_choice"),
        ),
    ] {
        let reply = server.chat(&hello(more.clone()));
        assert_eq!(reply.error(status)["param"], param, "{more} {reply:?}");
    }
    let raw = |body: &[u8]| {
        server.ask(
            &server.head("POST", "/v1/chat/completions", "", body.len()),
            body,
        )
    };
    for body in [
        &b"\xff\xfe"[..],
        b"",
        b"{",
        b"[]",
        "[".repeat(100_000).as_bytes(),
    ] {
        raw(body).error(400);
    }
    raw(&vec![b' '; (32 << 20) + 1]).error(413);
    assert_eq!(server.get("/nowhere").error(404)["code"], "not_found");
    server.get("/v1/chat/completions").error(405);
    server.get("/v1/models/other").error(404);
    assert_eq!(text_of(&read(beside).events(), 0), alone);
}

#[test]
fn completions_in_all_forms() {
    let server = tiny();
    let ask = |more: Value| {
        let mut body = json!({"temperature": 0, "max_tokens": 8});
        body.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        server.post("/v1/completions", &body)
    };
    let whole = ask(json!({"prompt": "Alice was"})).json();
    let text = whole["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(!text.is_empty());
    let chunks = ask(json!({"prompt": "Alice was", "stream": true})).events();
    let streamed: String = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["text"].as_str())
        .collect();
    assert_eq!(streamed, text);
    let tokens = server.post(
        "/tokenize",
        &json!({"content": "Alice was", "add_special": true}),
    );
    let tokens = tokens.json()["tokens"].clone();
    let back = server
        .post("/detokenize", &json!({"tokens": tokens}))
        .json();
    assert_eq!(back["content"].as_str().unwrap().trim(), "Alice was");
    let both = ask(json!({"prompt": [tokens, tokens], "n": 2})).json();
    let choices = both["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 4);
    assert!(choices.iter().all(|c| c["text"] == text));
    let n = tokens.as_array().unwrap().len() as u64;
    assert_eq!(both["usage"]["prompt_tokens"], 2 * n);
    assert_eq!(both["usage"]["completion_tokens"], 32);
    let echo = ask(json!({"prompt": tokens, "echo": true, "logprobs": 1, "max_tokens": 0})).json();
    let logprobs = &echo["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len() as u64, n);
    assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    assert!(logprobs["token_logprobs"][1].as_f64().unwrap() <= 0.0);
    for (more, param) in [
        (json!({"suffix": "x"}), "suffix"),
        (json!({"best_of": 3}), "best_of"),
        (json!({"prompt": []}), "prompt"),
        (json!({"prompt": [1, "a"]}), "prompt"),
        (json!({"prompt": [4_000_000]}), "prompt"),
        (json!({"prompt": ""}), "prompt"),
    ] {
        let mut all = json!({"prompt": "a"});
        all.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        if param == "prompt" && all["prompt"] == "" && ask(all.clone()).status == 200 {
            continue; // A model with a beginning-of-sequence token can begin by itself.
        }
        assert_eq!(ask(all).error(400)["param"], param, "{more}");
    }
}

#[test]
fn embeddings_as_numbers_and_base64() {
    let server = tiny();
    let ask = |body: Value| server.post("/v1/embeddings", &body);
    let got = ask(json!({"input": ["Alice", "Alice", "a rabbit"]})).json();
    let data = got["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    assert_eq!(data[0]["embedding"], data[1]["embedding"]);
    assert_ne!(data[0]["embedding"], data[2]["embedding"]);
    assert!(got["usage"]["prompt_tokens"].as_u64().unwrap() >= 3);
    let base64 = ask(json!({"input": "Alice", "encoding_format": "base64"})).json();
    let width = data[0]["embedding"].as_array().unwrap().len();
    let text = base64["data"][0]["embedding"].as_str().unwrap();
    assert_eq!(text.len(), (width * 4).div_ceil(3) * 4);
    assert_eq!(
        ask(json!({"input": "a", "dimensions": 8})).error(400)["param"],
        "dimensions"
    );
    assert_eq!(ask(json!({"input": []})).error(400)["param"], "input");
    assert_eq!(ask(json!({})).error(400)["param"], "input");
}

#[test]
fn a_reader_that_leaves_frees_its_sequence() {
    let server = endless(&[]);
    let before = server.metric("requests_cancelled_total");
    for stream in [true, false] {
        let body =
            hello(json!({"stream": stream, "max_tokens": 150_000, "ignore_eos": true})).to_string();
        let head = server.head("POST", "/v1/chat/completions", "", body.len());
        let open = server.open(&head, body.as_bytes());
        server.wait_for("requests_running", |n| n == 1.0);
        drop(open);
        server.wait_for("requests_running", |n| n == 0.0);
    }
    let gone = server.metric("requests_cancelled_total") - before;
    assert_eq!(gone, 2.0);
}

#[test]
fn who_comes_when_the_queue_is_full_is_sent_away() {
    let server = endless(&["--max-sequences", "1", "--max-queue", "1"]);
    let body =
        hello(json!({"stream": true, "max_tokens": 150_000, "ignore_eos": true})).to_string();
    let head = server.head("POST", "/v1/chat/completions", "", body.len());
    let running = server.open(&head, body.as_bytes());
    server.wait_for("requests_running", |n| n == 1.0);
    let waiting = server.open(&head, body.as_bytes());
    server.wait_for("requests_queued", |n| n == 1.0);
    let refused = server.chat(&hello(json!({})));
    assert_eq!(refused.error(429)["code"], "queue_full");
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    drop((running, waiting));
    server.wait_for("requests_running", |n| n == 0.0);
    assert_eq!(server.chat(&hello(json!({}))).status, 200);
}

#[cfg(unix)]
#[test]
fn a_second_signal_ends_the_server_at_once() {
    let mut server = endless(&[]);
    let body =
        hello(json!({"stream": true, "max_tokens": 150_000, "ignore_eos": true})).to_string();
    let head = server.head("POST", "/v1/chat/completions", "", body.len());
    let _open = server.open(&head, body.as_bytes());
    server.wait_for("requests_running", |n| n == 1.0);
    let kill = || {
        Command::new("kill")
            .args(["-TERM", &server.child.id().to_string()])
            .status()
    };
    assert!(kill().unwrap().success());
    let begin = Instant::now();
    while server.get("/ready").status != 503 {
        assert!(
            begin.elapsed() < Duration::from_secs(20),
            "it does not drain"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        server.chat(&hello(json!({}))).error(503)["code"],
        "draining"
    );
    assert!(kill().unwrap().success());
    assert_eq!(server.child.wait().unwrap().code(), Some(130));
}

#[test]
fn keys_hosts_and_origins() {
    let server = start(
        &fixture("llama/mlx-4bit"),
        &[
            "--api-key",
            "secret",
            "--cors-origin",
            "https://app.example",
        ],
    );
    let with = |path: &str, more: &str| server.ask(&server.head("GET", path, more, 0), b"");
    assert_eq!(with("/v1/models", "").error(401)["code"], "invalid_api_key");
    with("/v1/models", "Authorization: Bearer secrets\r\n").error(401);
    with("/metrics", "").error(401);
    let models = with("/v1/models", "Authorization: Bearer secret\r\n").json();
    assert_eq!(models["data"][0]["id"], server.name);
    assert_eq!(with("/v1/models", "x-api-key: secret\r\n").status, 200);
    assert_eq!(with("/health", "").status, 200);
    let page = with("/", "");
    assert!(
        page.head
            .contains("content-security-policy: default-src 'none'"),
        "{}",
        page.head
    );
    assert!(page.body.contains("app.js"));
    assert!(
        with("/app.js", "")
            .head
            .contains("content-type: text/javascript")
    );
    let other = "GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    assert_eq!(server.ask(other, b"").error(403)["code"], "wrong_host");
    let own = format!("Origin: http://localhost:{}\r\n", server.port);
    assert_eq!(with("/health", &own).status, 200);
    with("/health", "Origin: https://evil.example\r\n").error(403);
    let reply = with("/health", "Origin: https://app.example\r\n");
    assert!(
        reply
            .head
            .contains("access-control-allow-origin: https://app.example"),
        "{}",
        reply.head
    );
    assert!(
        with("/health", "x-request-id: my-id\r\n")
            .head
            .contains("x-request-id: my-id")
    );
}

#[test]
fn others_need_a_key() {
    let model = fixture("llama/mlx-4bit");
    let run = |args: &[&str]| {
        program(&["serve", "--port", "0", "-m"])
            .arg(&model)
            .args(args)
            .output()
            .unwrap()
    };
    let said = run(&["--host", "0.0.0.0"]);
    assert!(!said.status.success());
    assert!(
        String::from_utf8(said.stderr)
            .unwrap()
            .contains("--api-key")
    );
    // A model that is not there ends the server as it ends `run`.
    let missing = program(&["serve", "--port", "0", "-m", "/no/such/model.gguf"])
        .output()
        .unwrap();
    assert_eq!(
        missing.status.code(),
        Some(2),
        "{}",
        String::from_utf8_lossy(&missing.stderr)
    );
}

#[test]
fn it_answers_while_the_model_loads() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let server = start_loading(&model, &["--isq", "Q2K"]);
    let health = server.get("/health");
    let chat = server.chat(&hello(json!({})));
    assert_eq!(health.status, 503, "{health:?}");
    assert_eq!(health.json()["status"], "loading");
    assert!(health.head.contains("retry-after"));
    assert_eq!(chat.error(503)["code"], "loading");
    assert!(server.get("/").body.contains("Biplane"));
}

#[cfg(unix)]
#[test]
fn running_answers_end_before_the_server_does() {
    let mut server = endless(&[]);
    let body = hello(json!({"stream": true, "max_tokens": 3000, "ignore_eos": true})).to_string();
    let head = server.head("POST", "/v1/chat/completions", "", body.len());
    let open = server.open(&head, body.as_bytes());
    server.wait_for("requests_running", |n| n == 1.0);
    let pid = server.child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-TERM", &pid])
            .status()
            .unwrap()
            .success()
    );
    let chunks = read(open).events();
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "length"
    );
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_demanded_tool_is_called() {
    let Some(server) = smollm() else { return };
    let tools = json!([{"type": "function", "function": {"name": "get_weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"], "additionalProperties": false}}}]);
    let ask = json!({"messages": [{"role": "user", "content": "How is the weather in Paris?"}], "temperature": 0,
        "max_tokens": 120, "tools": tools, "tool_choice": {"type": "function", "function": {"name": "get_weather"}}});
    let reply = server.chat(&ask);
    assert_eq!(reply.status, 200, "{reply:?}");
    let choice = reply.json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "get_weather");
    let arguments = call["function"]["arguments"].as_str().unwrap();
    assert!(serde_json::from_str::<Value>(arguments).unwrap()["city"].is_string());
    let mut streamed = ask.clone();
    streamed["stream"] = true.into();
    let chunks = server.chat(&streamed).events();
    let deltas = chunks.iter().filter_map(|c| {
        c["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"].as_str()
    });
    assert_eq!(deltas.collect::<String>(), arguments);
    assert_eq!(
        chunks.last().unwrap()["choices"][0]["finish_reason"],
        "tool_calls"
    );
}

#[test]
fn answers_have_the_form_that_is_asked_for() {
    let Some(server) = smollm() else { return };
    let schema = json!({"type": "object", "properties": {"age": {"type": "integer", "minimum": 0, "maximum": 120}}, "required": ["age"], "additionalProperties": false});
    let format =
        json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema}});
    let reply = server.chat(&hello(json!({"response_format": format, "max_tokens": 60})));
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = reply.json()["choices"][0]["message"]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}"));
    assert!(value["age"].as_u64().unwrap() <= 120);
    let choice = server
        .chat(&hello(
            json!({"response_format": {"type": "choice", "choice": ["yes", "no"]}}),
        ))
        .json();
    let text = choice["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(["yes", "no"].contains(&text), "{text}");
}

/// The events of a stream whose events have names.
fn typed(reply: &Reply) -> Vec<Value> {
    assert_eq!(reply.status, 200, "{reply:?}");
    let events = reply
        .body
        .split("\n\n")
        .filter(|e| e.starts_with("event: "));
    let event = |text: &str| {
        let (name, data) = text.split_once("\ndata: ").unwrap();
        let value: Value = serde_json::from_str(data).unwrap();
        assert_eq!(name.strip_prefix("event: "), value["type"].as_str());
        value
    };
    events.map(event).collect()
}

#[test]
fn the_other_apis_say_the_same() {
    let server = tiny();
    let chat = server.chat(&hello(json!({}))).json();
    let text = chat["choices"][0]["message"]["content"].as_str().unwrap();

    let mut ask = hello(json!({}));
    let whole = server.post("/v1/messages", &ask).json();
    assert_eq!(whole["content"][0]["text"], text, "{whole}");
    assert_eq!(whole["stop_reason"], "max_tokens");
    assert_eq!(whole["usage"]["output_tokens"], 12);
    ask["stream"] = true.into();
    let events = typed(&server.post("/v1/messages", &ask));
    let pieces = events.iter().filter_map(|e| e["delta"]["text"].as_str());
    assert_eq!(pieces.collect::<String>(), text);
    let kinds: Vec<&str> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..2], ["message_start", "content_block_start"]);
    let [.., a, b, c] = kinds[..] else { panic!() };
    assert_eq!(
        [a, b, c],
        ["content_block_stop", "message_delta", "message_stop"]
    );
    let tokens = server.post("/v1/messages/count_tokens", &ask).json();
    assert_eq!(tokens["input_tokens"], chat["usage"]["prompt_tokens"]);
    let wrong = server.post("/v1/messages", &json!({"messages": [], "max_tokens": 1}));
    assert_eq!(wrong.status, 400);
    assert_eq!(wrong.json()["error"]["type"], "invalid_request_error");

    let mut ask = json!({"input": "Hello", "temperature": 0, "max_output_tokens": 12});
    let whole = server.post("/v1/responses", &ask).json();
    assert_eq!(whole["output"][0]["content"][0]["text"], text, "{whole}");
    assert_eq!(whole["status"], "incomplete");
    ask["stream"] = true.into();
    let events = typed(&server.post("/v1/responses", &ask));
    let pieces = events
        .iter()
        .filter(|e| e["type"] == "response.output_text.delta");
    assert_eq!(
        pieces
            .map(|e| e["delta"].as_str().unwrap())
            .collect::<String>(),
        text
    );
    let numbers = events
        .iter()
        .map(|e| e["sequence_number"].as_u64().unwrap());
    assert!(numbers.eq(0..events.len() as u64));
    let last = events.last().unwrap();
    assert_eq!(last["type"], "response.incomplete");
    assert_eq!(last["response"]["output"][0]["content"][0]["text"], text);
}
