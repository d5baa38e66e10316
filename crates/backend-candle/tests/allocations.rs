//! What a decode step's operations allocate: their results, and nothing else.
//!
//! Every allocation of the process is counted, the pool's workers' too; so there is one test.

#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use biplane_backend::{
    Around, AttentionMask, Backend, DType, Decode, Device, Gate, GgmlKind, PackedLayout,
    PackedMatrix, RopeAngles, Tensor, WeightMatrix,
};
use biplane_candle::{CandleBackend, CandleMatrix, CandleTensor, set_threads};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does it all.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, p: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.realloc(p, layout, size) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of one call, after those calls that make buffers grow and threads start.
fn allocations<T>(mut call: impl FnMut() -> T) -> usize {
    for _ in 0..20 {
        call();
    }
    // The test's harness may allocate meanwhile; never does it in all of many calls.
    let one = |_| {
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        let result = call();
        let n = ALLOCATIONS.load(Ordering::Relaxed) - before;
        drop(result);
        n
    };
    (0..50).map(one).min().unwrap()
}

fn tensor<const N: usize>(b: &CandleBackend, shape: [usize; N]) -> CandleTensor {
    let n = shape.iter().product();
    let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
    b.from_f32s(&values, shape).unwrap()
}

fn matrix(b: &CandleBackend, kind: GgmlKind, shape: [usize; 2]) -> CandleMatrix {
    let bytes = shape[0] * shape[1] / kind.block_len() * kind.block_bytes();
    let blocks = vec![0x11; bytes];
    let packed = PackedMatrix {
        name: "m",
        shape,
        layout: PackedLayout::Ggml {
            kind,
            blocks: &blocks,
        },
    };
    b.load_matrix(&packed, DType::F32).unwrap()
}

#[test]
fn a_decode_step_allocates_its_results_alone() {
    set_threads(2);
    let b = CandleBackend::new(Device::Cpu).unwrap();
    let x = tensor(&b, [1, 576]);
    let (one, two) = (tensor(&b, [1, 1536]), tensor(&b, [1, 1536]));
    let norm = tensor(&b, [576]);
    let q = tensor(&b, [1, 9, 64]);
    let angles = RopeAngles::new(&b, &[700], &[0.1; 32], false).unwrap();
    let by_head = q.swap_axes(0, 1).unwrap();
    let cache = tensor(&b, [3, 1024, 64]).cast(DType::F16).unwrap();
    let (near, far) = (
        cache.narrow(1, 0, 100).unwrap(),
        cache.narrow(1, 0, 900).unwrap(),
    );

    // What a result costs: its elements, and what candle keeps beside them; and what a view costs.
    let result = allocations(|| x.add(&x).unwrap());
    let view = allocations(|| by_head.swap_axes(0, 1).unwrap());
    assert!(result > view && view > 0, "{result} {view}");
    assert_eq!(allocations(|| x.rms_norm(&norm, 1e-5).unwrap()), result);
    assert_eq!(allocations(|| one.silu_mul(&two).unwrap()), result);
    assert_eq!(allocations(|| q.rope(&angles).unwrap()), result);
    // However many keys there are; its result comes as a view.
    for keys in [&near, &far] {
        let attend = || by_head.attention(keys, keys, AttentionMask::Causal, 0.1);
        assert_eq!(allocations(|| attend().unwrap()), result + view);
    }
    for kind in [GgmlKind::Q4_1, GgmlKind::Q8_0, GgmlKind::Q5_0] {
        let (small, large) = (matrix(&b, kind, [576, 576]), matrix(&b, kind, [4096, 576]));
        for m in [&small, &large] {
            assert_eq!(allocations(|| m.matmul_t(&x).unwrap()), result);
        }
        // Of several matrices too, and with all that is done around it.
        let both = CandleMatrix::join(&[&large, &large]).unwrap().unwrap();
        let around = Around {
            norm: Some((&norm, 1e-5)),
            gate: Some(Gate::Silu),
            ..Around::default()
        };
        let gated = || both.matmul_t_with(&x, &around);
        assert_eq!(allocations(|| gated().unwrap()), result);
    }
    // A layer's attention out of its projections.
    let caches = || (cache.clone(), cache.clone());
    for (seen, end) in [(0, 100), (0, 900)] {
        let with = Decode {
            norms: None,
            rope: &angles,
            seen,
            end,
            mask: None,
            scale: 0.1,
        };
        let (qkv, held) = (tensor(&b, [1, 960]), caches());
        let decode = || qkv.decode_attention((held.0.clone(), held.1.clone()), &with);
        // Candle makes a list for each cache that is written.
        assert_eq!(allocations(|| decode().unwrap()), result + 2);
    }
}
