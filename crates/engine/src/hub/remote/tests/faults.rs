//! What is sent is not what was promised, there is no room for it, or others send it.

use super::*;

#[test]
fn a_corrupt_shard_leaves_the_good_ones_and_no_name() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    server.trouble(Trouble::Corrupt);
    let error = get("org/name", &options).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Checksum { .. }), "{text}");
    assert!(text.contains("model-00001-of-00002.safetensors"), "{text}");
    let files = files_in(cache.path());
    assert!(
        !files.iter().any(|f| f.starts_with("model-")) && !files.contains(&sum(b"first")),
        "{files:?}"
    );
    let error = get("org/name", &offline(cache.path())).unwrap_err();
    assert!(matches!(error, Error::NotCached { .. }), "{error}");
    server.trouble(Trouble::None);
    server.requests();
    let dir = get("org/name", &options).unwrap();
    assert_eq!(
        fs::read(dir.join("model-00001-of-00002.safetensors")).unwrap(),
        b"first"
    );
    let again: Vec<String> = server.requests();
    assert!(
        !again.iter().any(|r| r.contains("config.json")),
        "{again:?}"
    );
}

/// Of files outside of LFS the hub says what git knows them by.
#[test]
fn small_files_are_checked_too() {
    let (server, cache) = (sharded(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    server.trouble(Trouble::CorruptSmall);
    let error = get("org/name", &options).unwrap_err();
    assert!(matches!(error, Error::Checksum { .. }), "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
    assert_eq!(files_in(cache.path()), Vec::<String>::new());
    server.trouble(Trouble::None);
    get("org/name", &options).unwrap();
}

#[test]
fn a_server_without_ranges_sends_the_file_once_more() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    server.trouble(Trouble::Cut);
    get("org/name:Q8_0", &options).unwrap_err();
    server.trouble(Trouble::NoRanges);
    let path = get("org/name:Q8_0", &options).unwrap();
    assert_eq!(fs::read(path).unwrap(), [8; 100_000]);
}

/// A device that is always full takes the place of the partial file.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_as_such() {
    let (server, cache) = (ggufs(), tempfile::tempdir().unwrap());
    let options = options(&server.url, cache.path());
    let blobs = cache.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sum(&[8; 100_000])));
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let error = get("org/name:Q8_0", &options).unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(&error, Error::DiskFull { bytes: 100_000, path } if path == cache.path()),
        "{text}"
    );
    assert!(
        text.contains("no space left") && text.contains("HF_HOME"),
        "{text}"
    );
    fs::remove_file(&partial).unwrap();
    assert_eq!(files_in(cache.path()), Vec::<String>::new());
    let path = get("org/name:Q8_0", &options).unwrap();
    assert_eq!(fs::read(path).unwrap(), [8; 100_000]);
}

/// The hub sends files from elsewhere, and a model that was renamed by its new name.
#[test]
fn a_token_goes_to_the_hub_alone() {
    let (hub, elsewhere) = (ggufs(), ggufs());
    let cache = tempfile::tempdir().unwrap();
    let options = Options {
        token: Some("hf_x".into()),
        ..options(&hub.url, cache.path())
    };
    hub.send_away(&elsewhere.url);
    let path = get("org/name:Q8_0", &options).unwrap();
    assert_eq!(fs::read(path).unwrap(), [8; 100_000]);
    let tokens = hub.tokens();
    assert!(tokens.len() >= 3, "{tokens:?}");
    assert!(
        tokens.iter().all(|token| token == "Bearer hf_x"),
        "{tokens:?}"
    );
    assert!(!elsewhere.requests().is_empty());
    assert_eq!(elsewhere.tokens(), Vec::<String>::new());
}
