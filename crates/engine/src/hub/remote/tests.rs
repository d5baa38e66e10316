use std::{path::Path, time::Instant};

use super::{super::resolve, *};

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

/// A model in two shards, and a file that is not needed.
fn sharded() -> Server {
    Server::new(&[
        ("README.md", b"read me"),
        ("config.json", b"{}"),
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
    let missing = error(Trouble::None, "org/name@v9");
    assert!(matches!(missing, Error::NoRevision { .. }) && missing.is_not_found());
    let missing = error(Trouble::Status(404, ""), "org/name");
    assert!(matches!(missing, Error::NotFound { .. }), "{missing}");
    let error = error(Trouble::Status(429, ""), "org/name");
    assert!(error.to_string().contains("Rate limited"), "{error}");
    assert_eq!(files_in(cache.path()), Vec::<String>::new());
}

#[test]
fn a_bad_download_leaves_nothing_that_is_taken_for_the_file() {
    for trouble in [Trouble::Cut, Trouble::Corrupt, Trouble::ErrorPage] {
        let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
        let options = options(&server.url, cache.path());
        server.trouble(trouble);
        let error = get("org/name:Q8_0", &options).unwrap_err();
        let expected = match trouble {
            Trouble::Cut => matches!(error, Error::Download { .. }),
            Trouble::Corrupt => matches!(error, Error::Checksum { .. }),
            _ => matches!(error, Error::Size { .. }),
        };
        assert!(
            expected && error.to_string().contains("m-Q8_0.gguf"),
            "{error}"
        );
        let left = files_in(cache.path());
        assert!(
            left.iter().all(|file| file.ends_with(".incomplete")),
            "{left:?}"
        );
        server.trouble(Trouble::None);
        let path = get("org/name:Q8_0", &options).unwrap();
        assert_eq!(fs::read(path).unwrap(), [8; 100_000]);
        assert!(
            !files_in(cache.path())
                .iter()
                .any(|f| f.ends_with(".incomplete"))
        );
    }
}

#[test]
fn what_is_no_name_never_reaches_the_hub() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    for spec in [
        "../x",
        "a/b/c",
        "a/b@../..",
        "a/b:../x",
        "a/",
        "no-such.gguf",
    ] {
        let error = get(spec, &options).unwrap_err();
        assert!(error.is_not_found(), "{spec}: {error}");
    }
    assert_eq!(server.requests(), Vec::<String>::new());
    let error = get("org/name", &offline(cache.path())).unwrap_err();
    assert!(matches!(error, Error::NotCached { .. }), "{error}");
    assert_eq!(server.requests(), Vec::<String>::new());
}

#[test]
fn a_hub_that_is_away_is_given_up_soon() {
    let cache = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let error = get("org/name", &options("http://127.0.0.1:9", cache.path())).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn a_hub_that_says_nothing_is_given_up_in_time() {
    // Connections are made and never answered.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let cache = tempfile::tempdir().unwrap();
    let spec = Spec::parse("org/name").unwrap();
    let options = options(&url, cache.path());
    let cache = Cache::new(options.hub_cache(), spec.id);
    let hub = Hub::new(&spec, &options, cache, Duration::from_millis(200)).unwrap();
    let error = hub.commit(None).unwrap_err();
    assert!(error.to_string().contains("no answer"), "{error}");
}

#[test]
fn a_pinned_file_must_have_its_sum() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let mut wanted = Pinned {
        id: "org/name",
        commit: COMMIT,
        file: "m-Q4_0.gguf",
        size: 100_000,
        sha256: "0",
    };
    let get = |wanted: &Pinned| pinned(wanted, &options, &mut |_| {});
    let error = get(&wanted).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    wanted.sha256 = Box::leak(sum(&[4; 100_000]).into_boxed_str());
    let path = get(&wanted).unwrap();
    drop(server);
    assert_eq!(get(&wanted).unwrap(), path);
}

#[test]
fn a_hub_that_goes_away_in_the_middle_leaves_the_older_copy() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let dir = get("org/name", &options).unwrap();
    // The same revision, as if it had been another commit when it was downloaded.
    let older = dir.with_file_name(COMMIT.replace('0', "f"));
    fs::rename(&dir, &older).unwrap();
    let refs = cache.path().join("models--org--name/refs/main");
    assert_eq!(fs::read_to_string(&refs).unwrap(), COMMIT);
    fs::write(&refs, COMMIT.replace('0', "f")).unwrap();
    server.trouble(Trouble::Files(503));
    assert_eq!(get("org/name", &options).unwrap(), older);
    server.trouble(Trouble::None);
    assert_eq!(get("org/name", &options).unwrap(), dir);
    assert_eq!(fs::read_to_string(&refs).unwrap(), COMMIT);
}
