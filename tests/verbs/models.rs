//! Models come, are found, and go: pull, list, show, rm.

use super::*;

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
