//! Biplane beside candle-transformers' own quantized Llama on the same GGUF file, alternating, each
//! run in a process of its own:
//! `cargo run --release -p biplane-benches --bin peers -- FILE.gguf [PROMPT] [GENERATE] [ROUNDS]`.
//!
//! `RAYON_NUM_THREADS` sets the threads of both.

use std::{env, fs::File, io::BufReader, process::Command, time::Instant};

use anyhow::{Context, Result, bail, ensure};
use biplane::{
    BackendKind, ModelBuilder,
    bench::{BenchSettings, bench},
};
use candle_core::{Device, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde::{Deserialize, Serialize};

#[derive(Debug, Default, Deserialize, Serialize)]
struct Figures {
    prefill: f64,
    decode: f64,
    load_ms: f64,
    peak_mib: f64,
}

fn main() -> Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let number = |i: usize, default: usize| -> Result<usize> {
        args.get(i).map_or(Ok(default), |s| {
            s.parse().with_context(|| format!("{s:?} is no number"))
        })
    };
    if let [kind, file, prompt, generate] = args.as_slice()
        && kind.starts_with("--")
    {
        let (prompt, generate) = (prompt.parse()?, generate.parse()?);
        let figures = match kind.as_str() {
            "--biplane" => biplane(file, prompt, generate)?,
            "--candle-transformers" => candle_transformers(file, prompt, generate)?,
            other => bail!("unknown {other}"),
        };
        println!("{}", serde_json::to_string(&figures)?);
        return Ok(());
    }
    let file = args
        .first()
        .context("usage: peers FILE.gguf [PROMPT] [GENERATE] [ROUNDS]")?;
    let (prompt, generate, rounds) = (number(1, 512)?, number(2, 64)?, number(3, 5)?);
    let names = ["--biplane", "--candle-transformers"];
    let mut all: [Vec<Figures>; 2] = Default::default();
    for _ in 0..rounds {
        for (name, runs) in names.iter().zip(&mut all) {
            let output = Command::new(env::current_exe()?)
                .args([
                    name,
                    file.as_str(),
                    &prompt.to_string(),
                    &generate.to_string(),
                ])
                .stderr(std::process::Stdio::inherit())
                .output()?;
            ensure!(output.status.success(), "{name} failed");
            runs.push(serde_json::from_slice(&output.stdout)?);
        }
    }
    println!("prompt {prompt}, generate {generate}, medians of {rounds} alternating runs");
    println!(
        "{:22} {:>14} {:>13} {:>9} {:>12}",
        "", "prefill tok/s", "decode tok/s", "load", "peak memory"
    );
    let medians: Vec<Figures> = all.iter().map(|runs| median_of(runs)).collect();
    for (name, f) in names.iter().zip(&medians) {
        println!(
            "{:22} {:>14.1} {:>13.1} {:>6.0} ms {:>8.0} MiB",
            name.trim_start_matches('-'),
            f.prefill,
            f.decode,
            f.load_ms,
            f.peak_mib
        );
    }
    if let [ours, theirs] = medians.as_slice() {
        println!(
            "{:22} {:>13.2}x {:>12.2}x {:>8.2}x {:>11.2}x",
            "ratio",
            ours.prefill / theirs.prefill,
            ours.decode / theirs.decode,
            ours.load_ms / theirs.load_ms,
            ours.peak_mib / theirs.peak_mib
        );
    }
    Ok(())
}

fn median_of(runs: &[Figures]) -> Figures {
    let median = |f: &dyn Fn(&Figures) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(f).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Figures {
        prefill: median(&|f| f.prefill),
        decode: median(&|f| f.decode),
        load_ms: median(&|f| f.load_ms),
        peak_mib: median(&|f| f.peak_mib),
    }
}

fn peak_mib() -> f64 {
    biplane::memory::peak_resident_bytes().unwrap_or(0) as f64 / f64::from(1 << 20)
}

fn biplane(file: &str, prompt: usize, generate: usize) -> Result<Figures> {
    if let Ok(threads) = env::var("RAYON_NUM_THREADS") {
        biplane::set_threads(threads.parse()?);
    }
    let result = bench(
        ModelBuilder::new(file).with_backend(BackendKind::Candle),
        &BenchSettings {
            prompt_tokens: prompt,
            generate,
            repeat: 1,
            streams: 1,
        },
    )?;
    Ok(Figures {
        prefill: result.prefill_tokens_per_second,
        decode: result.decode_tokens_per_second,
        load_ms: result.load_ms,
        peak_mib: peak_mib(),
    })
}

/// As candle's own example runs it: the whole prompt at once, greedy.
fn candle_transformers(file: &str, prompt: usize, generate: usize) -> Result<Figures> {
    let start = Instant::now();
    let mut reader = BufReader::new(File::open(file).with_context(|| file.to_owned())?);
    let content = gguf_file::Content::read(&mut reader)?;
    let mut model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
    let load_ms = start.elapsed().as_secs_f64() * 1e3;
    let next = |model: &mut ModelWeights, ids: &[u32], at: usize| -> Result<u32> {
        let x = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        Ok(model.forward(&x, at)?.squeeze(0)?.argmax(0)?.to_scalar()?)
    };
    let ids: Vec<u32> = (0..prompt as u32)
        .map(|i| (i * 7919 + 11) % 32_000)
        .collect();
    next(&mut model, &ids[..prompt.min(8)], 0)?;
    model.clear_kv_cache();
    let start = Instant::now();
    let mut id = next(&mut model, &ids, 0)?;
    let first = start.elapsed().as_secs_f64();
    let start = Instant::now();
    for i in 1..generate {
        id = next(&mut model, &[id], prompt + i - 1)?;
    }
    let decode = start.elapsed().as_secs_f64();
    Ok(Figures {
        prefill: prompt as f64 / first,
        decode: (generate - 1) as f64 / decode,
        load_ms,
        peak_mib: peak_mib(),
    })
}
