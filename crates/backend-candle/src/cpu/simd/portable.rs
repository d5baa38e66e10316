use std::array::from_fn;

use half::f16;

use super::Simd;

const LANES: usize = 8;

/// Arrays of eight; the compiler vectorizes them as far as the target's baseline allows.
#[derive(Clone, Copy)]
pub(super) struct Portable;

type F = [f32; LANES];
type I = [u32; LANES];

impl Simd for Portable {
    const HARDWARE: bool = false;
    const LANES: usize = LANES;
    type F = F;
    type I = I;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<F>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<F>().write_unaligned(x) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        // SAFETY: the caller's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f16::from_bits(b).to_f32())
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        // SAFETY: the caller's contract.
        let bits = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        bits.map(|b| f32::from_bits(u32::from(b) << 16))
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        from_fn(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        // Without the instruction `mul_add` is a slow library call.
        from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn fma_once(a: F, b: F, c: F) -> F {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        from_fn(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]))
    }

    #[inline(always)]
    unsafe fn splat_word(x: u32) -> I {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> I {
        // SAFETY: the caller's contract.
        unsafe { p.cast::<I>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn dot4<const WIDE: bool>(acc: I, codes: I, x: I) -> I {
        from_fn(|i| {
            let (w, x) = (codes[i].to_le_bytes(), x[i].to_le_bytes());
            let product = |b: usize| i32::from(w[b]) * i32::from(x[b] as i8);
            let sum = product(0) + product(1) + product(2) + product(3);
            acc[i].wrapping_add(sum as u32)
        })
    }
    #[inline(always)]
    unsafe fn add_words(a: I, b: I) -> I {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    unsafe fn sub_words(a: I, b: I) -> I {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    unsafe fn shr(a: I, bits: u32) -> I {
        a.map(|x| x >> bits)
    }
    #[inline(always)]
    unsafe fn half_signed(a: I) -> I {
        a.map(|x| ((x as i32) >> 1) as u32)
    }
    #[inline(always)]
    unsafe fn shl(a: I, bits: u32) -> I {
        a.map(|x| x << bits)
    }
    #[inline(always)]
    unsafe fn to_float(a: I) -> F {
        a.map(|x| x as i32 as f32)
    }
    #[inline(always)]
    unsafe fn to_bits(a: F) -> I {
        a.map(f32::to_bits)
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        a.map(f32::from_bits)
    }
}
