//! A hundred broken requests of every kind, beside one stream that must not notice.

use std::net::Shutdown;

use super::*;

/// What is sent on one connection.
struct Broken {
    what: String,
    bytes: Vec<u8>,
    /// Statuses that are right; none where the server may as well just close.
    right: &'static [u16],
}

/// Where bodies are read.
const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/embeddings",
    "/tokenize",
    "/detokenize",
];

#[test]
fn a_hundred_broken_requests_disturb_no_stream() {
    let server = endless(&["--max-sequences", "4"]);
    let before = server.chat(&hello(json!({})));
    let ask = |tokens: usize| {
        let body = hello(json!({"stream": true, "max_tokens": tokens, "ignore_eos": true}));
        let body = body.to_string();
        let head = server.head("POST", "/v1/chat/completions", "", body.len());
        server.open(&head, body.as_bytes())
    };
    let stream = ask(150_000);
    let reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        // It ends when the test shuts the connection down.
        let _ = BufReader::new(reading).read_to_end(&mut all);
        all
    });
    server.wait_for("requests_running", |n| n == 1.0);

    let mut all = bodies(&server);
    all.extend(fields(&server));
    all.extend(heads(&server));
    assert!(all.len() >= 100, "only {}", all.len());
    let mut wrong = Vec::new();
    for broken in &all {
        let status = send(&server, &broken.bytes);
        let right = match status {
            Some(status) => broken.right.contains(&status),
            None => broken.right.is_empty(),
        };
        if !right {
            wrong.push(format!("{}: {status:?}", broken.what));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    // The stream was there all the time, and is what it is alone.
    server.wait_for("requests_running", |n| n == 1.0);
    stream.shutdown(Shutdown::Both).unwrap();
    let disturbed = contents(&reader.join().unwrap());
    let some = disturbed.len();
    assert!(some > 100, "{some}");
    let mut alone = Vec::new();
    // Some tokens are no text yet.
    let _ = ask(some * 5 / 4).read_to_end(&mut alone);
    let alone = contents(&alone);
    // The last chunk may have been on its way.
    let disturbed = disturbed[..some - 1].concat();
    assert!(alone.concat().starts_with(&disturbed), "{disturbed}");

    server.wait_for("requests_running", |n| n == 0.0);
    assert_eq!(server.get("/health").status, 200);
    let after = server.chat(&hello(json!({})));
    assert_eq!(after.json()["choices"], before.json()["choices"]);
}

/// The texts of a stream's whole chunks.
fn contents(bytes: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let chunks = text.lines().filter_map(|l| l.strip_prefix("data: {"));
    let chunks = chunks.filter_map(|l| serde_json::from_str::<Value>(&format!("{{{l}")).ok());
    chunks
        .filter_map(|c| {
            c["choices"][0]["delta"]["content"]
                .as_str()
                .map(str::to_owned)
        })
        .collect()
}

/// Sends bytes as they are, and says the status of the first answer.
fn send(server: &Server, bytes: &[u8]) -> Option<u16> {
    let mut stream = TcpStream::connect(("127.0.0.1", server.port)).unwrap();
    let limit = Some(Duration::from_secs(60));
    stream.set_read_timeout(limit).unwrap();
    // A server that refuses may close before all of it is there.
    let _ = stream.write_all(bytes);
    let text = String::from_utf8_lossy(bytes);
    if !text.contains("Connection: close\r\n") || text.contains("HALF") {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    if let Err(error) = end {
        let kind = error.kind();
        assert!(kind == std::io::ErrorKind::ConnectionReset, "{kind}");
    }
    let line = String::from_utf8_lossy(&all);
    line.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

fn with_body(server: &Server, path: &str, more: &str, body: &[u8]) -> Vec<u8> {
    let head = server.head("POST", path, more, body.len());
    [head.as_bytes(), body].concat()
}

/// Bodies that are no request, at every path.
fn bodies(server: &Server) -> Vec<Broken> {
    let deep = "[".repeat(100_000);
    let deep_field = format!("{{\"messages\": {}", "{\"a\":".repeat(100_000));
    let closed = format!(
        "{{\"input\": {}{}}}",
        "[".repeat(100_000),
        "]".repeat(100_000)
    );
    let lone = |half: &str| {
        format!(
            r#"{{"messages": [{{"role": "user", "content": "{half}"}}], "max_tokens": 1, "prompt": "{half}", "input": "{half}", "content": "{half}", "tokens": "{half}"}}"#
        )
    };
    let (high, low) = (lone(r"\ud800"), lone(r"a\udc00b"));
    let kinds: [(&str, &[u8]); 11] = [
        ("nothing", b""),
        ("half an object", b"{\"messages\": ["),
        ("no object", b"[1, 2]"),
        ("bytes that are no UTF-8", b"{\"prompt\": \"\xff\xfe\"}"),
        ("100,000 lists", deep.as_bytes()),
        ("100,000 objects", deep_field.as_bytes()),
        ("100,000 lists that end", closed.as_bytes()),
        ("half a surrogate pair", high.as_bytes()),
        ("the other half", low.as_bytes()),
        ("a number that is none", b"{\"max_tokens\": NaN}"),
        ("more after the end", b"{} {}"),
    ];
    let mut all = Vec::new();
    for path in PATHS {
        for (kind, body) in kinds {
            all.push(Broken {
                what: format!("{kind} at {path}"),
                bytes: with_body(server, path, "", body),
                right: &[400],
            });
        }
    }
    for (path, size) in [
        ("/v1/chat/completions", 96 << 20),
        ("/v1/messages", 33 << 20),
    ] {
        all.push(Broken {
            what: format!("{size} bytes at {path}"),
            bytes: with_body(server, path, "", &vec![b' '; size]),
            right: &[413],
        });
    }
    all
}

/// Requests whose fields ask for too much, or for nothing that is.
fn fields(server: &Server) -> Vec<Broken> {
    let words = "word ".repeat(300_000);
    let chain: serde_json::Map<String, Value> = (0..300)
        .map(|i| {
            (
                format!("d{i}"),
                json!({"$ref": format!("#/$defs/d{}", i + 1)}),
            )
        })
        .collect();
    let biases: serde_json::Map<String, Value> =
        (0..2000).map(|i| (i.to_string(), json!(1))).collect();
    let stops: Vec<String> = (0..1000).map(|i| format!("stop {i}")).collect();
    let chat = [
        json!({"stop": 5}),
        json!({"stop": stops}),
        json!({"n": 1_000_000_000}),
        json!({"max_tokens": -1}),
        json!({"max_tokens": 1e300}),
        json!({"seed": 1e300}),
        json!({"temperature": 1e39}),
        json!({"top_logprobs": u64::MAX, "logprobs": true}),
        json!({"logit_bias": biases}),
        json!({"logit_bias": {"99999999999999999999": 1}}),
        json!({"stop_token_ids": [-1]}),
        json!({"messages": {}}),
        json!({"messages": [[]]}),
        json!({"messages": [{"role": "user", "content": words}]}),
        json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]}),
        json!({"response_format": {"type": "regex", "regex": "(((((a{1,999}){1,999}){1,999}){1,999}){1,999})"}}),
        json!({"response_format": {"type": "lark", "lark": "start: start start"}}),
        json!({"response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/$defs/d0", "$defs": chain}}}}),
        json!({"tools": [{"type": "function", "function": {"name": "no name\n"}}], "tool_choice": "required"}),
        json!({"chat_template_kwargs": 5}),
    ];
    let mut all: Vec<Broken> = chat
        .into_iter()
        .map(|more| {
            let what = more.to_string().chars().take(80).collect();
            let body = hello(more).to_string();
            let bytes = with_body(server, PATHS[0], "", body.as_bytes());
            Broken {
                what,
                bytes,
                right: &[400],
            }
        })
        .collect();
    let prompts = |n: usize| json!({"prompt": vec!["a"; n], "max_tokens": 1}).to_string();
    for (n, right) in [(64, &[200][..]), (65, &[400])] {
        all.push(Broken {
            what: format!("{n} prompts"),
            bytes: with_body(server, PATHS[1], "", prompts(n).as_bytes()),
            right,
        });
    }
    let form = "--x\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n{}\r\n--x--\r\n";
    for (kind, body) in [
        ("multipart/form-data; boundary=x", form),
        (
            "application/x-www-form-urlencoded",
            "messages=hello&max_tokens=5",
        ),
        ("application/xml", "<messages/>"),
    ] {
        all.push(Broken {
            what: kind.into(),
            bytes: with_body(
                server,
                PATHS[0],
                &format!("Content-Type: {kind}\r\n"),
                body.as_bytes(),
            ),
            right: &[400],
        });
    }
    all
}

/// What is no HTTP, or too little or too much of it.
fn heads(server: &Server) -> Vec<Broken> {
    let host = format!("Host: localhost:{}\r\n", server.port);
    let post = format!("POST /v1/chat/completions HTTP/1.1\r\n{host}");
    let get = format!("GET /health HTTP/1.1\r\n{host}");
    let long = "x".repeat(1 << 20);
    let many: String = (0..5000).map(|i| format!("x-{i}: y\r\n")).collect();
    let body = hello(json!({})).to_string();
    let n = body.len();
    let cases: Vec<(&str, String, &'static [u16])> = vec![
        ("no HTTP", "hello?\r\n\r\n".into(), &[400]),
        (
            "a later version",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".into(),
            &[],
        ),
        (
            "a version that is none",
            format!("GET / HTTP/9.9\r\n{host}\r\n"),
            &[400],
        ),
        (
            "no host",
            "GET /health HTTP/1.1\r\nConnection: close\r\n\r\n".into(),
            &[403],
        ),
        (
            "another host",
            "GET /health HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n".into(),
            &[403],
        ),
        ("half a head", get.clone(), &[]),
        ("nothing", String::new(), &[]),
        (
            "a header of 1 MiB",
            format!("{get}x: {long}\r\n\r\n"),
            &[431],
        ),
        ("5,000 headers", format!("{get}{many}\r\n"), &[431]),
        (
            "a path of 1 MiB",
            format!("GET /{long} HTTP/1.1\r\n{host}\r\n"),
            &[414, 431],
        ),
        (
            "a header without a name",
            format!("{get}: x\r\n\r\n"),
            &[400],
        ),
        (
            "a length that is none",
            format!("{post}Content-Length: many\r\n\r\n"),
            &[400],
        ),
        (
            "a negative length",
            format!("{post}Content-Length: -5\r\n\r\n"),
            &[400],
        ),
        (
            "two lengths",
            format!("{post}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{{}}"),
            &[400],
        ),
        (
            "half a body",
            format!("{post}Content-Length: 5000\r\n\r\n{{\"messages\": \"HALF"),
            &[400],
        ),
        (
            "a body of wrong chunks",
            format!(
                "{post}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nzz\r\n{{}}\r\n0\r\n\r\n"
            ),
            &[400],
        ),
        (
            "half a chunk",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nff\r\nHALF"),
            &[400],
        ),
        (
            "a coding that is none",
            format!("{post}Transfer-Encoding: smoke\r\n\r\n"),
            &[400],
        ),
        (
            "a method that is none",
            format!("BREW /health HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
            &[405],
        ),
        (
            "a tunnel",
            format!(
                "CONNECT localhost:{} HTTP/1.1\r\n{host}Connection: close\r\n\r\n",
                server.port
            ),
            &[400, 404, 405],
        ),
        (
            "a path that leads out",
            format!("GET /../../etc/passwd HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
            &[404],
        ),
        (
            "a name that is no UTF-8",
            format!("GET /v1/models/%ff%fe HTTP/1.1\r\n{host}Connection: close\r\n\r\n"),
            &[400],
        ),
        (
            "a request, then none",
            format!("{get}\r\n\0\0\0garbage\r\n\r\n"),
            &[200],
        ),
        (
            "an answer, then none",
            format!("{post}Content-Length: {n}\r\n\r\n{body}}}}}}}garbage\r\n\r\n"),
            &[200],
        ),
    ];
    let mut all: Vec<Broken> = cases
        .into_iter()
        .map(|(what, text, right)| Broken {
            what: what.into(),
            bytes: text.into(),
            right,
        })
        .collect();
    let hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".repeat(9);
    all.push(Broken {
        what: "TLS".into(),
        bytes: hello,
        right: &[400],
    });
    all
}
