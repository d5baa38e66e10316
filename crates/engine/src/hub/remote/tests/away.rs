//! Hubs that are away, fall silent, or say what they must not.

use super::*;

#[test]
fn a_hub_cannot_name_files_outside_of_the_cache() {
    for trouble in [Trouble::Headers, Trouble::Hashes, Trouble::Outside] {
        let (server, root) = (sharded(), tempfile::tempdir().unwrap());
        let cache = root.path().join("deep/down/cache");
        let options = options(&server.url, &cache);
        server.trouble(trouble);
        let result = get("org/name", &options);
        match trouble {
            Trouble::Headers => drop(result.unwrap()),
            Trouble::Outside => {
                let error = result.unwrap_err();
                assert!(matches!(error, Error::Format { .. }), "{error}");
            }
            _ => assert!(
                result.unwrap_err().to_string().contains("no hash"),
                "{trouble:?}"
            ),
        }
        for folder in ["", "deep", "deep/down"] {
            let entries = fs::read_dir(root.path().join(folder)).into_iter().flatten();
            assert!(entries.count() <= 1, "{trouble:?}: {folder:?}");
        }
        let inside = files_in(root.path());
        assert!(inside.iter().all(|f| !f.contains("outside")), "{inside:?}");
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
    let error = get("org/name", &options("http://127.0.0.1:9", cache.path())).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
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
fn a_hub_that_goes_away_in_the_middle_leaves_the_older_copy() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let dir = get("org/name", &options).unwrap();
    // The same revision, as if it had been another commit when it was downloaded.
    let older = dir.with_file_name(COMMIT.replace('0', "f"));
    fs::rename(&dir, &older).unwrap();
    for name in files_in(&older) {
        let bytes = fs::read(older.join(&name)).unwrap();
        fs::remove_file(older.join(&name)).unwrap();
        fs::write(older.join(&name), bytes).unwrap();
    }
    fs::remove_dir_all(cache.path().join("models--org--name/blobs")).unwrap();
    let refs = cache.path().join("models--org--name/refs/main");
    assert_eq!(fs::read_to_string(&refs).unwrap(), COMMIT);
    fs::write(&refs, COMMIT.replace('0', "f")).unwrap();
    server.trouble(Trouble::Files(503));
    assert_eq!(get("org/name", &options).unwrap(), older);
    server.trouble(Trouble::None);
    assert_eq!(get("org/name", &options).unwrap(), dir);
    assert_eq!(fs::read_to_string(&refs).unwrap(), COMMIT);
}
