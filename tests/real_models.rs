//! Real models against transformers' values on the same weights; see `real_golden.json`.

use biplane::BackendKind;
use biplane_tests::{
    assert_greedy, fixture, logits_and_greedy, max_difference, nll_mean, on_each_backend,
    real_model, runner,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct RealGolden {
    models: std::collections::HashMap<String, Model>,
}

#[derive(Deserialize)]
struct Model {
    logit_indices: Vec<usize>,
    prompts: std::collections::BTreeMap<String, Prompt>,
    nll: Nll,
}

#[derive(Deserialize)]
struct Prompt {
    ids: Vec<u32>,
    top20: Vec<(usize, f32)>,
    logits_at_indices: Vec<f32>,
    greedy: Vec<u32>,
    greedy_margins: Vec<f32>,
}

#[derive(Deserialize)]
struct Nll {
    ids: Vec<u32>,
    mean: f64,
}

fn golden(file: &str) -> Model {
    let text = std::fs::read_to_string(fixture("real_golden.json")).unwrap();
    let mut golden: RealGolden = serde_json::from_str(&text).unwrap();
    golden.models.remove(file).unwrap()
}

const SMOLLM2: &str = "smollm2-135m-instruct-q4_1.gguf";

/// A base model: it has no chat template.
const GEMMA: &str = "gemma-3-270m-q4_k_m.gguf";

/// f32 sums of 576 to 2048 terms in another order than torch's, over 18 and 30 layers.
const LOGITS: f32 = 5e-3;

/// How a model is held to its reference.
struct Check {
    logits: f32,
    nll: f64,
    /// Prompts of more tokens are left out, unless `BIPLANE_TEST_LONG` is set: MLX's processor
    /// kernels take minutes for them.
    longest: usize,
}

impl Check {
    fn of(file: &str, backend: BackendKind) -> Self {
        let long = std::env::var_os("BIPLANE_TEST_LONG").is_some();
        let all = Check {
            logits: LOGITS,
            nll: 1e-3,
            longest: usize::MAX,
        };
        match (backend, file) {
            (BackendKind::Mlx, GEMMA) => Check {
                // Its Q6_K matrices are re-quantized to 8 bits there.
                logits: 0.5,
                nll: 0.01,
                longest: if long { usize::MAX } else { 64 },
            },
            _ => all,
        }
    }
}

fn matches_the_reference(file: &str, backend: BackendKind) {
    let Some(path) = real_model(file) else {
        return;
    };
    let check = Check::of(file, backend);
    let golden = golden(file);
    let mut r = runner(&path, backend);
    let mut worst = 0f32;
    for (name, p) in &golden.prompts {
        if p.ids.len() > check.longest {
            continue;
        }
        let what = format!("{file} on {backend}, prompt {name}");
        let (got, tokens) = logits_and_greedy(&mut *r, &p.ids, p.greedy.len());
        let at: Vec<f32> = golden.logit_indices.iter().map(|&i| got[i]).collect();
        let (difference, i) = max_difference(&at, &p.logits_at_indices);
        worst = worst.max(difference);
        assert!(
            difference <= check.logits,
            "{what}: logit {} is off by {difference}",
            golden.logit_indices[i]
        );
        for &(id, logit) in &p.top20 {
            assert!(
                (got[id] - logit).abs() <= check.logits,
                "{what}: logit {id} is {} for {logit}",
                got[id]
            );
        }
        assert_greedy(&what, &tokens, &p.greedy, &p.greedy_margins, check.logits);
    }
    let nll = nll_mean(&mut *r, &golden.nll.ids);
    println!(
        "{file} on {backend}: logits within {worst}, NLL {nll}, reference {}",
        golden.nll.mean
    );
    assert!(
        (nll - golden.nll.mean).abs() < check.nll,
        "{nll} for {}",
        golden.nll.mean
    );
}

on_each_backend! {
    smollm2 => |b| matches_the_reference(SMOLLM2, b);
    gemma3 => |b| matches_the_reference(GEMMA, b);
    long_prompt => chunked_is_whole;
}

/// A prompt several windows long, in chunks and in one piece.
fn chunked_is_whole(backend: BackendKind) {
    let Some(path) = real_model(GEMMA) else {
        return;
    };
    let long = std::env::var_os("BIPLANE_TEST_LONG").is_some();
    if backend == BackendKind::Mlx && !long {
        eprintln!("skipped: set BIPLANE_TEST_LONG for the minutes it takes on MLX's processor");
        return;
    }
    let passage = &golden(GEMMA).nll.ids;
    let ids: Vec<u32> = passage.iter().cycle().take(2000).copied().collect();
    let mut r = runner(&path, backend);
    let whole = biplane_tests::last_logits(&mut *r, &ids);
    let slot = r.open().unwrap();
    let mut last = biplane::SpanOutput::Nothing;
    for part in ids.chunks(64) {
        last = biplane_tests::step(&mut *r, slot, part, biplane::Want::LastLogits);
    }
    let (difference, _) = max_difference(&biplane_tests::logits(last), &whole);
    println!("{GEMMA} on {backend}: 2,000 tokens in chunks of 64 are off by {difference}");
    let allowed = match backend {
        BackendKind::Candle => 0.0,
        BackendKind::Mlx => LOGITS,
    };
    assert!(difference <= allowed, "off by {difference}");
}

/// Where two backends' greedy texts part, the two best tokens must have been next to equal.
#[cfg(all(feature = "candle", feature = "mlx"))]
#[test]
fn the_backends_agree() {
    let Some(path) = real_model(SMOLLM2) else {
        return;
    };
    const TOKENS: usize = 40;
    // MLX takes a minute for the long prompt on a processor.
    const LONGEST: usize = 64;
    let golden = golden(SMOLLM2);
    let mut a = runner(&path, BackendKind::Candle);
    let mut b = runner(&path, BackendKind::Mlx);
    for (name, p) in golden
        .prompts
        .iter()
        .filter(|(_, p)| p.ids.len() <= LONGEST)
    {
        let (x, y) = (
            biplane_tests::greedy(&mut *a, &p.ids, TOKENS),
            biplane_tests::greedy(&mut *b, &p.ids, TOKENS),
        );
        let Some(at) = (0..TOKENS).find(|&i| x[i] != y[i]) else {
            continue;
        };
        let context = [&p.ids[..], &x[..at]].concat();
        let mut logits = biplane_tests::last_logits(&mut *a, &context);
        logits.sort_by(|a, b| b.total_cmp(a));
        let gap = logits[0] - logits[1];
        println!("{name}: the backends part at token {at}, where the top-2 gap is {gap}");
        assert!(
            gap < 2.0 * LOGITS,
            "{name}: they part at token {at} over a gap of {gap}"
        );
        assert!(
            at >= 32,
            "{name}: they part at token {at} already (gap {gap})"
        );
    }
}
