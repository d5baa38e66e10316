//! Which models are unloaded when others need their room, or when nobody asks.

use super::*;

on_each_backend! {
    the_one_that_rests_longest_goes => |backend: BackendKind| {
        let dense = dense();
        let server = two(&["-m", &dense, "--max-models", "2", "--backend", backend.name()]);
        let llama = server.text("mlx-4bit");
        let gemma = server.text("gemma");
        assert_eq!(server.text("mlx-4bit"), llama);
        let third = server.text("dense");
        assert_eq!(server.state("gemma"), "unloaded");
        assert_eq!(server.state("mlx-4bit"), "loaded");
        // The same when it is back.
        assert_eq!(server.text("gemma"), gemma);
        assert_eq!(server.state("mlx-4bit"), "unloaded");
        assert_eq!((server.text("mlx-4bit"), server.text("dense")), (llama, third));
        assert_eq!(server.loads("mlx-4bit"), 2.0);
    };
}

#[test]
fn memory_is_shared_out() {
    // Each counts with its 256 MiB of caches.
    let server = two(&["--models-memory", "400M"]);
    server.text("gemma");
    assert_eq!(server.state("mlx-4bit"), "unloaded");
    server.text("mlx-4bit");
    assert_eq!(server.state("gemma"), "unloaded");
    let roomy = two(&["--models-memory", "800M"]);
    roomy.text("gemma");
    assert_eq!(roomy.state("mlx-4bit"), "loaded");
    let small = two(&["--models-memory", "100M", "--lazy"]);
    let error = small.complete("gemma").error(500);
    assert_eq!(error["code"], "model_too_large");
    let said = error["message"].as_str().unwrap();
    assert!(said.contains("--kv-memory"), "{said}");
}

#[test]
fn models_in_use_stay() {
    let folder = endless_model();
    let long = format!("long={}", path_of(folder.path()));
    let server = start_any(&["-m", &long, "-m", &gemma(), "--max-models", "1"]);
    server.wait_healthy();
    let open = server.endless_answer("long");
    let full = server.complete("gemma");
    assert_eq!(full.error(503)["code"], "models_in_use");
    assert!(full.head.contains("retry-after: "), "{}", full.head);
    let said = full.error(503)["message"].as_str().unwrap().to_owned();
    assert!(said.contains("--max-models"), "{said}");
    let unload = |body: Value| server.post("/v1/models/unload", &body);
    let used = unload(json!({"model": "long"}));
    assert_eq!(used.error(409)["code"], "model_in_use");
    // Whoever waits for the end of the answers waits while there is one.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| unload(json!({"model": "long", "drain": true})));
        server.wait_state("long", "unloading");
        assert!(server.metric_of("requests_running", "long").unwrap() == 1.0);
        assert!(!waits.is_finished());
        drop(open);
        let gone = waits.join().unwrap();
        assert_eq!(gone.status, 200, "{gone:?}");
        assert_eq!(gone.json()["biplane"]["state"], "unloaded");
    });
    assert_eq!(server.metric_of("requests_running", "long"), None);
    server.text("gemma");
}

#[test]
fn what_nobody_asks_for_is_unloaded() {
    let alone = start(&fixture("llama/mlx-4bit"), &["--idle-unload", "1"]);
    let server = two(&["--idle-unload", "1"]);
    let said = server.text("gemma");
    for model in ["gemma", "mlx-4bit"] {
        server.wait_state(model, "unloaded");
    }
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/ready").status, 200);
    assert_eq!(server.text("gemma"), said);
    assert!(server.loads("gemma") >= 2.0);
    // The one model of a server, too.
    alone.wait_state("mlx-4bit", "unloaded");
    assert_eq!(alone.chat(&hello(json!({}))).status, 200);
}

#[test]
fn an_answer_is_no_rest() {
    let folder = endless_model();
    let long = format!("long={}", path_of(folder.path()));
    let server = start_any(&["-m", &long, "-m", &gemma(), "--idle-unload", "1"]);
    server.wait_healthy();
    let open = server.endless_answer("long");
    server.text("gemma");
    // By now the other has rested for as long.
    server.wait_state("gemma", "unloaded");
    assert_eq!(server.state("long"), "loaded");
    assert_eq!(server.loads("long"), 1.0);
    drop(open);
    server.wait_state("long", "unloaded");
}
