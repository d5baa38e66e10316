//! The program itself: doctor, configuration, completions, man, log, and what is drawn.

use super::*;

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
fn the_doctor_tries_mcp_servers() {
    let user = User::new();
    let file = user.home().join("mcp.json");
    let own = serde_json::json!({
        "command": env!("CARGO_BIN_EXE_biplane"),
        "args": ["mcp", "-m", tiny()],
        "env": {"BIPLANE_DEVICE": "cpu"},
    });
    let write = |servers: Value| {
        let text = serde_json::json!({"mcpServers": servers}).to_string();
        fs::write(&file, text).unwrap();
    };
    let doctor = || {
        let mut command = user.biplane(&["doctor"]);
        command.env("HF_HUB_OFFLINE", "1");
        command.env("MCP_CONFIG_PATH", &file);
        command
    };
    write(serde_json::json!({"own": own}));
    let said = good(&mut doctor());
    assert!(said.contains("own: 6 tools"), "{said}");
    write(serde_json::json!({"own": own, "broken": {"command": "/no/such/program"}}));
    let (code, said, _) = end(&mut doctor());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("own: 6 tools"), "{said}");
    assert!(
        said.contains("broken: /no/such/program cannot be started"),
        "{said}"
    );
    write(serde_json::json!({"own": {"args": []}}));
    let (code, said, _) = end(&mut doctor());
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("mcp.json: the server \"own\""), "{said}");
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
    // Devices that are not here are said at the log's second level.
    command.env("BIPLANE_DEVICE", "auto");
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
