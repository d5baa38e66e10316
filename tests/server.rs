//! The program as an HTTP server, over plain TCP.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

#[path = "server/apis.rs"]
mod apis;
#[path = "server/broken.rs"]
mod broken;
#[path = "server/fields.rs"]
mod fields;
#[path = "server/limits.rs"]
mod limits;
#[path = "server/mcp.rs"]
mod mcp;
#[path = "server/models.rs"]
mod models;
#[path = "server/wire.rs"]
mod wire;

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
        "MODEL_NAME",
        "MODELS_DIR",
        "MAX_MODELS",
        "MODELS_MEMORY",
        "IDLE_UNLOAD",
    ] {
        command.env_remove(format!("BIPLANE_{name}"));
    }
    command.env_remove("MCP_CONFIG_PATH");
    command.env("BIPLANE_DEVICE", "cpu").args(args);
    command
}

fn start_loading(model: &Path, more: &[&str]) -> Server {
    let mut server = start_any(&[&["-m", model.to_str().unwrap()], more].concat());
    server.name = model.file_stem().unwrap().to_str().unwrap().to_owned();
    server
}

/// A server of whatever these arguments say.
fn start_any(args: &[&str]) -> Server {
    let mut child = program(&["serve", "--port", "0", "--kv-memory", "256M"])
        .args(args)
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
    Server {
        child,
        port: digits.parse().unwrap(),
        name: String::new(),
    }
}

fn start(model: &Path, more: &[&str]) -> Server {
    let server = start_loading(model, more);
    server.wait_healthy();
    server
}

impl Server {
    fn wait_healthy(&self) {
        let begin = Instant::now();
        while self.get("/health").status != 200 {
            assert!(
                begin.elapsed() < Duration::from_secs(120),
                "the model does not load"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn tiny() -> Server {
    start(&fixture("llama/mlx-4bit"), &[])
}

/// As [`tiny`], with answers as long as one likes.
fn endless(more: &[&str]) -> Server {
    let folder = endless_model();
    // The files are mapped when the server is ready; their names may go.
    start(folder.path(), more)
}

/// A model whose answers are as long as one likes.
fn endless_model() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture("llama/mlx-4bit")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    let config = folder.path().join("config.json");
    let mut fields: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    fields["max_position_embeddings"] = 200_000.into();
    std::fs::write(&config, fields.to_string()).unwrap();
    folder
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

    /// A figure of `/metrics`, of all models together.
    fn metric(&self, name: &str) -> f64 {
        let (values, text) = self.figures(name);
        assert!(!values.is_empty(), "no {name}: {text}");
        values.iter().map(|(_, value)| value).sum()
    }

    /// A figure of `/metrics` for a model.
    fn metric_of(&self, name: &str, model: &str) -> Option<f64> {
        let (values, _) = self.figures(name);
        let label = format!("{{model=\"{model}\"}}");
        let found = values.into_iter().find(|(labels, _)| *labels == label);
        found.map(|(_, value)| value)
    }

    /// A figure's labels and values.
    fn figures(&self, name: &str) -> (Vec<(String, f64)>, String) {
        let text = self.get("/metrics").body;
        let name = format!("biplane_{name}");
        let own = text.lines().filter_map(|l| l.strip_prefix(&name));
        let own = own.filter(|rest| rest.starts_with([' ', '{']));
        let pair = |rest: &str| {
            let (labels, value) = rest.rsplit_once(' ').unwrap();
            (labels.to_owned(), value.parse().unwrap())
        };
        (own.map(pair).collect(), text)
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
