//! HTTP as it is seldom spoken: what comes in one piece, in drops, in older versions, or from who has left.

use super::*;

/// All that comes on one connection until the server closes it.
fn all(mut stream: TcpStream) -> String {
    let mut all = Vec::new();
    let _ = stream.read_to_end(&mut all);
    String::from_utf8(all).unwrap()
}

impl Server {
    /// A head that does not ask to close the connection.
    fn open_head(&self, line: &str, more: &str) -> String {
        format!("{line}\r\nHost: localhost:{}\r\n{more}\r\n", self.port)
    }

    fn raw(&self, bytes: &[u8]) -> String {
        all(self.open("", bytes))
    }
}

#[test]
fn requests_in_one_piece_are_answered_in_their_order() {
    let server = tiny();
    let post = |body: Value| {
        let body = body.to_string();
        let line = "POST /v1/chat/completions HTTP/1.1";
        let head = server.open_head(line, &format!("Content-Length: {}\r\n", body.len()));
        format!("{head}{body}")
    };
    let whole = post(hello(json!({})));
    let stream = post(hello(json!({"stream": true})));
    let wrong = post(json!({"messages": 5}));
    let health = server.open_head("GET /health HTTP/1.1", "");
    let last = server.head("GET", "/v1/models", "", 0);
    let said = server.raw(format!("{health}{stream}{wrong}{whole}{health}{last}").as_bytes());
    let starts: Vec<_> = said.match_indices("HTTP/1.1 ").map(|(at, _)| at).collect();
    let status = |at: &usize| said[at + 9..at + 12].parse().unwrap();
    let statuses: Vec<u16> = starts.iter().map(status).collect();
    assert_eq!(statuses, [200, 200, 400, 200, 200, 200], "{said}");
    let of = |i: usize| {
        let end = starts.get(i + 1).copied().unwrap_or(said.len());
        &said[starts[i]..end]
    };
    assert!(of(1).contains("data: [DONE]"), "{said}");
    assert!(of(2).contains("messages"), "{said}");
    assert!(of(3).contains("\"chat.completion\""), "{said}");
    assert!(of(5).contains("\"object\":\"list\""), "{said}");
}

#[test]
fn old_clients_get_answers_without_chunks() {
    let server = tiny();
    let said = server.raw(server.open_head("GET /health HTTP/1.0", "").as_bytes());
    assert!(
        said.contains(" 200 ") && said.ends_with("{\"status\":\"ok\"}"),
        "{said}"
    );
    let body = hello(json!({"stream": true})).to_string();
    let length = format!("Content-Length: {}\r\n", body.len());
    let head = server.open_head("POST /v1/chat/completions HTTP/1.0", &length);
    let said = server.raw(format!("{head}{body}").as_bytes());
    let (head, events) = said.split_once("\r\n\r\n").unwrap();
    assert!(!head.to_lowercase().contains("chunked"), "{head}");
    assert!(
        events.starts_with("data: {") && events.ends_with("data: [DONE]\n\n"),
        "{events}"
    );
}

#[test]
fn heads_and_options_have_no_body_and_no_effect() {
    let server = tiny();
    for path in ["/health", "/v1/models", "/metrics", "/"] {
        let reply = server.ask(&server.head("HEAD", path, "", 0), b"");
        assert_eq!((reply.status, reply.body.as_str()), (200, ""), "{path}");
    }
    for path in ["/v1/chat/completions", "/v1/messages", "/v1/models/load"] {
        let reply = server.ask(&server.head("HEAD", path, "", 0), b"");
        assert_eq!((reply.status, reply.body.as_str()), (405, ""), "{path}");
        let reply = server.ask(&server.head("OPTIONS", path, "", 0), b"");
        assert_eq!(reply.status, 405, "{path}");
        assert!(!reply.head.contains("access-control-"), "{}", reply.head);
        let more = "Origin: http://a.example\r\nAccess-Control-Request-Method: POST\r\n";
        let reply = server.ask(&server.head("OPTIONS", path, more, 0), b"");
        assert_eq!(reply.status, 403, "{path}");
        assert!(!reply.head.contains("access-control-"), "{}", reply.head);
    }
}

#[test]
fn bodies_that_wait_or_are_cut_up_are_read() {
    let server = tiny();
    let whole = server.chat(&hello(json!({}))).json()["choices"].clone();
    let body = hello(json!({})).to_string();
    // A client that asks whether it may send its body.
    let more = "Expect: 100-continue\r\n";
    let head = server.head("POST", "/v1/chat/completions", more, body.len());
    let mut stream = server.open(&head, b"");
    let mut first = [0; 25];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(body.as_bytes()).unwrap();
    assert_eq!(read(stream).json()["choices"], whole);
    // A byte in each chunk, with extensions and a trailer.
    let line = "POST /v1/chat/completions HTTP/1.1";
    let coding = "Connection: close\r\nTransfer-Encoding: chunked\r\n";
    let head = server.open_head(line, coding);
    let chunk = |byte: char| format!("1;a=\"b\"\r\n{byte}\r\n");
    let chunks: String = body.chars().map(chunk).collect();
    let reply = server.ask(&head, format!("{chunks}0\r\nx: y\r\n\r\n").as_bytes());
    assert_eq!(reply.json()["choices"], whole);
    // Sizes that no memory has, and extensions without an end.
    for bad in [
        "ffffffffffffffffffffff\r\n{}\r\n0\r\n\r\n".to_owned(),
        "fffffffffffffff0\r\n{}\r\n0\r\n\r\n".to_owned(),
        "-1\r\n{}\r\n0\r\n\r\n".to_owned(),
        format!("2;{}\r\n{{}}\r\n0\r\n\r\n", "x".repeat(1 << 20)),
    ] {
        let stream = server.open(&head, bad.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let said = all(stream);
        assert!(
            said.is_empty() || said.starts_with("HTTP/1.1 400 "),
            "{said}"
        );
    }
    assert_eq!(server.chat(&hello(json!({}))).json()["choices"], whole);
}

#[test]
fn many_who_send_nothing_more_keep_nobody_out() {
    let server = tiny();
    let before = server.chat(&hello(json!({}))).json()["choices"].clone();
    let head = server.head("POST", "/v1/chat/completions", "", 1000);
    let held: Vec<TcpStream> = (0..300)
        .map(|i| match i % 3 {
            0 => server.open("", b""),
            1 => server.open("GET /health HTTP/1.1\r\nHost: loc", b""),
            _ => server.open(&head, b"{\"messages\": [{"),
        })
        .collect();
    let after = server.chat(&hello(json!({}))).json()["choices"].clone();
    assert_eq!(after, before);
    assert_eq!(server.get("/ready").status, 200);
    // None of them is a request.
    assert_eq!(server.metric("requests_running"), 0.0);
    drop(held);
}

#[test]
fn who_leaves_before_the_first_token_takes_nothing_from_others() {
    let server = endless(&["--max-sequences", "1"]);
    let words = "all that is known of the sea ".repeat(400);
    let ask = |i: usize, stream: bool| {
        let text = format!("{i} {words}");
        let more = json!({"messages": [{"role": "user", "content": text}], "stream": stream,
            "max_tokens": 150_000, "ignore_eos": true});
        let body = hello(more).to_string();
        let head = server.head("POST", "/v1/chat/completions", "", body.len());
        server.open(&head, body.as_bytes())
    };
    for stream in [true, false] {
        let open: Vec<TcpStream> = (0..17).map(|i| ask(i, stream)).collect();
        server.wait_for("requests_queued", |n| n >= 8.0);
        drop(open);
        server.wait_for("requests_queued", |n| n == 0.0);
        server.wait_for("requests_running", |n| n == 0.0);
        assert_eq!(server.chat(&hello(json!({}))).status, 200);
    }
}
