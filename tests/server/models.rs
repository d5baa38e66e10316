//! Several models by name: loaded when they are asked for, unloaded when others need the room or nobody
//! asks.

use std::io::Read;

use biplane::BackendKind;
use biplane_tests::on_each_backend;

use super::*;

#[path = "folders.rs"]
mod folders;
#[path = "rooms.rs"]
mod rooms;

fn path_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn gemma() -> String {
    format!("gemma={}", path_of(&fixture("gemma3/mlx-4bit")))
}

fn dense() -> String {
    format!("dense={}", path_of(&fixture("llama/hf")))
}

/// Llama, loaded at the start, and Gemma.
fn two(more: &[&str]) -> Server {
    let gemma = gemma();
    start(
        &fixture("llama/mlx-4bit"),
        &[&["-m", &gemma], more].concat(),
    )
}

fn copied(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

impl Server {
    fn complete(&self, model: &str) -> Reply {
        let body =
            json!({"model": model, "prompt": "Alice was", "temperature": 0, "max_tokens": 12});
        self.post("/v1/completions", &body)
    }

    /// What a model says, which must be the one that was named.
    fn text(&self, model: &str) -> String {
        let reply = self.complete(model);
        assert_eq!(reply.status, 200, "{reply:?}");
        let body = reply.json();
        assert_eq!(body["model"], model);
        body["choices"][0]["text"].as_str().unwrap().to_owned()
    }

    fn entry(&self, model: &str) -> Value {
        let reply = self.get(&format!("/v1/models/{model}"));
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.json()
    }

    fn state(&self, model: &str) -> String {
        let entry = self.entry(model);
        entry["biplane"]["state"].as_str().unwrap().to_owned()
    }

    fn wait_state(&self, model: &str, state: &str) {
        let begin = Instant::now();
        while self.state(model) != state {
            assert!(
                begin.elapsed() < Duration::from_secs(60),
                "{model} is not {state}: {}",
                self.entry(model)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn loads(&self, model: &str) -> f64 {
        self.metric_of("model_loads_total", model).unwrap()
    }

    /// An answer that goes on as long as it is read, or even if it is not.
    fn endless_answer(&self, model: &str) -> TcpStream {
        let more =
            json!({"model": model, "stream": true, "max_tokens": 150_000, "ignore_eos": true});
        let body = hello(more).to_string();
        let head = self.head("POST", "/v1/chat/completions", "", body.len());
        let mut open = self.open(&head, body.as_bytes());
        // It has begun when something of it is here.
        open.read_exact(&mut [0; 16]).unwrap();
        open
    }
}

#[test]
fn every_api_reaches_the_model_that_is_named() {
    let server = two(&[]);
    let list = server.get("/v1/models").json();
    let names = list["data"].as_array().unwrap().iter().map(|m| &m["id"]);
    assert_eq!(names.collect::<Vec<_>>(), ["mlx-4bit", "gemma"]);
    let [first, second] = [0, 1].map(|i| list["data"][i].clone());
    assert_eq!(first["biplane"]["state"], "loaded", "{list}");
    assert_eq!(second["biplane"]["state"], "unloaded", "{list}");
    assert_eq!(server.loads("gemma"), 0.0);

    // Nothing is loaded for what nobody can answer.
    let unknown = server.complete("gamma").error(404);
    let said = unknown["message"].as_str().unwrap();
    assert!(said.contains("\"mlx-4bit\", \"gemma\""), "{said}");
    for path in ["load", "unload", "requantize"] {
        let body = json!({"model": "gamma", "isq": "Q4_0"});
        let reply = server.post(&format!("/v1/models/{path}"), &body);
        assert_eq!(reply.error(404)["code"], "model_not_found");
    }

    let named = |path: &str, mut body: Value| {
        let mut of = |model: &str| {
            body["model"] = model.into();
            let reply = server.post(path, &body);
            assert_eq!(reply.status, 200, "{path} {reply:?}");
            reply.json()
        };
        let [gemma, llama] = ["gemma", "mlx-4bit"].map(&mut of);
        assert_ne!(gemma, llama);
        (gemma, of("default"))
    };
    let user = json!([{"role": "user", "content": "Hello"}]);
    let ask = json!({"messages": user, "max_tokens": 8, "temperature": 0});
    for (path, body) in [
        ("/v1/chat/completions", ask.clone()),
        ("/v1/messages", ask),
        (
            "/v1/completions",
            json!({"prompt": "Hello", "max_tokens": 8}),
        ),
        (
            "/v1/responses",
            json!({"input": "Hello", "max_output_tokens": 8}),
        ),
        ("/v1/embeddings", json!({"input": "Hello"})),
    ] {
        let (gemma, first) = named(path, body);
        assert_eq!(gemma["model"], "gemma", "{path}");
        assert_eq!(first["model"], "mlx-4bit", "{path}");
    }
    let text = json!({"content": "Alice was beginning", "add_special": true});
    let (gemma, _) = named("/tokenize", text);
    let body = json!({"tokens": gemma["tokens"], "model": "gemma"});
    let back = server.post("/detokenize", &body).json();
    let back = back["content"].as_str().unwrap();
    assert!(back.ends_with("Alice was beginning"), "{back}");

    assert_eq!(server.loads("gemma"), 1.0);
    let whole = server.entry("gemma");
    assert_eq!(whole["meta"]["architecture"], "gemma3_text", "{whole}");
    for model in ["gemma", "mlx-4bit"] {
        assert!(server.metric_of("requests_total", model).unwrap() >= 4.0);
    }
    server.wait_for("requests_running", |n| n == 0.0);
    let health = server.get("/health");
    assert_eq!((health.status, server.get("/ready").status), (200, 200));
}

#[test]
fn first_requests_at_once_load_once() {
    let server = two(&[]);
    let texts: Vec<String> = std::thread::scope(|scope| {
        let ask = |_| scope.spawn(|| server.text("gemma"));
        let all: Vec<_> = (0..8).map(ask).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    assert_eq!(server.loads("gemma"), 1.0);
}

#[test]
fn who_leaves_does_not_end_the_load_for_others() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let model = format!("smollm={}", path_of(&model));
    // Quantizing makes it last.
    let server = start(
        &fixture("llama/mlx-4bit"),
        &["-m", &model, "--isq", "Q2K", "--isq-override", "layers=Q3K"],
    );
    let body = hello(json!({"model": "smollm"})).to_string();
    let head = server.head("POST", "/v1/chat/completions", "", body.len());
    let leaves = server.open(&head, body.as_bytes());
    server.wait_state("smollm", "loading");
    drop(leaves);
    // Others answer meanwhile.
    assert!(!server.text("mlx-4bit").is_empty());
    let answer = server.chat(&hello(json!({"model": "smollm"})));
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(server.loads("smollm"), 1.0);
    let chunks = server.chat(&hello(json!({"model": "smollm", "stream": true})));
    let whole = answer.json()["choices"][0]["message"]["content"].clone();
    assert_eq!(whole, text_of(&chunks.events(), 0));
}

on_each_backend! {
    requantized_is_loaded_with_isq => |backend: BackendKind| {
        let model = fixture("llama/hf");
        let more = ["--backend", backend.name()];
        let server = start(&model, &more);
        let stored = server.text("hf");
        let bytes = |server: &Server| server.entry("hf")["biplane"]["weight_bytes"].as_u64().unwrap();
        let all = bytes(&server);
        let ask = |isq: &str| {
            let reply = server.post("/v1/models/requantize", &json!({"model": "hf", "isq": isq}));
            assert_eq!(reply.status, 200, "{reply:?}");
            reply.json()["biplane"]["isq"].clone()
        };
        assert_eq!(ask("q2k"), "Q2K");
        let fresh = start(&model, &["--isq", "Q2K", "--backend", backend.name()]);
        let coarse = server.text("hf");
        assert_eq!(coarse, fresh.text("hf"));
        assert_ne!(coarse, stored);
        assert_eq!(bytes(&server), bytes(&fresh));
        assert!(bytes(&server) < all);
        let loads = server.loads("hf");
        // Nothing is done twice, and it stays over an unload.
        ask("Q2K");
        assert_eq!(server.loads("hf"), loads);
        server.post("/v1/models/unload", &json!({"model": "hf"}));
        assert_eq!(server.text("hf"), coarse);
        assert_eq!(ask("none"), Value::Null);
        assert_eq!((server.text("hf"), bytes(&server)), (stored, all));
    };
}

#[test]
fn a_load_that_failed_can_be_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("later");
    std::fs::create_dir(&place).unwrap();
    std::fs::write(place.join("config.json"), "{}").unwrap();
    let later = format!("later={}", path_of(&place));
    let server = start(&fixture("llama/mlx-4bit"), &["-m", &later]);
    for _ in 0..2 {
        let error = server.complete("later").error(500);
        assert_eq!(error["code"], "model_load_failed");
        let said = error["message"].as_str().unwrap();
        assert!(said.contains("\"later\" cannot be loaded: "), "{said}");
    }
    assert_eq!(server.state("later"), "failed");
    let why = server.entry("later")["biplane"]["error"].clone();
    assert!(!why.as_str().unwrap().is_empty());
    assert!(!server.text("mlx-4bit").is_empty());
    assert_eq!(server.get("/health").status, 200);
    copied(&fixture("gemma3/mlx-4bit"), &place);
    server.text("later");
    assert_eq!(
        (server.state("later"), server.loads("later")),
        ("loaded".into(), 1.0)
    );
    // A quantization that cannot be leaves the model as it was.
    let before = server.text("mlx-4bit");
    std::fs::remove_file(place.join("config.json")).unwrap();
    let body = json!({"model": "later", "isq": "Q8_0"});
    let failed = server.post("/v1/models/requantize", &body);
    assert_eq!(failed.error(500)["code"], "model_load_failed");
    assert_eq!(server.entry("later")["biplane"]["isq"], Value::Null);
    assert_eq!(server.text("mlx-4bit"), before);
}

#[test]
fn models_are_loaded_and_unloaded_by_hand() {
    let server = two(&["--lazy"]);
    let post = |what: &str, body: Value| server.post(&format!("/v1/models/{what}"), &body);
    assert_eq!(server.state("mlx-4bit"), "unloaded");
    let here = post("load", json!({"model": "gemma"})).json();
    assert_eq!(here["id"], "gemma");
    assert_eq!(here["biplane"]["state"], "loaded", "{here}");
    post("load", json!({"model": "gemma"})).json();
    assert_eq!(server.loads("gemma"), 1.0);
    for _ in 0..2 {
        let gone = post("unload", json!({"model": "gemma"})).json();
        assert_eq!(gone["biplane"]["state"], "unloaded", "{gone}");
    }
    for (what, body, param) in [
        ("load", json!({}), "model"),
        ("load", json!({"model": 5}), "model"),
        ("unload", json!({"model": null}), "model"),
        ("unload", json!({"model": "gemma", "drain": "yes"}), "drain"),
        ("requantize", json!({"model": "gemma"}), "isq"),
        ("requantize", json!({"model": "gemma", "isq": 4}), "isq"),
        ("requantize", json!({"model": "gemma", "isq": "Q9"}), "isq"),
    ] {
        assert_eq!(
            post(what, body.clone()).error(400)["param"],
            param,
            "{body}"
        );
    }
    let said = post("requantize", json!({"model": "gemma", "isq": "Q9"})).error(400);
    let said = said["message"].as_str().unwrap();
    assert!(said.contains("Q4_0, ") && said.contains("AFQ8"), "{said}");
    for what in ["load", "unload", "requantize"] {
        let path = format!("/v1/models/{what}");
        for body in [&b""[..], b"{", b"[]", b"\xff", b"\"gemma\""] {
            let head = server.head("POST", &path, "", body.len());
            server.ask(&head, body).error(400);
        }
        server.get(&path).error(405);
    }
    assert_eq!(server.metric("model_loads_total"), 1.0);
}

#[test]
fn the_key_guards_models_too() {
    let server = two(&["--api-key", "secret"]);
    for what in ["load", "unload", "requantize"] {
        let body = json!({"model": "gemma", "isq": "Q4_0"});
        let reply = server.post(&format!("/v1/models/{what}"), &body);
        assert_eq!(reply.error(401)["code"], "invalid_api_key");
    }
}
