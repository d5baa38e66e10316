//! The real SmolLM2 against transformers' values on the same weights; see `real_golden.json`.

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

/// f32 sums of 576 to 1536 terms in another order than torch's, over 30 layers.
const LOGITS: f32 = 5e-3;

fn matches_the_reference(backend: BackendKind) {
    let Some(path) = real_model(SMOLLM2) else {
        return;
    };
    let golden = golden(SMOLLM2);
    let mut r = runner(&path, backend);
    for (name, p) in &golden.prompts {
        let what = format!("{SMOLLM2} on {backend}, prompt {name}");
        let (got, tokens) = logits_and_greedy(&mut *r, &p.ids, p.greedy.len());
        let at: Vec<f32> = golden.logit_indices.iter().map(|&i| got[i]).collect();
        let (difference, i) = max_difference(&at, &p.logits_at_indices);
        assert!(
            difference <= LOGITS,
            "{what}: logit {} is off by {difference}",
            golden.logit_indices[i]
        );
        for &(id, logit) in &p.top20 {
            assert!(
                (got[id] - logit).abs() <= LOGITS,
                "{what}: logit {id} is {} for {logit}",
                got[id]
            );
        }
        assert_greedy(&what, &tokens, &p.greedy, &p.greedy_margins, LOGITS);
    }
    let nll = nll_mean(&mut *r, &golden.nll.ids);
    assert!(
        (nll - golden.nll.mean).abs() < 1e-3,
        "{nll} for {}",
        golden.nll.mean
    );
}

on_each_backend! {
    smollm2 => matches_the_reference;
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
