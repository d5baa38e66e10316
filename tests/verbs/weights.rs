//! A model's weights: quantize, convert, perplexity, verify, and the self-check.

use super::*;

fn dense() -> String {
    fixture("llama/hf").to_str().unwrap().to_owned()
}

fn passage() -> String {
    fixture("passage.txt").to_str().unwrap().to_owned()
}

/// A name in the user's home.
fn at(user: &User, name: &str) -> String {
    user.home().join(name).to_str().unwrap().to_owned()
}

/// Mean negative log-likelihood of the passage, in exact arithmetic.
fn nll(user: &User, model: &str, backend: BackendKind, more: &[&str]) -> f64 {
    let mut command = user.biplane(&["perplexity", "--json", "--exact", "--window", "128"]);
    command.args(["--backend", backend.name(), "-m", model]);
    let report = json(command.args(more).arg(passage()));
    assert_eq!(report["window"], 128);
    report["nll"].as_f64().unwrap()
}

#[test]
fn what_is_written_is_the_model_that_was_meant() {
    let user = User::new();
    let (mlx, gguf) = (at(&user, "m-4bit"), at(&user, "m.gguf"));
    let quantize = ["quantize", "-m", &dense(), "--isq", "AFQ4", "-o", &mlx];
    let (code, out, said) = end(&mut user.biplane(&quantize));
    assert_eq!((code, out.as_str()), (0, ""), "{said}");
    assert!(said.contains("bits a parameter"), "{said}");
    assert!(said.contains("matrices quantized"), "{said}");
    let shown = json(&mut user.biplane(&["show", "--json", &mlx]));
    assert_eq!(shown["format"], "safetensors", "{shown}");
    good(&mut user.biplane(&["convert", "-m", &dense(), "-o", &gguf]));
    assert_eq!(
        json(&mut user.biplane(&["show", "--json", &gguf]))["format"],
        "gguf"
    );
    for backend in BackendKind::compiled() {
        let own = nll(&user, &dense(), backend, &[]);
        let same = |a: f64, b: f64| assert!((a - b).abs() < 1e-4, "{a} and {b}");
        same(nll(&user, &gguf, backend, &[]), own);
        let quantized = nll(&user, &dense(), backend, &["--isq", "AFQ4"]);
        same(nll(&user, &mlx, backend, &[]), quantized);
        assert!((quantized - own).abs() > 1e-4, "nothing was quantized");
    }
    // GGUF of what a directory holds, and back, with the values kept.
    let (q4, back) = (at(&user, "q4.gguf"), at(&user, "back"));
    let q4_0 = ["--isq", "Q4_0", "--isq-override", "*=Q4_0"];
    let mut quantize = user.biplane(&["quantize", "-m", &dense(), "-o", &q4]);
    good(quantize.args(q4_0));
    good(&mut user.biplane(&["convert", "-m", &q4, "-o", &back]));
    let backend = BackendKind::default_here().unwrap();
    let difference = nll(&user, &q4, backend, &[]) - nll(&user, &back, backend, &[]);
    assert!(difference.abs() < 1e-6, "{difference}");
    let text = good(
        user.biplane(&["perplexity", "-m", &q4, "--window", "64"])
            .arg(passage()),
    );
    assert!(
        text.starts_with("perplexity ") && text.contains("windows of 64"),
        "{text}"
    );
}

#[test]
fn what_cannot_be_written_or_measured_is_named_and_leaves_nothing() {
    let user = User::new();
    let file = at(&user, "there.gguf");
    fs::write(&file, "mine").unwrap();
    let short = at(&user, "short.txt");
    fs::write(&short, "").unwrap();
    let (out, folder) = (at(&user, "m.gguf"), at(&user, "m"));
    // Nothing but a model is replaced.
    let home = user.home().to_str().unwrap().to_owned();
    let dense = &dense();
    let cases: [(&[&str], &[&str]); 13] = [
        (
            &["quantize", "-m", dense, "-o", &out],
            &["--isq Q4K", "--isq AFQ4"],
        ),
        (
            &["convert", "-m", dense, "-o", &file],
            &["there.gguf", "--force"],
        ),
        (
            &["convert", "-m", &file, "-o", &file, "--force"],
            &["there.gguf"],
        ),
        (
            &["convert", "-m", dense, "-o", &out, "--format", "onnx"],
            &["gguf", "mlx"],
        ),
        (
            &["convert", "-m", dense, "-o", &folder, "--isq", "Q4K"],
            &["AFQ4", "GGUF"],
        ),
        (
            &["convert", "-m", dense, "-o", &out, "--isq", "AFQ4"],
            &["GGUF has no AFQ4", "Q4K"],
        ),
        (
            &["quantize", "-m", dense, "-o", &out, "--isq", "Q9"],
            &["Q9", "Q4_0"],
        ),
        (
            &[
                "quantize",
                "-m",
                dense,
                "-o",
                &out,
                "--isq-override",
                "q_proj",
            ],
            &["PATTERN=TYPE"],
        ),
        (
            &[
                "quantize",
                "-m",
                dense,
                "-o",
                &out,
                "--isq",
                "Q8_0",
                "--isq-override",
                "layer.0=Q4_0",
            ],
            &["layer.0", "matches no weight"],
        ),
        (
            &["convert", "-m", dense, "-o", &at(&user, "no/such/m.gguf")],
            &["no/such"],
        ),
        (
            &["convert", "-m", dense, "-o", &home, "--force"],
            &["holds no model"],
        ),
        (
            &["perplexity", "-m", dense, &short],
            &["less than two tokens"],
        ),
        (
            &["perplexity", "-m", dense, "/no/such.txt"],
            &["/no/such.txt"],
        ),
    ];
    for (args, words) in cases {
        refused(&mut user.biplane(args), 1, words);
    }
    let mut left: Vec<_> = fs::read_dir(user.home())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["short.txt", "there.gguf"]);
    assert_eq!(fs::read(&file).unwrap(), b"mine");
}

/// Ctrl-C ends a conversion in the middle, and nothing stays.
#[cfg(unix)]
#[test]
fn an_interrupted_conversion_leaves_nothing() {
    let Some(model) = real_model("smollm2-135m-instruct-q4_1.gguf") else {
        return;
    };
    let user = User::new();
    for output in ["m.gguf", "m"] {
        let isq = if output == "m" { "AFQ2" } else { "Q2K" };
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_biplane"))
            .args(["quantize", "--isq", isq, "--isq-override"])
            .arg(format!("*={isq}"))
            .arg("-m")
            .arg(&model)
            .args(["-o", &at(&user, output)])
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let files = || fs::read_dir(user.home()).unwrap().count();
        while files() == 0 {
            assert_eq!(child.try_wait().unwrap(), None, "it wrote nothing");
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let kill = std::process::Command::new("kill")
            .args(["-INT", &child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130));
        assert_eq!(files(), 0, "{output}");
    }
}

#[test]
fn engines_are_compared() {
    let user = User::new();
    let verify = |more: &[&str]| {
        let mut command = user.biplane(&["verify", "-m", &tiny(), "--generate", "8"]);
        command.args(["--prompt", "Alice was", "--text", &passage()]);
        command.args(more);
        command
    };
    let backends: Vec<_> = BackendKind::compiled().collect();
    let [a, b] = backends[..] else {
        refused(&mut verify(&[]), 1, &["--features mlx"]);
        return;
    };
    let report = json(&mut verify(&["--json"]));
    assert_eq!(report["agree"], true, "{report}");
    assert_eq!(report["backends"], serde_json::json!([a.name(), b.name()]));
    let text = &report["text"];
    assert_eq!(text["top1_agreement"], 1.0, "{report}");
    assert!(text["tokens"].as_u64().unwrap() > 100);
    assert!(text["kl"].as_f64().unwrap() < 1e-5);
    let prompt = &report["prompts"][0];
    assert_eq!(prompt["prompt"], "Alice was");
    assert!(prompt["max_logit_difference"].as_f64().unwrap() < 1e-3);
    let table = good(&mut verify(&["--backends", "mlx,candle"]));
    for word in [
        "mlx (cpu, f32) against candle (cpu, f32)",
        "first difference",
        "top-1 agreement  100.00 %",
        "NLL ",
        "perplexity ",
        "the backends agree",
    ] {
        assert!(table.contains(word), "{word:?} is not in: {table}");
    }
    // Beyond the limits, whatever they are: the table, and exit code 1.
    for limit in ["--min-top1=1.1", "--max-nll-difference=-1"] {
        let (code, table, said) = end(&mut verify(&[limit]));
        assert_eq!(code, 1, "{said}");
        assert!(table.contains("THE BACKENDS DO NOT AGREE"), "{table}");
    }
    refused(&mut verify(&["--backends", "candle"]), 1, &["candle,mlx"]);
    let mut missing = user.biplane(&["verify", "-m", &tiny(), "--text", "/no/such.txt"]);
    refused(&mut missing, 1, &["/no/such.txt"]);
}

#[test]
fn kernels_check_themselves() {
    let user = User::new();
    for backend in BackendKind::compiled() {
        let run = [
            "run",
            "--self-check",
            "--raw",
            "-n",
            "1",
            "--backend",
            backend.name(),
        ];
        let mut command = user.biplane(&run);
        command
            .args(["-m", &tiny(), "Alice"])
            .env("BIPLANE_LOG", "info");
        let (code, _, said) = end(&mut command);
        assert_eq!(code, 0, "{said}");
        for form in ["Q4_0", "Q6_K", "4 bits, groups of 64", "bf16"] {
            let line = format!("self-check on {backend}: {form} is off by");
            assert!(said.contains(&line), "{line:?} is not in: {said}");
        }
    }
}
