//! Downloads that break, stand still or bring something else.

use super::*;

#[test]
fn a_bad_download_leaves_nothing_that_is_taken_for_the_file() {
    for trouble in [
        Trouble::Cut,
        Trouble::Corrupt,
        Trouble::ErrorPage,
        Trouble::Long,
        Trouble::Short,
    ] {
        let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
        let options = options(&server.url, cache.path());
        server.trouble(trouble);
        let error = get("org/name:Q8_0", &options).unwrap_err();
        let expected = match trouble {
            Trouble::Cut => matches!(error, Error::Download { .. }),
            Trouble::Corrupt => matches!(error, Error::Checksum { .. }),
            Trouble::ErrorPage => matches!(error, Error::Unreachable { .. }),
            _ => matches!(error, Error::Size { .. }),
        };
        assert!(expected, "{trouble:?}: {error}");
        let left = files_in(cache.path());
        match trouble {
            // Its beginning is good.
            Trouble::Cut => assert!(left.len() == 1 && left[0].ends_with(".incomplete")),
            _ => assert_eq!(left, Vec::<String>::new(), "{trouble:?}"),
        }
        server.trouble(Trouble::None);
        let path = get("org/name:Q8_0", &options).unwrap();
        assert_eq!(fs::read(path).unwrap(), [8; 100_000]);
        assert_eq!(files_in(cache.path()).len(), 3, "a blob, its name, a ref");
    }
}

#[test]
fn what_is_not_checked_yet_has_no_name() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let mut early = 0;
    let mut look = |p: Progress<'_>| {
        if p.done < p.total {
            early += 1;
            let files = files_in(cache.path());
            let named: Vec<_> = files
                .iter()
                .filter(|f| !f.ends_with(".incomplete"))
                .collect();
            assert!(named.is_empty(), "{named:?}");
        }
    };
    // Whether or not some progress is seen before the end, the wrong bytes get no name.
    server.trouble(Trouble::Cut);
    resolve("org/name:Q8_0", &options, &mut look).unwrap_err();
    server.trouble(Trouble::Corrupt);
    resolve("org/name:Q8_0", &options, &mut look).unwrap_err();
    assert!(early > 0);
    assert_eq!(files_in(cache.path()), Vec::<String>::new());
}

#[test]
fn a_download_goes_on_where_it_broke() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    server.trouble(Trouble::Cut);
    get("org/name:Q8_0", &options).unwrap_err();
    // Half of what was left came each time.
    let from: Vec<String> = server
        .requests()
        .into_iter()
        .filter(|r| r.starts_with("GET /org"))
        .collect();
    let starts: Vec<_> = from.iter().map(|r| r.split(" from ").nth(1)).collect();
    assert_eq!(starts, [None, Some("50000"), Some("75000")]);
    server.trouble(Trouble::None);
    let path = get("org/name:Q8_0", &options).unwrap();
    assert_eq!(fs::read(path).unwrap(), [8; 100_000]);
    assert!(server.requests().iter().any(|r| r.ends_with("from 87500")));

    // A part of something else is found out, and fetched once more from its beginning.
    let partial = |n: usize, byte: u8| {
        let blobs = cache.path().join("models--org--name/blobs");
        let name = format!("{}.incomplete", sum(&[4; 100_000]));
        fs::write(blobs.join(name), vec![byte; n]).unwrap();
    };
    for (n, byte) in [(70_000, 5), (100_000, 5), (200_000, 4), (100_000, 4)] {
        partial(n, byte);
        let path = get("org/name:Q4_0", &options).unwrap();
        assert_eq!(fs::read(&path).unwrap(), [4; 100_000], "{n}, {byte}");
        let fetched = server.requests().iter().any(|r| r.starts_with("GET /org"));
        assert_eq!(fetched, (n, byte) != (100_000, 4), "{n}, {byte}");
        fs::remove_file(fs::canonicalize(&path).unwrap()).unwrap();
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn a_download_that_stands_still_is_given_up() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let spec = Spec::parse("org/name").unwrap();
    let cache = Cache::new(options.hub_cache(), spec.id);
    let mut hub = Hub::new(&spec, &options, cache, PATIENCE).unwrap();
    hub.stall = Duration::from_millis(200);
    let files = hub.files(COMMIT).unwrap();
    let get = || hub.get(COMMIT, "m-Q8_0.gguf", &files["m-Q8_0.gguf"], &mut |_| {});
    server.trouble(Trouble::Stall);
    let error = get().unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    assert!(
        error.to_string().contains("nothing of m-Q8_0.gguf came"),
        "{error}"
    );
    server.trouble(Trouble::None);
    assert_eq!(fs::read(get().unwrap()).unwrap(), [8; 100_000]);
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
        sha256: "0000000000000000000000000000000000000000000000000000000000000000",
    };
    let get = |wanted: &Pinned| pinned(wanted, &options, &mut |_| {});
    let error = get(&wanted).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    wanted.sha256 = Box::leak(sum(&[4; 100_000]).into_boxed_str());
    let path = get(&wanted).unwrap();
    drop(server);
    assert_eq!(get(&wanted).unwrap(), path);
}
