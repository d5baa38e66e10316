//! `biplane bench`

use std::{
    fmt::Write as _,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, bail};
use biplane::{
    BackendKind,
    bench::{Bench, BenchResult, BenchSettings, bench as measure},
};

use crate::{cli::BenchArgs, plot, report};

pub fn bench(args: BenchArgs) -> anyhow::Result<ExitCode> {
    let mut backends = args.backend.clone();
    if backends.is_empty() {
        backends.extend(BackendKind::compiled());
    }
    let settings = |streams, repeat| BenchSettings {
        prompt_tokens: args.prompt_tokens,
        generate: args.generate,
        repeat,
        streams,
    };
    if args.turns {
        let [one] = backends.as_slice() else {
            bail!("--turns measures one backend; name it with --backend");
        };
        let bench = Bench::load(args.model.builder(*one))?;
        for line in std::io::stdin().lines() {
            let line = line.context("standard input")?;
            let streams = line.trim().parse();
            let streams = streams.with_context(|| format!("{line:?} is no number of streams"))?;
            let result = bench.measure(&settings(streams, 1))?;
            report::data(&format!("{}\n", serde_json::to_string(&result)?))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let results = match backends.as_slice() {
        [] => bail!("this build has no backend; build with --features candle or --features mlx"),
        [one] => {
            let settings = settings(args.streams.into(), args.repeat);
            vec![serde_json::to_value(measure(
                args.model.builder(*one),
                &settings,
            )?)?]
        }
        many => {
            let mut results = Vec::new();
            for backend in many {
                match in_child(*backend)? {
                    Ok(result) => results.push(result),
                    Err(code) => return Ok(code),
                }
            }
            results
        }
    };
    if let Some(file) = &args.plot {
        let figures: Vec<BenchResult> = results
            .iter()
            .map(|result| serde_json::from_value(result.clone()))
            .collect::<Result<_, _>>()?;
        let model = args
            .model
            .model
            .as_deref()
            .unwrap_or("SmolLM2-135M-Instruct");
        let title = format!(
            "{model}: {} tokens of prompt, {} generated, {} at once",
            args.prompt_tokens, args.generate, args.streams
        );
        let written = std::fs::write(file, plot::svg(&title, &figures)?);
        written.with_context(|| file.display().to_string())?;
    }
    report::data(&match args.json {
        true => format!("{}\n", serde_json::to_string_pretty(&results)?),
        false => table(&results)?,
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Measures one backend in a process of its own: peak memory and load time are of the process. The
/// exit code of one that fails: it has said why.
fn in_child(backend: BackendKind) -> anyhow::Result<Result<serde_json::Value, ExitCode>> {
    let program = std::env::current_exe().context("this program's own path")?;
    let mut arguments: Vec<String> = Vec::new();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--backend" | "--plot" => drop(given.next()),
            "--json" => {}
            other if other.starts_with("--backend=") || other.starts_with("--plot=") => {}
            _ => arguments.push(argument),
        }
    }
    let output = Command::new(program)
        .args(arguments)
        .args(["--json", "--backend", backend.name()])
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("measuring {backend}"))?;
    match output.status.code() {
        Some(0) => {}
        Some(code) => return Ok(Err(ExitCode::from(u8::try_from(code).unwrap_or(1)))),
        None => bail!("measuring {backend} was ended: {}", output.status),
    }
    let results: Vec<serde_json::Value> = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("the figures of {backend}"))?;
    results
        .into_iter()
        .next()
        .map(Ok)
        .with_context(|| format!("{backend} gave no figures"))
}

fn table(results: &[serde_json::Value]) -> anyhow::Result<String> {
    let mut out = String::new();
    writeln!(
        out,
        "{:8} {:6} {:5} {:>7} {:>15} {:>14} {:>12} {:>10} {:>12}",
        "backend",
        "device",
        "dtype",
        "threads",
        "prefill tok/s",
        "decode tok/s",
        "first token",
        "load",
        "peak memory"
    )?;
    for value in results {
        let r: BenchResult = serde_json::from_value(value.clone())?;
        writeln!(
            out,
            "{:8} {:6} {:5} {:>7} {:>15.1} {:>14.1} {:>9.0} ms {:>7.0} ms {:>12}",
            r.backend,
            r.device,
            r.dtype,
            r.threads,
            r.prefill_tokens_per_second,
            r.decode_tokens_per_second,
            r.time_to_first_token_ms,
            r.load_ms,
            report::bytes(r.peak_memory_bytes),
        )?;
    }
    Ok(out)
}
