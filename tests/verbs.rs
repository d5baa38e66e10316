//! The verbs around models, as a user runs them: chat, pull, list, show, rm, template, doctor,
//! completions, man, and the configuration file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "../crates/engine/src/hub/remote/tests/server.rs"]
mod hub;

use std::{fs, path::Path};

use assert_cmd::Command;
use biplane_tests::{fixture, real_model};
use hub::{COMMIT, Server, Trouble};
use serde_json::Value;

/// A user with an empty home, and no hub.
struct User(tempfile::TempDir);

impl User {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn home(&self) -> &Path {
        self.0.path()
    }

    fn biplane(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_biplane"));
        let kept = [
            "PATH",
            "LD_LIBRARY_PATH",
            "DYLD_LIBRARY_PATH",
            "TMPDIR",
            "LLVM_PROFILE_FILE",
        ];
        command.env_clear();
        for (name, value) in std::env::vars_os() {
            if kept.iter().any(|kept| name == *kept) {
                command.env(name, value);
            }
        }
        command
            .env("HOME", self.home())
            .env("HF_ENDPOINT", "http://127.0.0.1:9")
            .env("BIPLANE_DEVICE", "cpu")
            .timeout(std::time::Duration::from_secs(300))
            .args(args);
        command
    }

    fn cache(&self) -> std::path::PathBuf {
        self.home().join(".cache/huggingface/hub")
    }
}

/// Exit code, standard output and standard error; a panic is never right.
fn end(command: &mut Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("panicked"), "{said}");
    let code = output
        .status
        .code()
        .unwrap_or_else(|| panic!("a signal: {said}"));
    (code, String::from_utf8(output.stdout).unwrap(), said)
}

fn good(command: &mut Command) -> String {
    let (code, out, said) = end(command);
    assert_eq!(code, 0, "{said}");
    out
}

fn json(command: &mut Command) -> Value {
    serde_json::from_str(&good(command)).unwrap()
}

/// Fails with this code, says these words on standard error and nothing on standard output.
fn refused(command: &mut Command, code: i32, words: &[&str]) {
    let (got, out, said) = end(command);
    assert_eq!((got, out.as_str()), (code, ""), "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn tiny() -> String {
    fixture("llama/mlx-4bit").to_str().unwrap().to_owned()
}

fn small_gguf() -> Vec<u8> {
    let dir = fixture("llama/gguf");
    let file = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<_> = file
        .filter(|p| p.extension().is_some_and(|e| e == "gguf"))
        .collect();
    files.sort();
    fs::read(&files[0]).unwrap()
}

#[test]
fn a_model_is_pulled_listed_shown_and_removed() {
    let user = User::new();
    let gguf = small_gguf();
    let server = Server::new(&[("m-Q4_K_M.gguf", &gguf), ("m-Q8_0.gguf", &gguf)]);
    let pull = |spec: &str| {
        let mut command = user.biplane(&["pull", spec]);
        command.env("HF_ENDPOINT", &server.url);
        command
    };
    let path = good(&mut pull("org/name:Q8_0"));
    assert_eq!(fs::read(path.trim()).unwrap(), gguf);
    let path = good(&mut pull("org/name"));
    assert!(path.trim().ends_with("m-Q4_K_M.gguf"), "{path}");

    let listed = json(&mut user.biplane(&["list", "--json"]));
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["name"])
        .collect();
    assert_eq!(names, ["org/name:Q4_K_M", "org/name:Q8_0"]);
    assert_eq!(listed[0]["bytes"], gguf.len());
    assert_eq!(listed[0]["format"], "gguf");
    assert_eq!(listed[0]["complete"], true);
    let table = good(&mut user.biplane(&["list"]));
    assert!(
        table.contains("org/name:Q4_K_M") && table.contains("NAME"),
        "{table}"
    );

    // Every verb takes the same name, and the hub is away now.
    drop(server);
    let shown = json(&mut user.biplane(&["show", "org/name:Q8_0", "--json"]));
    assert_eq!(shown["format"], "gguf");
    assert_eq!(shown["architecture"], "llama");
    assert!(shown["parameters"].as_u64().unwrap() > 0);
    let run = [
        "run",
        "--raw",
        "-q",
        "-n",
        "2",
        "-m",
        "org/name:Q8_0",
        "Hello",
    ];
    assert!(!good(user.biplane(&run).env("HF_HUB_OFFLINE", "1")).is_empty());

    // Both names lead to one blob, which stays as long as one of them does.
    let blobs = || {
        fs::read_dir(user.cache().join("models--org--name/blobs"))
            .unwrap()
            .count()
    };
    assert_eq!(blobs(), 1);
    refused(&mut user.biplane(&["rm", "org/name:Q8_0"]), 1, &["--yes"]);
    good(&mut user.biplane(&["rm", "--yes", "org/name:Q8_0"]));
    assert_eq!(blobs(), 1);
    let listed = json(&mut user.biplane(&["list", "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    // One name that is wrong, and nothing is removed.
    refused(
        &mut user.biplane(&["rm", "--yes", "org/name", "org/nam"]),
        2,
        &["org/nam", "did you mean org/name"],
    );
    good(&mut user.biplane(&["rm", "--yes", "org/name"]));
    assert_eq!(
        json(&mut user.biplane(&["list", "--json"])),
        Value::Array(vec![])
    );
    assert!(!user.cache().join("models--org--name").exists());
}

#[test]
fn a_revision_is_removed_without_what_others_share() {
    let user = User::new();
    let repo = user.cache().join("models--org--name");
    let other = "f".repeat(40);
    for folder in ["blobs", "refs"] {
        fs::create_dir_all(repo.join(folder)).unwrap();
    }
    for (blob, text) in [("shared", "1"), ("own", "22"), ("new", "333")] {
        fs::write(repo.join("blobs").join(blob), text).unwrap();
    }
    for (commit, files) in [(COMMIT, ["shared", "own"]), (&other, ["shared", "new"])] {
        let snapshot = repo.join("snapshots").join(commit);
        fs::create_dir_all(&snapshot).unwrap();
        for (file, blob) in ["config.json", "model.safetensors"].into_iter().zip(files) {
            let blob = Path::new("../../blobs").join(blob);
            #[cfg(unix)]
            std::os::unix::fs::symlink(blob, snapshot.join(file)).unwrap();
        }
    }
    fs::write(repo.join("refs/main"), &other).unwrap();
    fs::write(repo.join("refs/v1"), COMMIT).unwrap();
    let listed = json(&mut user.biplane(&["list", "--json"]));
    let names: Vec<_> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|m| &m["name"])
        .collect();
    assert_eq!(names, ["org/name", "org/name@v1"]);
    assert_eq!(listed[0]["complete"], false, "no tokenizer");
    good(&mut user.biplane(&["rm", "-y", "org/name@v1"]));
    let there = |path: &str| repo.join(path).exists();
    assert!(there("blobs/shared") && there("blobs/new") && there("refs/main"));
    assert!(!there("blobs/own") && !there("refs/v1"));
    assert!(!repo.join("snapshots").join(COMMIT).exists());
    assert!(
        repo.join("snapshots")
            .join(&other)
            .join("config.json")
            .exists()
    );
}

#[test]
fn what_is_not_there_is_said_with_what_is_near() {
    let user = User::new();
    let gguf = small_gguf();
    let server = Server::new(&[("m-Q4_K_M.gguf", &gguf)]);
    let online = |args: &[&str]| {
        let mut command = user.biplane(args);
        command.env("HF_ENDPOINT", &server.url);
        command
    };
    good(&mut online(&["pull", "org/name"]));
    refused(
        &mut online(&["pull", "org/nmae"]),
        2,
        &["org/nmae", "did you mean org/name"],
    );
    refused(&mut online(&["pull", "no-such.gguf"]), 2, &["no-such.gguf"]);
    refused(
        &mut online(&["show", "org/nam"]),
        2,
        &["biplane pull org/nam", "did you mean org/name"],
    );
    refused(
        &mut user.biplane(&["show", "starter"]),
        2,
        &["biplane pull starter"],
    );
    refused(
        &mut user.biplane(&["rm", "-y", "../../etc"]),
        2,
        &["only models of the hub's cache"],
    );
    refused(&mut user.biplane(&["rm", "-y", "starter"]), 2, &[]);
    let file = user.home().join("m.gguf");
    fs::write(&file, &gguf).unwrap();
    let (slip, file) = (
        user.home().join("n.gguf"),
        file.to_str().unwrap().to_owned(),
    );
    refused(
        &mut user.biplane(&["show", slip.to_str().unwrap()]),
        2,
        &["did you mean", &file],
    );
    refused(&mut user.biplane(&["rm", "-y", &file]), 2, &[]);
    assert!(Path::new(&file).exists());
    server.trouble(Trouble::Status(403, "GatedRepo"));
    refused(
        &mut online(&["pull", "org/gated"]),
        3,
        &["HF_TOKEN", "no token was found"],
    );
    let run = ["run", "-m", "org/gated", "Hello"];
    refused(&mut online(&run), 3, &["HF_TOKEN"]);
}

#[test]
fn local_models_are_listed_shown_and_need_no_pull() {
    let user = User::new();
    let file = user.home().join("models/m.gguf");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, small_gguf()).unwrap();
    let folder = file.parent().unwrap().to_str().unwrap();
    let listed = json(&mut user.biplane(&["list", "--json", "--models-dir", folder]));
    assert_eq!(listed[0]["name"], file.to_str().unwrap());
    let (_, _, said) = end(&mut user.biplane(&["list"]));
    assert!(said.contains("biplane pull"), "{said}");
    refused(
        &mut user.biplane(&["list", "--models-dir", "/no/such"]),
        1,
        &["/no/such"],
    );
    assert_eq!(good(&mut user.biplane(&["pull", &tiny()])).trim(), tiny());
    let shown = good(&mut user.biplane(&["show", &tiny()]));
    for word in [
        "llama",
        "safetensors",
        "affine 4 bits",
        "context",
        "chat template  yes",
    ] {
        assert!(shown.contains(word), "{word:?} is not in: {shown}");
    }
    let broken = user.home().join("broken.gguf");
    fs::write(&broken, "GGUF").unwrap();
    refused(
        &mut user.biplane(&["show", broken.to_str().unwrap()]),
        1,
        &["broken.gguf"],
    );
}

#[test]
fn a_prompt_is_rendered_as_the_model_sees_it() {
    let user = User::new();
    let talk = r#"[{"role": "user", "content": "Hi <|im_end|>"}]"#;
    let render = |args: &[&str], talk: &str| {
        let mut command = user.biplane(&["template", "render", "-m", &tiny()]);
        command.args(args).write_stdin(talk);
        command
    };
    let prompt = good(&mut render(&[], talk));
    let without = good(&mut render(&["--add-generation-prompt=false"], talk));
    assert!(
        prompt.starts_with(&without) && prompt.len() > without.len(),
        "{prompt:?} {without:?}"
    );
    assert!(prompt.contains("Hi <|im_end|>"), "{prompt}");
    let ids: Vec<u32> = serde_json::from_str(&good(&mut render(&["--ids"], talk))).unwrap();
    assert!(ids.len() > 3);
    let file = user.home().join("talk.json");
    fs::write(&file, format!(r#"{{"messages": {talk}}}"#)).unwrap();
    assert_eq!(good(&mut render(&[file.to_str().unwrap()], "")), prompt);
    let jinja = user.home().join("t.jinja");
    fs::write(
        &jinja,
        "{% for m in messages %}[{{ m.role }}: {{ m.content }}]{% endfor %}",
    )
    .unwrap();
    let own = ["--chat-template", jinja.to_str().unwrap()];
    assert_eq!(
        good(&mut render(&own, r#"[{"role":"user","content":"Hi"}]"#)),
        "[user: Hi]"
    );
    let tools = user.home().join("tools.json");
    fs::write(
        &tools,
        r#"[{"type":"function","function":{"name":"add_up","parameters":{}}}]"#,
    )
    .unwrap();
    fs::write(
        &jinja,
        "{{ tools | tojson }}{% if tools %}<tool_call>{% endif %}{{ messages[0].content }}",
    )
    .unwrap();
    let with = [
        "--chat-template",
        jinja.to_str().unwrap(),
        "--tools",
        tools.to_str().unwrap(),
    ];
    assert!(good(&mut render(&with, talk)).contains("add_up"));

    for (talk, word) in [
        ("", "JSON"),
        ("{}", "messages"),
        ("[]", "messages is empty"),
        (r#"[{"content": "Hi"}]"#, "role"),
        (r#"{"messages": [], "top_p": 1}"#, "top_p"),
    ] {
        refused(&mut render(&[], talk), 1, &[word]);
    }
    refused(&mut render(&["/no/such.json"], ""), 1, &["/no/such.json"]);
    refused(
        &mut render(&["--tools", "/no/such.json"], talk),
        1,
        &["--tools /no/such.json"],
    );
}

#[test]
fn a_piped_message_is_answered_once() {
    let user = User::new();
    let chat = |args: &[&str], message: &str| {
        let mut command = user.biplane(&["chat", "-m", &tiny(), "-n", "4", "--temperature", "0"]);
        command.args(args).write_stdin(message);
        command
    };
    let (code, out, said) = end(&mut chat(&[], "Hello\n"));
    assert_eq!(code, 0, "{said}");
    assert!(!out.trim().is_empty());
    assert!(
        said.contains("tok/s") && said.contains("first token"),
        "{said}"
    );
    let (_, quiet, said) = end(&mut chat(&["-q"], "Hello"));
    assert_eq!((quiet, said.as_str()), (out, ""));
    refused(&mut chat(&[], " \n"), 1, &["standard input is empty"]);
    refused(&mut chat(&["--top-p", "2"], "Hello"), 1, &["top_p"]);
    refused(
        &mut chat(&["--load", "/no/such"], "Hello"),
        1,
        &["/no/such"],
    );
    refused(
        user
            .biplane(&["chat", "-m", "no-such.gguf"])
            .write_stdin("x"),
        2,
        &["no-such.gguf"],
    );
}

#[test]
fn a_real_model_chats() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let user = User::new();
    let model = model.to_str().unwrap();
    let chat = [
        "chat",
        "-q",
        "--exact",
        "-n",
        "40",
        "--temperature",
        "0",
        "-m",
        model,
    ];
    let text = good(
        user.biplane(&chat)
            .write_stdin("What is the capital of France?"),
    );
    assert_eq!(text, "The capital of France is Paris.\n");
}

#[test]
fn the_doctor_finds_what_is_broken() {
    let user = User::new();
    let check = |report: &Value, name: &str| -> Value {
        let checks = report["checks"].as_array().unwrap();
        checks
            .iter()
            .find(|check| check["name"] == name)
            .unwrap()
            .clone()
    };
    let report = json(
        user.biplane(&["doctor", "--json"])
            .env("HF_HUB_OFFLINE", "1"),
    );
    assert_eq!(report["ok"], true);
    for backend in biplane::BackendKind::compiled() {
        let found = check(&report, backend.name());
        assert!(
            found["found"].as_str().unwrap().contains("computes on"),
            "{found}"
        );
    }
    let hub = check(&report, "hub");
    assert!(
        hub["found"].as_str().unwrap().contains("HF_HUB_OFFLINE"),
        "{hub}"
    );
    // A hub that is away does not keep models from running.
    let report = json(&mut user.biplane(&["doctor", "--json"]));
    assert_eq!(check(&report, "hub")["state"], "warning");
    let server = Server::new(&[]);
    let report = json(
        user.biplane(&["doctor", "--json"])
            .env("HF_ENDPOINT", &server.url),
    );
    assert_eq!(check(&report, "hub")["state"], "ok");

    let config = user.home().join("c.toml");
    fs::write(&config, "prot = 1").unwrap();
    let mut doctor = user.biplane(&["doctor"]);
    doctor
        .env("BIPLANE_CONFIG", &config)
        .env("HF_HUB_OFFLINE", "1");
    let (code, out, _) = end(&mut doctor);
    assert_eq!(code, 1);
    assert!(
        out.contains("BROKEN") && out.contains("did you mean port"),
        "{out}"
    );
    fs::write(&config, "port = 1").unwrap();
    let out = good(&mut doctor);
    assert!(out.contains(config.to_str().unwrap()), "{out}");
    // A file where the cache's folder should be.
    let (code, out, _) = end(doctor.env("HF_HUB_CACHE", &config));
    assert_eq!(code, 1);
    assert!(out.contains("is no folder"), "{out}");
}

#[test]
fn flags_count_before_the_environment_and_that_before_the_file() {
    let user = User::new();
    let folder = user.home().join(".config/biplane");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("config.toml");
    let text = format!(
        "model = {:?}\nmax-tokens = 3\n[run]\nraw-is-no-key = 1\n",
        tiny()
    );
    fs::write(&file, text).unwrap();
    let run = ["run", "--raw", "Alice was"];
    refused(
        &mut user.biplane(&run),
        1,
        &["config.toml", "raw-is-no-key"],
    );
    fs::write(&file, format!("model = {:?}\nmax-tokens = 3\n", tiny())).unwrap();
    let tokens = |command: &mut Command| {
        let (code, _, said) = end(command);
        assert_eq!(code, 0, "{said}");
        let found = said
            .split(" · ")
            .find_map(|part| part.split_once(" tokens (cut"));
        found.unwrap_or_else(|| panic!("{said}")).0.to_owned()
    };
    assert_eq!(tokens(&mut user.biplane(&run)), "3");
    assert_eq!(
        tokens(user.biplane(&run).env("BIPLANE_MAX_TOKENS", "4")),
        "4"
    );
    let flag = ["run", "--raw", "-n", "5", "Alice was"];
    assert_eq!(
        tokens(user.biplane(&flag).env("BIPLANE_MAX_TOKENS", "4")),
        "5"
    );
    // Another file, none, and one that is not there.
    let other = user.home().join("other.toml");
    fs::write(
        &other,
        format!("model = {:?}\n[run]\nmax-tokens = 6\n", tiny()),
    )
    .unwrap();
    assert_eq!(
        tokens(user.biplane(&run).env("BIPLANE_CONFIG", &other)),
        "6"
    );
    refused(
        user.biplane(&run).env("BIPLANE_CONFIG", "/no/such.toml"),
        1,
        &["/no/such.toml"],
    );
    fs::write(&other, "model = [").unwrap();
    refused(
        user.biplane(&run).env("BIPLANE_CONFIG", &other),
        1,
        &["other.toml"],
    );
    // Help comes whatever the file says.
    let help = good(user.biplane(&["--help"]).env("BIPLANE_CONFIG", &other));
    assert!(help.contains("doctor"), "{help}");
}

#[test]
fn shells_and_the_manual_know_every_verb() {
    let user = User::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = good(&mut user.biplane(&["completions", shell]));
        assert!(
            script.contains("perplexity") && script.contains("top-p"),
            "{shell}"
        );
    }
    refused(&mut user.biplane(&["completions", "tcsh"]), 1, &["bash"]);
    let page = good(&mut user.biplane(&["man"]));
    assert!(
        page.starts_with(".ie") || page.contains(".TH biplane"),
        "{page}"
    );
    assert!(good(&mut user.biplane(&["man", "serve"])).contains("cors"));
    refused(
        &mut user.biplane(&["man", "serv"]),
        1,
        &["did you mean serve"],
    );
    let dir = user.home().join("man");
    good(&mut user.biplane(&["man", "--dir", dir.to_str().unwrap()]));
    for page in ["biplane.1", "biplane-chat.1", "biplane-template-render.1"] {
        assert!(dir.join(page).exists(), "{page}");
    }
}

#[test]
fn a_bench_is_drawn_as_bars() {
    let user = User::new();
    let file = user.home().join("bars.svg");
    let bench = [
        "bench",
        "--prompt-tokens",
        "8",
        "--generate",
        "2",
        "--repeat",
        "1",
        "-m",
    ];
    let mut command = user.biplane(&bench);
    let table = good(command.args([&tiny(), "--plot", file.to_str().unwrap()]));
    assert!(table.contains("decode tok/s"));
    let svg = fs::read_to_string(&file).unwrap();
    for backend in biplane::BackendKind::compiled() {
        assert!(svg.contains(&format!("{} on cpu", backend.name())), "{svg}");
    }
}

#[test]
fn the_log_can_be_json() {
    let user = User::new();
    let run = [
        "--log-format",
        "json",
        "-v",
        "-v",
        "run",
        "--raw",
        "-q",
        "-n",
        "1",
        "-m",
    ];
    let mut command = user.biplane(&run);
    let (code, _, said) = end(command.args([&tiny(), "Hello"]));
    assert_eq!(code, 0, "{said}");
    let lines: Vec<Value> = said
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(
        !lines.is_empty() && lines.iter().all(|line| line["level"].is_string()),
        "{said}"
    );
    refused(
        &mut user.biplane(&["--log-format", "xml", "list"]),
        1,
        &["text", "json"],
    );
}
