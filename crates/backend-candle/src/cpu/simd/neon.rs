use std::arch::aarch64::*;

use half::f16;

use super::Simd;

const LANES: usize = 8;

/// NEON: two registers of four lanes.
#[derive(Clone, Copy)]
pub(super) struct Neon;

type F = [float32x4_t; 2];
type I = [uint32x4_t; 2];

// SAFETY of all bodies: NEON is part of 64-bit Arm's baseline, and the trait's contract is that
// pointers are good for eight elements.
#[allow(clippy::undocumented_unsafe_blocks)]
impl Simd for Neon {
    const HARDWARE: bool = true;
    const LANES: usize = LANES;
    type F = F;
    type I = I;

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        unsafe { [vdupq_n_f32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> F {
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, x: F) {
        unsafe {
            vst1q_f32(p, x[0]);
            vst1q_f32(p.add(4), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> F {
        // The conversion intrinsics are not stable in Rust; `half` uses the instruction by assembly.
        unsafe {
            let bits = p.cast::<[u16; LANES]>().read_unaligned();
            let wide = bits.map(|b| f16::from_bits(b).to_f32());
            Self::load(wide.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> F {
        unsafe {
            let bits = vld1q_u16(p);
            [
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(bits))),
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_high_u16(bits))),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        unsafe { [vaddq_f32(a[0], b[0]), vaddq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        unsafe { [vsubq_f32(a[0], b[0]), vsubq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        unsafe { [vmulq_f32(a[0], b[0]), vmulq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        unsafe { [vdivq_f32(a[0], b[0]), vdivq_f32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        unsafe { [vfmaq_f32(c[0], a[0], b[0]), vfmaq_f32(c[1], a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        // Not `vmaxq_f32`, which gives NaN when either is.
        unsafe {
            [
                vbslq_f32(vcgtq_f32(a[0], b[0]), a[0], b[0]),
                vbslq_f32(vcgtq_f32(a[1], b[1]), a[1], b[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        unsafe {
            [
                vbslq_f32(vcltq_f32(a[0], b[0]), a[0], b[0]),
                vbslq_f32(vcltq_f32(a[1], b[1]), a[1], b[1]),
            ]
        }
    }
    #[inline(always)]
    unsafe fn sum(a: F) -> f32 {
        unsafe {
            let four = vaddq_f32(a[0], a[1]);
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }

    #[inline(always)]
    unsafe fn splat_word(x: u32) -> I {
        unsafe { [vdupq_n_u32(x); 2] }
    }
    #[inline(always)]
    unsafe fn load_words(p: *const u32) -> I {
        unsafe { [vld1q_u32(p), vld1q_u32(p.add(4))] }
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        unsafe { [vandq_u32(a[0], b[0]), vandq_u32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        unsafe { [vorrq_u32(a[0], b[0]), vorrq_u32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn dot4<const WIDE: bool>(acc: I, codes: I, x: I) -> I {
        unsafe {
            [
                vaddq_u32(acc[0], dot4::<WIDE>(codes[0], x[0])),
                vaddq_u32(acc[1], dot4::<WIDE>(codes[1], x[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn add_words(a: I, b: I) -> I {
        unsafe { [vaddq_u32(a[0], b[0]), vaddq_u32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub_words(a: I, b: I) -> I {
        unsafe { [vsubq_u32(a[0], b[0]), vsubq_u32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn shr(a: I, bits: u32) -> I {
        unsafe {
            let by = vdupq_n_s32(-(bits as i32));
            [vshlq_u32(a[0], by), vshlq_u32(a[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn half_signed(a: I) -> I {
        unsafe { a.map(|x| vreinterpretq_u32_s32(vshrq_n_s32::<1>(vreinterpretq_s32_u32(x)))) }
    }
    #[inline(always)]
    unsafe fn shl(a: I, bits: u32) -> I {
        unsafe {
            let by = vdupq_n_s32(bits as i32);
            [vshlq_u32(a[0], by), vshlq_u32(a[1], by)]
        }
    }
    #[inline(always)]
    unsafe fn to_float(a: I) -> F {
        unsafe {
            [
                vcvtq_f32_s32(vreinterpretq_s32_u32(a[0])),
                vcvtq_f32_s32(vreinterpretq_s32_u32(a[1])),
            ]
        }
    }
    #[inline(always)]
    unsafe fn to_bits(a: F) -> I {
        unsafe { [vreinterpretq_u32_f32(a[0]), vreinterpretq_u32_f32(a[1])] }
    }
    #[inline(always)]
    unsafe fn from_bits(a: I) -> F {
        unsafe { [vreinterpretq_f32_u32(a[0]), vreinterpretq_f32_u32(a[1])] }
    }
}

/// `Σ codes·x` over the four bytes of every lane.
#[inline(always)]
unsafe fn dot4<const WIDE: bool>(codes: uint32x4_t, x: uint32x4_t) -> uint32x4_t {
    // SAFETY: NEON is part of the baseline.
    unsafe {
        let codes = vreinterpretq_u8_u32(codes);
        let x = vreinterpretq_s8_u32(x);
        let (low, high) = if WIDE {
            let (x_low, x_high) = (vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x)));
            let w_low = vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(codes)));
            let w_high = vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(codes)));
            (pairs(w_low, x_low), pairs(w_high, x_high))
        } else {
            let w = vreinterpretq_s8_u8(codes);
            (
                vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(x))),
                vpaddlq_s16(vmull_s8(vget_high_s8(w), vget_high_s8(x))),
            )
        };
        vreinterpretq_u32_s32(vpaddq_s32(low, high))
    }
}

/// Sums of neighbouring products.
#[inline(always)]
unsafe fn pairs(a: int16x8_t, b: int16x8_t) -> int32x4_t {
    // SAFETY: NEON is part of the baseline.
    unsafe {
        vpaddq_s32(
            vmull_s16(vget_low_s16(a), vget_low_s16(b)),
            vmull_s16(vget_high_s16(a), vget_high_s16(b)),
        )
    }
}
