//! The operations that matter, on every backend in this build, in the sizes of SmolLM2-135M:
//! `cargo bench -p biplane-benches --features mlx --bench ops`.
#![allow(missing_docs, clippy::unwrap_used)]

use biplane_backend::{
    AttentionMask, Backend, DType, Device, GgmlKind, PackedLayout, PackedMatrix, RopeAngles,
    RopeScaling, Tensor, WeightMatrix, rope_inv_freqs,
};
use biplane_benches::noise;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

const HIDDEN: usize = 576;
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const HEAD_DIM: usize = 64;

/// Waits for a tensor: on a lazy backend this is where it is computed.
fn finish<B: Backend>(backend: &B, t: &B::Tensor) {
    backend.eval(&[t]).unwrap();
}

fn tensor<B: Backend, const N: usize>(b: &B, seed: u64, shape: [usize; N]) -> B::Tensor {
    let n = shape.iter().product();
    b.from_f32s(&noise(seed, n), shape).unwrap()
}

/// A Q4_1 matrix of small values.
fn quantized<B: Backend>(b: &B, out: usize, input: usize) -> B::Matrix {
    let kind = GgmlKind::Q4_1;
    let mut blocks = Vec::new();
    for (i, _) in (0..out * input / kind.block_len()).enumerate() {
        blocks.extend_from_slice(&[0x00, 0x20, 0x00, 0xa4]); // scale 2^-7, minimum -2^-6
        blocks.extend((0..16).map(|j| ((i * 31 + j * 7) % 251) as u8));
    }
    b.load_matrix(
        &PackedMatrix {
            name: "bench",
            shape: [out, input],
            layout: PackedLayout::Ggml {
                kind,
                blocks: &blocks,
            },
        },
        DType::F32,
    )
    .unwrap()
}

fn ops<B: Backend>(c: &mut Criterion) {
    let b = B::new(Device::Cpu).unwrap();
    let id = |n: usize| BenchmarkId::new(B::NAME, n);
    for rows in [1, 128] {
        let mut g = c.benchmark_group("matmul f32 576x1536");
        let (x, w) = (tensor(&b, 1, [rows, HIDDEN]), tensor(&b, 2, [HIDDEN, 1536]));
        g.throughput(Throughput::Elements((rows * HIDDEN * 1536) as u64));
        g.bench_function(id(rows), |bench| {
            bench.iter(|| finish(&b, &x.matmul(&w).unwrap()));
        });
        g.finish();
        for (out, input) in [(1536, HIDDEN), (HIDDEN, 1536), (49152, HIDDEN)] {
            if rows > 1 && out > 10_000 {
                continue;
            }
            let mut g = c.benchmark_group(format!("quantized matmul Q4_1 {input}x{out}"));
            let (x, w) = (tensor(&b, 1, [rows, input]), quantized(&b, out, input));
            g.throughput(Throughput::Elements((rows * out * input) as u64));
            g.bench_function(id(rows), |bench| {
                bench.iter(|| finish(&b, &w.matmul_t(&x).unwrap()));
            });
            g.finish();
        }
        let mut g = c.benchmark_group("RMSNorm 576");
        let (x, w) = (tensor(&b, 1, [rows, HIDDEN]), tensor(&b, 2, [HIDDEN]));
        g.bench_function(id(rows), |bench| {
            bench.iter(|| finish(&b, &x.rms_norm(&w, 1e-5).unwrap()));
        });
        g.finish();
        let mut g = c.benchmark_group("RoPE 9x64");
        let freqs = rope_inv_freqs(HEAD_DIM, 1e5, &RopeScaling::None).unwrap();
        let positions: Vec<u32> = (500..500 + rows as u32).collect();
        let angles = RopeAngles::new(&b, &positions, &freqs, false).unwrap();
        let x = tensor(&b, 1, [rows, HEADS, HEAD_DIM]);
        g.bench_function(id(rows), |bench| {
            bench.iter(|| finish(&b, &x.rope(&angles).unwrap()));
        });
        g.finish();
        let mut g = c.benchmark_group("attention 9:3x64 over 512");
        let q = tensor(&b, 1, [HEADS, rows, HEAD_DIM]);
        let k = tensor(&b, 2, [KV_HEADS, 512, HEAD_DIM]);
        let v = tensor(&b, 3, [KV_HEADS, 512, HEAD_DIM]);
        g.bench_function(id(rows), |bench| {
            bench.iter(|| {
                finish(
                    &b,
                    &q.attention(&k, &v, AttentionMask::Causal, 0.125).unwrap(),
                );
            });
        });
        g.finish();
    }
}

fn all(c: &mut Criterion) {
    #[cfg(feature = "candle")]
    ops::<biplane_candle::CandleBackend>(c);
    #[cfg(feature = "mlx")]
    ops::<biplane_mlx::MlxBackend>(c);
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(20)
        .warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = all
}
criterion_main!(benches);
