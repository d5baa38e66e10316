//! What the tests share: fixtures, golden values, and how to compare with them.

use std::path::{Path, PathBuf};

use biplane::{
    BackendKind, Device, ModelBuilder, ModelRunner, SlotId, SpanOutput, SpanPlan, StepPlan, Want,
};
use serde::Deserialize;

/// Reference values of a fixture: transformers 5.24 in f32 on the file's own dequantized values.
#[derive(Debug, Deserialize)]
pub struct Golden {
    /// Prompts with the logits after them and the greedy continuation.
    pub prompts: Vec<Prompt>,
    /// A sequence with the negative log-likelihood of its tokens.
    pub sequence: Sequence,
}

/// One prompt of a [`Golden`].
#[derive(Debug, Deserialize)]
pub struct Prompt {
    /// `short`, `past_window` or `long`.
    pub name: String,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// All logits after the last token.
    pub last_logits: Vec<f32>,
    /// The 32 most likely tokens one after another.
    pub greedy: Vec<u32>,
    /// The top logit less the second, at each of those.
    pub greedy_margin: Vec<f32>,
}

/// The sequence of a [`Golden`].
#[derive(Debug, Deserialize)]
pub struct Sequence {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Mean over all predicted tokens, in nats.
    pub nll_mean: f64,
}

/// How near a backend must come.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Greatest difference of a logit.
    pub logits: f32,
    /// Difference of the mean negative log-likelihood.
    pub nll: f64,
}

impl Tolerance {
    /// f32 arithmetic on the file's own values.
    pub const EXACT: Tolerance = Tolerance {
        logits: 1e-3,
        nll: 1e-4,
    };

    /// Quantized weights times activations rounded to 8 bits; the bounds are those of llama.cpp's on
    /// such files.
    pub const ROUNDED: Tolerance = Tolerance {
        logits: 0.5,
        nll: 0.05,
    };
}

/// A path below the fixtures.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures")).join(path)
}

/// A path below the fixtures, or below the larger set that `BIPLANE_FIXTURES` names; `None`, said on
/// standard error, where neither has it.
pub fn any_fixture(path: &str) -> Option<PathBuf> {
    let more = std::env::var_os("BIPLANE_FIXTURES").map(|dir| PathBuf::from(dir).join(path));
    // Of some models only the tokenizer's files are here.
    let complete = |path: &PathBuf| path.is_file() || path.join("config.json").exists();
    let found = [Some(fixture(path)), more].into_iter().flatten();
    let found = found.into_iter().find(complete);
    if found.is_none() {
        eprintln!("skipped: {path} is neither here nor in BIPLANE_FIXTURES");
    }
    found
}

/// A real model by its file name, where `BIPLANE_TEST_MODELS` names the folder that holds it.
///
/// `./test.sh` brings them; without them a test says so and passes, so that a plain `cargo test`
/// works offline.
pub fn real_model(file: &str) -> Option<PathBuf> {
    let path = std::env::var_os("BIPLANE_TEST_MODELS").map(|dir| PathBuf::from(dir).join(file));
    match path {
        Some(path) if path.exists() => Some(path),
        other => {
            assert!(
                std::env::var_os("BIPLANE_REQUIRE_MODELS").is_none(),
                "{file} is required, but not at {other:?}"
            );
            eprintln!("skipped: {file} is not in BIPLANE_TEST_MODELS; ./test.sh brings it");
            None
        }
    }
}

/// A model ready to step, on this thread, in exact arithmetic.
pub fn runner(path: &Path, backend: BackendKind) -> Box<dyn ModelRunner> {
    try_runner(path, backend).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// As [`runner`], or why not.
pub fn try_runner(path: &Path, backend: BackendKind) -> biplane::Result<Box<dyn ModelRunner>> {
    builder(path, backend).with_exact(true).build_runner()
}

/// As [`runner`], in the backend's usual arithmetic.
pub fn usual_runner(path: &Path, backend: BackendKind) -> Box<dyn ModelRunner> {
    let built = builder(path, backend).build_runner();
    built.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A model's builder, for the processor.
pub fn builder(path: &Path, backend: BackendKind) -> ModelBuilder {
    ModelBuilder::new(path.to_string_lossy())
        .with_backend(backend)
        .with_device(Device::Cpu) // the golden values are for f32
}

/// One span, one step.
pub fn step(r: &mut dyn ModelRunner, slot: SlotId, tokens: &[u32], want: Want) -> SpanOutput {
    let spans = vec![SpanPlan {
        slot,
        tokens: tokens.to_vec(),
        want,
    }];
    r.step(&StepPlan { spans }).unwrap().remove(0)
}

/// The logits of a step that wants them.
pub fn logits(output: SpanOutput) -> Vec<f32> {
    match output {
        SpanOutput::Logits(logits) => logits,
        other => panic!("expected logits, got {other:?}"),
    }
}

/// The logits after the last of `tokens`, in a fresh sequence.
pub fn last_logits(r: &mut dyn ModelRunner, tokens: &[u32]) -> Vec<f32> {
    logits_and_greedy(r, tokens, 0).0
}

/// The most likely `n` tokens one after another, in a fresh sequence.
pub fn greedy(r: &mut dyn ModelRunner, prompt: &[u32], n: usize) -> Vec<u32> {
    logits_and_greedy(r, prompt, n).1
}

/// Both of the above, the prompt computed once.
pub fn logits_and_greedy(
    r: &mut dyn ModelRunner,
    prompt: &[u32],
    n: usize,
) -> (Vec<f32>, Vec<u32>) {
    let slot = r.open().unwrap();
    let first = logits(step(r, slot, prompt, Want::LastLogits));
    let mut tokens = Vec::new();
    if n > 0 {
        let best =
            (1..first.len()).fold(0, |best, i| if first[i] > first[best] { i } else { best });
        tokens.push(best as u32);
    }
    while tokens.len() < n {
        let SpanOutput::Token(id) = step(r, slot, &tokens[tokens.len() - 1..], Want::Argmax) else {
            panic!("expected a token");
        };
        tokens.push(id);
    }
    r.close(slot);
    (first, tokens)
}

/// Mean negative log-likelihood of every token after the first, in nats.
pub fn nll_mean(r: &mut dyn ModelRunner, ids: &[u32]) -> f64 {
    let slot = r.open().unwrap();
    let vocab = r.info().vocab_size;
    let rows = logits(step(r, slot, ids, Want::AllLogits));
    r.close(slot);
    let total: f64 = rows
        .chunks(vocab)
        .zip(&ids[1..])
        .map(|(row, &next)| {
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|v| f64::from(v - max).exp()).sum();
            sum.ln() - f64::from(row[next as usize] - max)
        })
        .sum();
    total / (ids.len() - 1) as f64
}

/// The greatest difference, and where.
pub fn max_difference(a: &[f32], b: &[f32]) -> (f32, usize) {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .enumerate()
        .fold((0.0, 0), |best, (i, d)| {
            if d > best.0 || d.is_nan() {
                (d, i)
            } else {
                best
            }
        })
}

/// Compares greedy tokens up to the first step that the reference finds too close to call.
pub fn assert_greedy(what: &str, got: &[u32], want: &[u32], margins: &[f32], tolerance: f32) {
    let clear = margins
        .iter()
        .take_while(|m| **m >= 2.0 * tolerance)
        .count();
    assert_eq!(got[..clear], want[..clear], "{what}: greedy tokens");
}

/// Holds a checkpoint to its golden values on one backend.
pub fn assert_golden(checkpoint: &str, golden: &str, backend: BackendKind, tolerance: Tolerance) {
    let (Some(path), Some(golden)) = (any_fixture(checkpoint), any_fixture(golden)) else {
        return;
    };
    assert_golden_of(&mut *runner(&path, backend), &path, &golden, tolerance);
}

/// As [`assert_golden`], in the backend's usual arithmetic.
pub fn assert_golden_rounded(
    checkpoint: &str,
    golden: &str,
    backend: BackendKind,
    tolerance: Tolerance,
) {
    let (Some(path), Some(golden)) = (any_fixture(checkpoint), any_fixture(golden)) else {
        return;
    };
    let mut r = usual_runner(&path, backend);
    assert_golden_of(&mut *r, &path, &golden, tolerance);
}

/// As [`assert_golden`], for files anywhere.
pub fn assert_golden_at(path: &Path, golden: &Path, backend: BackendKind, tolerance: Tolerance) {
    assert_golden_of(&mut *runner(path, backend), path, golden, tolerance);
}

/// As [`assert_golden`], for a loaded model.
fn assert_golden_of(r: &mut dyn ModelRunner, path: &Path, golden: &Path, tolerance: Tolerance) {
    let (checkpoint, backend) = (path.display(), r.info().backend);
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(golden).unwrap()).unwrap();
    for p in &golden.prompts {
        let what = format!("{checkpoint} on {backend}, prompt {}", p.name);
        let (logits, got) = logits_and_greedy(r, &p.ids, p.greedy.len());
        let (difference, at) = max_difference(&logits, &p.last_logits);
        assert!(
            difference <= tolerance.logits,
            "{what}: logit {at} is off by {difference}"
        );
        assert_greedy(&what, &got, &p.greedy, &p.greedy_margin, tolerance.logits);
    }
    let nll = nll_mean(r, &golden.sequence.ids);
    assert!(
        (nll - golden.sequence.nll_mean).abs() <= tolerance.nll,
        "{checkpoint} on {backend}: mean negative log-likelihood {nll}, expected {}",
        golden.sequence.nll_mean
    );
}

/// A test of every given case on every backend in this build, each a test of its own.
#[macro_export]
macro_rules! on_each_backend {
    ($($(#[$meta:meta])* $name:ident => $body:expr;)*) => {
        $(mod $name {
            #[allow(unused_imports)]
            use super::*;
            #[cfg(feature = "candle")]
            #[test]
            $(#[$meta])*
            fn candle() {
                ($body)(biplane::BackendKind::Candle);
            }
            #[cfg(feature = "mlx")]
            #[test]
            $(#[$meta])*
            fn mlx() {
                ($body)(biplane::BackendKind::Mlx);
            }
        })*
    };
}
