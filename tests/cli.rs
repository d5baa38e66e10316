//! The program as a user runs it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use assert_cmd::Command;
use biplane::BackendKind;
use biplane_tests::{fixture, real_model};

fn biplane() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_biplane"));
    for name in [
        "BIPLANE_MODEL",
        "BIPLANE_BACKEND",
        "BIPLANE_DEVICE",
        "BIPLANE_THREADS",
        "BIPLANE_KV_TYPE",
    ] {
        command.env_remove(name);
    }
    command.env("BIPLANE_DEVICE", "cpu");
    command.timeout(std::time::Duration::from_secs(300));
    command
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

fn tiny() -> std::path::PathBuf {
    fixture("llama/mlx-4bit")
}

#[test]
fn text_goes_to_stdout_and_figures_to_stderr() {
    for backend in BackendKind::compiled() {
        let output = biplane()
            .args(["run", "--raw", "-n", "8", "--backend", backend.name(), "-m"])
            .arg(tiny())
            .arg("Alice was begin")
            .output()
            .unwrap();
        let figures = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{figures}");
        assert!(output.stdout.len() > 1);
        assert!(figures.starts_with("loading /"), "{figures}");
        for word in [
            backend.name(),
            "cpu",
            "tok/s",
            "first token",
            "peak memory",
            "8 tokens",
        ] {
            assert!(figures.contains(word), "{word:?} is not in: {figures}");
        }
    }
}

#[test]
fn a_seed_means_the_same_on_every_backend_and_every_time() {
    let run = |backend: BackendKind, seed: &str| {
        let args = [
            "--temperature",
            "0.9",
            "--top-p",
            "0.95",
            "--seed",
            seed,
            "-n",
            "24",
            // Rounded activations move logits by a little, which chance may turn into another token.
            "--exact",
        ];
        stdout(
            biplane()
                .args(["run", "--raw", "--quiet", "--backend", backend.name()])
                .args(args)
                .arg("-m")
                .arg(tiny())
                .arg("Alice was begin"),
        )
    };
    let texts: Vec<String> = BackendKind::compiled().map(|b| run(b, "7")).collect();
    assert!(texts.iter().all(|t| *t == texts[0]), "{texts:?}");
    let first = BackendKind::default_here().unwrap();
    assert_eq!(run(first, "7"), texts[0]);
    assert_ne!(run(first, "8"), texts[0]);
}

#[test]
fn a_piped_prompt_is_the_same_as_an_argument() {
    let command = |prompt: &[&str]| {
        let mut c = biplane();
        c.args(["run", "--raw", "-q", "-n", "6", "-m"])
            .arg(tiny())
            .args(prompt);
        c
    };
    let argument = stdout(&mut command(&["Alice was"]));
    assert_eq!(stdout(command(&[]).write_stdin("Alice was")), argument);
    assert_eq!(stdout(command(&["-"]).write_stdin("Alice was")), argument);
}

#[test]
fn wrong_flags_are_explained() {
    let cases: [(&[&str], &str); 11] = [
        (&["--backend", "tpu"], "candle and mlx"),
        (&["--device", "tpu"], "auto, cpu"),
        (&["--dtype", "int8"], "f16"),
        (&["--kv-type", "q5"], "auto, q8 or q4"),
        // Heads of 16 elements.
        (&["--kv-type", "q8"], "--kv-type auto"),
        (&["--kv-type", "q4", "--backend", "mlx"], "--kv-type auto"),
        (&["--temperature", "-1"], "temperature"),
        (&["--top-p", "2"], "top_p"),
        (&["--threads", "0"], "threads"),
        (&["--ctx", "0"], "ctx"),
        (&["--device", "metal"], "metal"),
    ];
    for (args, word) in cases {
        if args == ["--device", "metal"] && cfg!(target_os = "macos") {
            continue;
        }
        let output = biplane()
            .args(["run", "--raw", "-n", "1", "-m"])
            .arg(tiny())
            .args(args)
            .arg("Hello")
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{args:?} passed");
        assert!(
            said.contains(word) && !said.contains("panicked"),
            "{args:?}: {said}"
        );
    }
    // What needs no model is said before one is looked for.
    let output = biplane()
        .args(["run", "-m", "/no/such/model.gguf", "--top-p", "2", "Hello"])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error: top_p"), "{said}");
}

#[test]
fn keys_and_values_can_be_kept_smaller() {
    for backend in BackendKind::compiled() {
        for kv_type in ["q8", "q4_0", "8"] {
            let args = ["bench", "--json", "--backend", backend.name()];
            let text = stdout(
                biplane()
                    .args(args)
                    .args(["--prompt-tokens", "16", "--generate", "4"])
                    .args(["--repeat", "1", "--kv-type", kv_type, "-m"])
                    .arg(fixture("gemma3/mlx-4bit")),
            );
            let results: serde_json::Value = serde_json::from_str(&text).unwrap();
            let kept = if kv_type == "q4_0" { "q4" } else { "q8" };
            assert_eq!(results[0]["kv_format"], kept);
        }
        // The same context needs less: what does not fit as it is does in 4 bits.
        let serves = |kv_type| {
            let output = biplane()
                .args(["run", "--raw", "-q", "-n", "1", "--backend", backend.name()])
                .args(["--ctx", "900", "--kv-memory", "500K"])
                .args(["--kv-type", kv_type, "-m"])
                .arg(fixture("stablelm-qkln/mlx-4bit"))
                .arg("Alice")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.success() || said.contains("--kv-type q8"),
                "{said}"
            );
            output.status.success()
        };
        assert!(!serves("auto"));
        assert!(serves("q8"));
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused_with_the_figures() {
    let output = biplane()
        .args(["run", "--raw", "--ctx", "4", "-m"])
        .arg(tiny())
        .arg("Alice was beginning to get very tired of sitting by her sister")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.contains("context of 4"), "{said}");
}

#[test]
fn bench_gives_a_json_array_of_every_backend() {
    let text = stdout(
        biplane()
            .args([
                "bench",
                "--json",
                "--prompt-tokens",
                "16",
                "--generate",
                "4",
            ])
            .args(["--repeat", "1", "-m"])
            .arg(tiny()),
    );
    let results: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let names: Vec<_> = results
        .iter()
        .map(|r| r["backend"].as_str().unwrap())
        .collect();
    let compiled: Vec<_> = BackendKind::compiled().map(BackendKind::name).collect();
    assert_eq!(names, compiled);
    for result in results {
        for key in [
            "prefill_tokens_per_second",
            "decode_tokens_per_second",
            "time_to_first_token_ms",
            "load_ms",
            "peak_memory_bytes",
            "threads",
        ] {
            assert!(result[key].as_f64().unwrap() > 0.0, "{key}: {result}");
        }
        assert_eq!(result["device"], "cpu");
        assert_eq!(result["dtype"], "f32");
    }
}

#[test]
fn a_real_model_answers_in_chat() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    for backend in BackendKind::compiled() {
        let text = stdout(
            biplane()
                .args([
                    "run",
                    "-q",
                    // The first token's lead is 0.08: rounded activations choose the second.
                    "--exact",
                    "-n",
                    "40",
                    "--temperature",
                    "0",
                    "--backend",
                    backend.name(),
                ])
                .arg("-m")
                .arg(&model)
                .arg("What is the capital of France?"),
        );
        assert_eq!(text.trim(), "The capital of France is Paris.", "{backend}");
    }
}
