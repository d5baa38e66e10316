//! Programs of their own: what they find in the environment, and what they leave when they are killed.

use std::{
    process::{Command, Stdio},
    thread::sleep,
};

use super::*;

const SPEC: &str = "BIPLANE_TEST_SPEC";

/// The program: this test's own, which runs [`fetches`] alone, with nothing but `home` to tell it of
/// the hub.
fn program(spec: &str, home: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let name = concat!(module_path!(), "::fetches");
    let (_, name) = name.split_once("::").unwrap();
    command.args(["--exact", name, "--ignored", "--nocapture"]);
    for (key, _) in std::env::vars_os() {
        let text = key.to_string_lossy();
        if text.starts_with("HF_") || text.starts_with("HUGGINGFACE_") {
            command.env_remove(&key);
        }
    }
    command.env(SPEC, spec).env("HF_HOME", home);
    command
}

/// What it said.
fn said(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
#[ignore = "a program of other tests"]
fn fetches() {
    let spec = std::env::var(SPEC).unwrap();
    match get(&spec, &Options::default()) {
        Ok(path) => println!("here: {}", path.display()),
        Err(error) => println!("not here: {error}"),
    }
}

#[test]
fn a_killed_download_goes_on() {
    let (server, home) = (ggufs(), tempfile::tempdir().unwrap());
    let blobs = home.path().join("hub/models--org--name/blobs");
    let partial = blobs.join(format!("{}.incomplete", sum(&[8; 100_000])));
    server.trouble(Trouble::Stall);
    let program = || {
        let mut program = program("org/name:Q8_0", home.path());
        program.env("HF_ENDPOINT", &server.url);
        program
    };
    let mut first = program().stdout(Stdio::null()).spawn().unwrap();
    while fs::metadata(&partial).map_or(0, |meta| meta.len()) < 50_000 {
        assert_eq!(first.try_wait().unwrap(), None, "it ended by itself");
        sleep(Duration::from_millis(10));
    }
    first.kill().unwrap();
    first.wait().unwrap();
    assert_eq!(
        files_in(home.path()),
        [partial.file_name().unwrap().to_str().unwrap()]
    );
    server.requests();
    server.trouble(Trouble::None);
    let text = said(&mut program());
    assert!(
        text.contains("here: ") && text.contains("m-Q8_0.gguf"),
        "{text}"
    );
    let requests = server.requests();
    let files: Vec<_> = requests
        .iter()
        .filter(|r| r.starts_with("GET /org"))
        .collect();
    assert!(
        files.len() == 1 && files[0].ends_with("from 50000"),
        "{requests:?}"
    );
    let blob = blobs.join(sum(&[8; 100_000]));
    assert_eq!(fs::read(blob).unwrap(), [8; 100_000]);
}

#[test]
fn the_environment_is_read_as_the_hubs_programs_read_it() {
    let (server, home) = (ggufs(), tempfile::tempdir().unwrap());
    let program = || {
        let mut program = program("org/name:Q8_0", home.path());
        program.env("HF_ENDPOINT", &server.url);
        program
    };
    // Without a token, refusals say so.
    server.trouble(Trouble::Status(401, ""));
    let text = said(&mut program());
    assert!(text.contains("no token was found"), "{text}");
    assert!(text.contains(&format!("{}/org/name", server.url)), "{text}");
    assert_eq!(server.tokens(), Vec::<String>::new());
    // The token's file, and what comes before it.
    fs::write(home.path().join("token"), "hf_file\n").unwrap();
    let text = said(&mut program());
    assert!(
        text.contains("token found") && !text.contains("hf_file"),
        "{text}"
    );
    assert_eq!(server.tokens(), ["Bearer hf_file"]);
    said(program().env("HF_TOKEN", "hf_env"));
    assert_eq!(server.tokens(), ["Bearer hf_env"]);
    said(program().env("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1"));
    assert_eq!(server.tokens(), Vec::<String>::new());

    server.trouble(Trouble::None);
    let offline = || {
        let mut offline = program();
        offline.env("HF_HUB_OFFLINE", "1");
        offline
    };
    server.requests();
    let text = said(&mut offline());
    assert!(
        text.contains("not here: ") && text.contains("offline mode"),
        "{text}"
    );
    assert_eq!(server.requests(), Vec::<String>::new());
    let at_home = home.path().join("hub/models--org--name/snapshots");
    let text = said(&mut program());
    assert!(
        text.contains(&format!("here: {}", at_home.display())),
        "{text}"
    );
    server.requests();
    let text = said(&mut offline());
    assert!(
        text.contains(&format!("here: {}", at_home.display())),
        "{text}"
    );
    assert_eq!(server.requests(), Vec::<String>::new());
    let other = tempfile::tempdir().unwrap();
    let text = said(program().env("HF_HUB_CACHE", other.path()));
    let there = format!("here: {}", other.path().display());
    assert!(text.contains(&there), "{text}");
}
