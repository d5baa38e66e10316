//! Prefill and decode of a Llama on every backend in this build; the model is `BIPLANE_BENCH_MODEL`,
//! or else the starter model where it has been downloaded:
//! `cargo bench -p biplane-benches --features mlx --bench llama`.
#![allow(missing_docs, clippy::unwrap_used)]

use biplane::{BackendKind, ModelBuilder, SpanPlan, StepPlan, Want};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const PREFILL: usize = 128;

fn llama(c: &mut Criterion) {
    let model = std::env::var("BIPLANE_BENCH_MODEL").ok();
    for backend in BackendKind::compiled() {
        let builder = match &model {
            Some(path) => ModelBuilder::new(path),
            None => ModelBuilder::starter(),
        };
        let mut runner = builder.with_backend(backend).build_runner().unwrap();
        let vocab = runner.info().vocab_size as u32;
        let tokens: Vec<u32> = (0..PREFILL as u32)
            .map(|i| (i * 7919 + 11) % vocab)
            .collect();
        let slot = runner.open().unwrap();
        let step = |tokens: &[u32]| StepPlan {
            spans: vec![SpanPlan {
                slot,
                tokens: tokens.to_vec(),
                want: Want::Argmax,
            }],
        };
        let mut g = c.benchmark_group("llama prefill");
        g.throughput(Throughput::Elements(PREFILL as u64));
        g.bench_function(BenchmarkId::new(backend.name(), PREFILL), |b| {
            b.iter(|| {
                runner.truncate(slot, 0).unwrap();
                runner.step(&step(&tokens)).unwrap()
            });
        });
        g.finish();
        let mut g = c.benchmark_group("llama decode");
        g.throughput(Throughput::Elements(1));
        g.bench_function(BenchmarkId::new(backend.name(), PREFILL), |b| {
            b.iter(|| {
                runner.truncate(slot, PREFILL).unwrap();
                runner.step(&step(&[9])).unwrap()
            });
        });
        g.finish();
        runner.close(slot);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10);
    targets = llama
}
criterion_main!(benches);
