//! The verbs around models, as a user runs them: chat, pull, list, show, rm, quantize, convert,
//! perplexity, verify, template, doctor, completions, man, and the configuration file.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

#[allow(dead_code)]
#[path = "../crates/engine/src/hub/remote/tests/server.rs"]
mod hub;
#[path = "verbs/models.rs"]
mod models;
#[path = "verbs/program.rs"]
mod program;
#[path = "verbs/talk.rs"]
mod talk;
#[path = "verbs/weights.rs"]
mod weights;

use std::{fs, path::Path};

use assert_cmd::Command;
use biplane::BackendKind;
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
