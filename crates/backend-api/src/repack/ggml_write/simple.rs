//! The kinds of 32 elements: scale and minimum follow from the extremes. The order of operations is
//! that of llama.cpp's reference, for the same bits.

use super::{half, nibbles};

const LEN: usize = 32;

pub(super) fn q4_0(x: &[f32; LEN]) -> Option<[u8; 18]> {
    let mut block = [0; 18];
    let (d, codes) = symmetric::<16>(x);
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    nibbles(&codes, &mut block[2..]);
    Some(block)
}

pub(super) fn q4_1(x: &[f32; LEN]) -> Option<[u8; 20]> {
    let mut block = [0; 20];
    let (d, low, codes) = affine::<16>(x);
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..4].copy_from_slice(&half(low)?.to_le_bytes());
    nibbles(&codes, &mut block[4..]);
    Some(block)
}

pub(super) fn q5_0(x: &[f32; LEN]) -> Option<[u8; 22]> {
    let mut block = [0; 22];
    let (d, codes) = symmetric::<32>(x);
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..6].copy_from_slice(&fifth_bits(&codes));
    nibbles(&codes, &mut block[6..]);
    Some(block)
}

pub(super) fn q5_1(x: &[f32; LEN]) -> Option<[u8; 24]> {
    let mut block = [0; 24];
    let (d, low, codes) = affine::<32>(x);
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    block[2..4].copy_from_slice(&half(low)?.to_le_bytes());
    block[4..8].copy_from_slice(&fifth_bits(&codes));
    nibbles(&codes, &mut block[8..]);
    Some(block)
}

pub(super) fn q8_0(x: &[f32; LEN]) -> Option<[u8; 34]> {
    let mut block = [0; 34];
    let largest = x.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let d = largest / 127.0;
    let inverse = inverse(d);
    block[..2].copy_from_slice(&half(d)?.to_le_bytes());
    for (byte, v) in block[2..].iter_mut().zip(x) {
        *byte = round_half_away(v * inverse) as u8;
    }
    Some(block)
}

/// Scale and codes where code `LEVELS / 2` is zero and the value farthest from zero has code 0.
#[inline(always)]
fn symmetric<const LEVELS: u16>(x: &[f32; LEN]) -> (f32, [u8; LEN]) {
    let mut farthest = 0.0f32;
    for &v in x {
        if v.abs() > farthest.abs() {
            farthest = v;
        }
    }
    let zero = f32::from(LEVELS / 2);
    let d = farthest / -zero;
    let inverse = inverse(d);
    (d, x.map(|v| code::<LEVELS>(v * inverse + (zero + 0.5))))
}

/// Scale, minimum and codes, which span the smallest to the largest value.
#[inline(always)]
fn affine<const LEVELS: u16>(x: &[f32; LEN]) -> (f32, f32, [u8; LEN]) {
    let (mut low, mut high) = (f32::INFINITY, f32::NEG_INFINITY);
    for &v in x {
        // Not `f32::min`: of two zeros the first must win.
        if v < low {
            low = v;
        }
        if v > high {
            high = v;
        }
    }
    let d = (high - low) / f32::from(LEVELS - 1);
    let inverse = inverse(d);
    let codes = x.map(|v| code::<LEVELS>((v - low) * inverse + 0.5));
    (d, low, codes)
}

/// The reciprocal; 0 where there is none.
#[inline(always)]
fn inverse(d: f32) -> f32 {
    let inverse = 1.0 / d;
    if inverse.is_finite() { inverse } else { 0.0 }
}

/// The integer part of a number that is not negative, as a code.
#[inline(always)]
fn code<const LEVELS: u16>(at: f32) -> u8 {
    (at as i32).min(i32::from(LEVELS) - 1) as u8
}

/// To the nearest integer, halves away from zero; for at most 2^22 in magnitude.
///
/// `f32::round` is a function call on the baseline of x86-64, and adding 0.5 rounds 0.49999997 up.
#[inline(always)]
fn round_half_away(v: f32) -> i32 {
    let magnitude = v.abs();
    let even = super::fit::nearest(magnitude);
    let up = if magnitude - even == 0.5 { 1.0 } else { 0.0 };
    (even + up).copysign(v) as i32
}

/// Bit 4 of code `i` as bit `i`.
#[inline(always)]
fn fifth_bits(codes: &[u8; LEN]) -> [u8; 4] {
    let mut mask = [0; 4];
    for (byte, codes) in mask.iter_mut().zip(codes.chunks_exact(8)) {
        for (i, code) in codes.iter().enumerate() {
            *byte |= (code >> 4 & 1) << i;
        }
    }
    mask
}
