//! Whom the server serves, when, and what disturbs nobody.

use super::*;

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
    let said = run(&["--cors-origin", "*"]);
    assert!(!said.status.success());
    assert!(
        String::from_utf8(said.stderr)
            .unwrap()
            .contains("name each origin")
    );
    // A model that is not there ends the server as it ends `run`.
    let missing = program(&["serve", "--port", "0", "-m", "/no/such/model.gguf"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&missing.stderr);
    assert_eq!(missing.status.code(), Some(2), "{said}");
    // Once, and without a terminal's colours.
    assert_eq!(said.matches("no such file").count(), 1, "{said}");
    assert!(!said.contains('\x1b'), "{said:?}");
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
    for path in ["completions", "responses", "embeddings", "models/load"] {
        let reply = server.post(&format!("/v1/{path}"), &json!({}));
        assert_eq!(reply.error(503)["code"], "loading", "{path}");
        assert!(reply.head.contains("retry-after: "), "{}", reply.head);
    }
    let reply = server.post("/v1/messages", &json!({}));
    assert_eq!(reply.status, 503);
    assert_eq!(reply.json()["error"]["type"], "overloaded_error");
    assert!(reply.head.contains("retry-after: "), "{}", reply.head);
    for path in ["/v1/models", "/ready"] {
        assert_eq!(server.get(path).error(503)["code"], "loading", "{path}");
    }
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
