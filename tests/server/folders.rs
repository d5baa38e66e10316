//! Folders of models, as they are at the start and as they become.

use std::{fs, path::PathBuf};

use super::*;

fn llama() -> PathBuf {
    fixture("llama/gguf/llama-q8_0.gguf")
}

impl Server {
    fn names(&self) -> Vec<String> {
        let reply = self.get("/v1/models");
        assert_eq!(reply.status, 200, "{reply:?}");
        let list = reply.json();
        let names = list["data"].as_array().unwrap().iter().map(|m| &m["id"]);
        names.map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// Waits until a folder's change is seen.
    fn wait_names(&self, names: &[&str]) {
        wait(|| self.names() == names, || format!("{:?}", self.names()));
    }
}

fn wait(is: impl Fn() -> bool, said: impl Fn() -> String) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{}", said());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn folders_have_models() {
    let folder = tempfile::tempdir().unwrap();
    copied(
        &fixture("gemma3/mlx-4bit"),
        &folder.path().join("org/small"),
    );
    let file = fixture("llama/gguf/llama-q8_0.gguf");
    std::fs::copy(file, folder.path().join("llama.gguf")).unwrap();
    let server = start_any(&["--models-dir", path_of(folder.path())]);
    server.wait_healthy();
    let list = server.get("/v1/models").json();
    let names = list["data"].as_array().unwrap().iter().map(|m| &m["id"]);
    assert_eq!(names.collect::<Vec<_>>(), ["llama", "small"]);
    assert_eq!(server.metric("model_loaded"), 0.0);
    let (small, llama) = (server.text("small"), server.text("llama"));
    assert_ne!(small, llama);
    let entry = server.entry("llama");
    let formats = entry["biplane"]["quantization"].as_str().unwrap();
    assert!(formats.starts_with("Q8_0"), "{entry}");
    let refused: PathBuf = folder.path().join("org/small/nothing");
    std::fs::create_dir(&refused).unwrap();
    let none = program(&["serve", "--port", "0", "--models-dir", path_of(&refused)]);
    let out = { none }.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(
        !out.status.success() && said.contains("--models-dir"),
        "{said}"
    );
}

#[test]
fn what_comes_into_a_folder_is_seen() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(llama(), at("one.gguf")).unwrap();
    let server = start_any(&["--models-dir", path_of(folder.path())]);
    server.wait_healthy();
    assert_eq!(server.names(), ["one"]);

    // As a download that writes under the final name leaves it for a while.
    let whole = fs::read(llama()).unwrap();
    for part in [0, 4, 1000, whole.len() / 2] {
        fs::write(at("two.gguf"), &whole[..part]).unwrap();
        server.wait_names(&["one", "two"]);
        let error = server.complete("two").error(500);
        assert_eq!(error["code"], "model_load_failed");
    }
    assert!(!server.text("one").is_empty());
    assert_eq!(server.get("/health").status, 200);
    fs::write(at("two.gguf"), &whole).unwrap();
    assert_eq!(server.text("two"), server.text("one"));
    let quantization = || server.entry("two")["biplane"]["quantization"].clone();
    wait(
        || quantization().is_string(),
        || server.entry("two").to_string(),
    );

    // Asked for before anybody has listed it.
    copied(&fixture("gemma3/mlx-4bit"), &at("org/three"));
    let come = || server.complete("three").status == 200;
    wait(come, || format!("{:?}", server.complete("three")));
    assert_eq!(server.names(), ["one", "three", "two"]);
}

#[test]
fn what_leaves_a_folder_goes_when_it_has_answered() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(llama(), at("one.gguf")).unwrap();
    copied(endless_model().path(), &at("two"));
    let dir = ["--models-dir", path_of(folder.path())];
    let named = gemma();
    let server = start_any(&[&dir[..], &["-m", &named]].concat());
    server.wait_healthy();
    assert_eq!(server.names(), ["gemma", "one", "two"]);
    assert!(!server.text("one").is_empty());
    fs::remove_file(at("one.gguf")).unwrap();
    server.wait_names(&["gemma", "two"]);
    server.complete("one").error(404);

    let answering = server.endless_answer("two");
    fs::rename(at("two"), at(".away")).unwrap();
    fs::copy(llama(), at("three.gguf")).unwrap();
    server.wait_names(&["gemma", "two", "three"]);
    drop(answering);
    server.wait_names(&["gemma", "three"]);

    // What was there stays where nothing can be read, and what is named stays anyway.
    let loaded = server.text("three");
    fs::rename(folder.path(), folder.path().with_extension("away")).unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(server.names(), ["gemma", "three"]);
    assert_eq!(server.text("three"), loaded);
    fs::rename(folder.path().with_extension("away"), folder.path()).unwrap();
    fs::remove_file(at("three.gguf")).unwrap();
    server.wait_names(&["gemma"]);
    assert!(!server.text("gemma").is_empty());
}
