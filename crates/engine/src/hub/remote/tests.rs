use std::path::Path;

use super::{super::resolve, *};

mod away;
mod download;
mod faults;
mod process;
mod server;

use self::server::{COMMIT, Server, Trouble, sum};

fn options(url: &str, cache: &Path) -> Options {
    Options {
        endpoint: Some(url.to_owned()),
        cache_dir: Some(cache.to_owned()),
        ..Options::default()
    }
}

fn offline(cache: &Path) -> Options {
    Options {
        offline: true,
        ..options("http://127.0.0.1:9", cache)
    }
}

fn get(spec: &str, options: &Options) -> Result<PathBuf> {
    resolve(spec, options, &mut |_| {})
}

/// The least that is a Llama.
const CONFIG_JSON: &[u8] = br#"{"model_type":"llama","hidden_size":64,"intermediate_size":64,
    "num_hidden_layers":1,"num_attention_heads":1,"vocab_size":8,"rms_norm_eps":1e-5}"#;

/// A model in two shards, and files that are not needed.
fn sharded() -> Server {
    Server::new(&[
        ("README.md", b"read me"),
        ("m-Q4_0.gguf", b"another form of the weights"),
        ("onnx/model.onnx", b"another"),
        ("pytorch_model.bin", b"another"),
        ("config.json", CONFIG_JSON),
        ("model-00001-of-00002.safetensors", b"first"),
        ("model-00002-of-00002.safetensors", b"second"),
        (
            "model.safetensors.index.json",
            br#"{"weight_map":{"a":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
        ),
        ("tokenizer.json", b"{}"),
    ])
}

fn ggufs() -> Server {
    Server::new(&[
        ("m-Q4_0.gguf", &[4; 100_000]),
        ("m-Q8_0.gguf", &[8; 100_000]),
    ])
}

/// Every file below a folder but the locks.
fn files_in(dir: &Path) -> Vec<String> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if entry.file_type().unwrap().is_dir() {
            if name != ".locks" {
                files.extend(files_in(&entry.path()));
            }
        } else {
            files.push(name);
        }
    }
    files.sort();
    files
}

#[test]
fn a_directory_is_fetched_once_and_then_found_without_the_hub() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let mut seen = Vec::new();
    let dir = resolve("org/name", &options, &mut |p| {
        if p.done == p.total {
            seen.push((p.file.to_owned(), p.total));
        }
    });
    let dir = dir.unwrap();
    assert_eq!(
        dir,
        cache
            .path()
            .join("models--org--name/snapshots")
            .join(COMMIT)
    );
    let names = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
    ];
    assert_eq!(files_in(&dir), names);
    assert_eq!(fs::read(dir.join(names[2])).unwrap(), b"second");
    assert_eq!(seen.last().unwrap(), &(names[2].to_owned(), 6));

    // Only the listing is asked for again; by its commit hash, nothing is.
    server.requests();
    assert_eq!(get("org/name", &options).unwrap(), dir);
    let requests = server.requests();
    assert!(
        requests.len() == 2 && requests.iter().all(|r| r.contains("/api/")),
        "{requests:?}"
    );
    assert_eq!(get(&format!("org/name@{COMMIT}"), &options).unwrap(), dir);
    assert_eq!(server.requests(), Vec::<String>::new());

    // A file of another size was not made by a download.
    let shard = fs::canonicalize(dir.join(names[1])).unwrap();
    fs::write(&shard, "fir").unwrap();
    get("org/name", &options).unwrap();
    assert_eq!(fs::read(dir.join(names[1])).unwrap(), b"first");

    server.trouble(Trouble::Status(503, ""));
    assert_eq!(get("org/name", &options).unwrap(), dir);
    drop(server);
    assert_eq!(get("org/name", &options).unwrap(), dir);
    assert_eq!(get("org/name", &offline(cache.path())).unwrap(), dir);
    fs::remove_file(dir.join(names[1])).unwrap();
    let error = get("org/name", &offline(cache.path())).unwrap_err();
    assert!(error.to_string().contains(names[1]), "{error}");
}

#[test]
fn a_gguf_file_is_fetched_by_its_quantization() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let path = get("org/name:q8_0", &options).unwrap();
    assert_eq!(path.file_name().unwrap(), "m-Q8_0.gguf");
    assert_eq!(fs::read(&path).unwrap(), [8; 100_000]);
    let error = get("org/name:Q2_K", &options).unwrap_err().to_string();
    assert!(error.contains("org/name:Q4_0, org/name:Q8_0"), "{error}");
    let error = get("org/name", &options).unwrap_err();
    assert!(matches!(error, Error::Quant { .. }), "{error}");
    drop(server);
    assert_eq!(get("org/name:q8_0", &options).unwrap(), path);
    let error = get("org/name:Q4_0", &options).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn refusals_say_what_to_do() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let mut options = options(&server.url, cache.path());
    options.token = Some("hf_x".into());
    let error = |trouble, spec: &str| {
        server.trouble(trouble);
        get(spec, &options).unwrap_err()
    };
    for trouble in [Trouble::Status(401, ""), Trouble::Status(403, "GatedRepo")] {
        let error = error(trouble, "org/name");
        assert!(error.is_gated(), "{error}");
        let text = error.to_string();
        assert!(text.contains(&format!("{}/org/name", server.url)), "{text}");
        assert!(
            text.contains("token found") && !text.contains("hf_x"),
            "{text}"
        );
    }
    for status in [401, 403] {
        let error = error(Trouble::Files(status), "org/name:Q8_0");
        assert!(error.is_gated(), "{error}");
    }
    for status in [401, 404] {
        let error = error(Trouble::Status(status, "RepoNotFound"), "org/name@main");
        assert!(matches!(error, Error::NotFound { .. }), "{error}");
    }
    let missing = error(Trouble::None, "org/name@v1.2");
    assert!(missing.is_not_found());
    let text = missing.to_string();
    assert!(
        text.starts_with("org/name has no revision v1.2; it has v1.0, v1.1, main;"),
        "{text}"
    );
    let missing = error(Trouble::None, "org/name-1").to_string();
    assert!(
        missing.contains("did you mean org/name-2 or org/names?"),
        "{missing}"
    );
    let missing = error(Trouble::Status(404, ""), "org/name");
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    let error = error(Trouble::Status(429, ""), "org/name");
    assert!(error.to_string().contains("429"), "{error}");
    assert_eq!(files_in(cache.path()), Vec::<String>::new());
}

#[test]
fn a_model_that_cannot_be_loaded_is_refused_before_its_weights() {
    for (config, word) in [
        (&br#"{"model_type":"mamba"}"#[..], "mamba"),
        (
            br#"{"model_type":"llama","hidden_size":64}"#,
            "intermediate_size",
        ),
        (b"{", "config.json"),
    ] {
        let server = Server::new(&[
            ("config.json", config),
            ("model.safetensors", &[0; 1000]),
            ("tokenizer.json", b"{}"),
        ]);
        let cache = tempfile::tempdir().unwrap();
        let error = get("org/name", &options(&server.url, cache.path())).unwrap_err();
        assert!(matches!(error, Error::Model(_)), "{error}");
        assert!(error.to_string().contains(word), "{error}");
        let requests = server.requests();
        assert!(
            !requests.iter().any(|r| r.contains("safetensors")),
            "{requests:?}"
        );
    }
}

#[test]
fn a_long_list_of_files_comes_in_pages() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    server.trouble(Trouble::Elsewhere);
    let error = get("org/name", &options).unwrap_err();
    assert!(error.to_string().contains("http://localhost:9"), "{error}");
    server.trouble(Trouble::Pages);
    let dir = get("org/name", &options).unwrap();
    assert_eq!(files_in(&dir).len(), 5);
}

#[test]
fn two_at_once_fetch_a_file_once() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| get("org/name:Q8_0", &options).unwrap()));
        for one in both {
            assert_eq!(fs::read(one.join().unwrap()).unwrap(), [8; 100_000]);
        }
    });
    let requests = server.requests();
    let fetched = requests.iter().filter(|r| r.starts_with("GET /org"));
    assert_eq!(fetched.count(), 1, "{requests:?}");
}
