//! The K kinds: 256 elements whose groups have scales that are quantized themselves.

use half::f16;

use super::fit::{self, LANES, nearest};
use super::{half, nibbles};

const LEN: usize = 256;

/// Bytes: 16 scales (low nibble) and minima (high), 64 of 2-bit codes, `d`, `dmin`.
pub(super) fn q2_k(x: &[f32; LEN]) -> Option<[u8; 84]> {
    const STEPS: [[f32; LANES]; 2] = steps(2.5, 3.9);
    let b = affine::<16, 16>(x, 3.0, 15.0, &STEPS, |_, v| v.abs())?;
    let mut block = [0; 84];
    for ((byte, scale), min) in block.iter_mut().zip(b.scales).zip(b.minima) {
        *byte = scale | min << 4;
    }
    two_bits(&b.codes, &mut block[16..80]);
    block[80..82].copy_from_slice(&b.d.to_le_bytes());
    block[82..].copy_from_slice(&b.dmin.to_le_bytes());
    Some(block)
}

/// Bytes: 32 of third bits, 64 of 2-bit codes, 12 of 6-bit scales, `d`.
pub(super) fn q3_k(x: &[f32; LEN]) -> Option<[u8; 110]> {
    const STEPS: [[f32; LANES]; 4] = signed_steps(2.9, 4.6);
    let b = symmetric::<16, 16>(x, 4.0, 32.0, &STEPS, |_, v| v.abs())?;
    let mut block = [0; 110];
    for (i, codes) in b.codes.chunks_exact(32).enumerate() {
        for (mask, code) in block.iter_mut().zip(codes) {
            *mask |= (code >> 2) << i;
        }
    }
    two_bits(&b.codes, &mut block[32..96]);
    let packed = &mut block[96..108];
    for (i, scale) in b.scales.into_iter().enumerate() {
        let scale = (scale + 32) as u8;
        packed[i % 8] |= (scale & 15) << (i / 8 * 4);
        packed[8 + i % 4] |= (scale >> 4) << (i / 4 * 2);
    }
    block[108..].copy_from_slice(&b.d.to_le_bytes());
    Some(block)
}

/// Bytes: `d`, `dmin`, 12 of scales and minima, 128 of 4-bit codes.
pub(super) fn q4_k(x: &[f32; LEN]) -> Option<[u8; 144]> {
    const STEPS: [[f32; LANES]; 4] = steps(12.5, 16.5);
    let b = affine::<8, 32>(x, 15.0, 63.0, &STEPS, |rms, v| rms + v.abs())?;
    let mut block = [0; 144];
    block[..2].copy_from_slice(&b.d.to_le_bytes());
    block[2..4].copy_from_slice(&b.dmin.to_le_bytes());
    block[4..16].copy_from_slice(&k_scales(&b.scales, &b.minima));
    for (codes, packed) in b
        .codes
        .chunks_exact(64)
        .zip(block[16..].chunks_exact_mut(32))
    {
        nibbles(codes, packed);
    }
    Some(block)
}

/// Bytes: `d`, `dmin`, 12 of scales and minima, 32 of fifth bits, 128 of 4-bit codes.
pub(super) fn q5_k(x: &[f32; LEN]) -> Option<[u8; 176]> {
    const STEPS: [[f32; LANES]; 4] = steps(28.5, 32.0);
    let b = affine::<8, 32>(x, 31.0, 63.0, &STEPS, |rms, v| rms + v.abs())?;
    let mut block = [0; 176];
    block[..2].copy_from_slice(&b.d.to_le_bytes());
    block[2..4].copy_from_slice(&b.dmin.to_le_bytes());
    block[4..16].copy_from_slice(&k_scales(&b.scales, &b.minima));
    for (i, codes) in b.codes.chunks_exact(32).enumerate() {
        for (mask, code) in block[16..48].iter_mut().zip(codes) {
            *mask |= (code >> 4) << i;
        }
    }
    for (codes, packed) in b
        .codes
        .chunks_exact(64)
        .zip(block[48..].chunks_exact_mut(32))
    {
        nibbles(codes, packed);
    }
    Some(block)
}

/// Bytes: 128 of lower nibbles, 64 of upper bit pairs, 16 signed scales, `d`.
pub(super) fn q6_k(x: &[f32; LEN]) -> Option<[u8; 210]> {
    const STEPS: [[f32; LANES]; 4] = signed_steps(30.5, 32.5);
    let b = symmetric::<16, 16>(x, 32.0, 128.0, &STEPS, |_, v| v * v)?;
    let mut block = [0; 210];
    let (low, rest) = block.split_at_mut(128);
    let halves = low.chunks_exact_mut(64).zip(rest.chunks_exact_mut(32));
    for ((low, high), codes) in halves.zip(b.codes.chunks_exact(128)) {
        nibbles(codes, low);
        for (i, codes) in codes.chunks_exact(32).enumerate() {
            for (pair, code) in high.iter_mut().zip(codes) {
                *pair |= (code >> 4) << (2 * i);
            }
        }
    }
    for (byte, scale) in block[192..208].iter_mut().zip(b.scales) {
        *byte = scale as u8;
    }
    block[208..].copy_from_slice(&b.d.to_le_bytes());
    Some(block)
}

/// 32 bytes hold 128 2-bit codes, the lowest bits of all bytes first.
#[inline(always)]
fn two_bits(codes: &[u8; LEN], packed: &mut [u8]) {
    for (packed, codes) in packed.chunks_exact_mut(32).zip(codes.chunks_exact(128)) {
        for (i, codes) in codes.chunks_exact(32).enumerate() {
            for (byte, code) in packed.iter_mut().zip(codes) {
                *byte |= (code & 3) << (2 * i);
            }
        }
    }
}

/// Eight 6-bit scales and minima in 12 bytes: the first four of each whole, the upper two bits of
/// the others above them, their nibbles last.
#[inline(always)]
fn k_scales(scales: &[u8; 8], minima: &[u8; 8]) -> [u8; 12] {
    let mut packed = [0; 12];
    for i in 0..4 {
        let (s, m) = (scales[i + 4], minima[i + 4]);
        packed[i] = scales[i] | s >> 4 << 6;
        packed[i + 4] = minima[i] | m >> 4 << 6;
        packed[i + 8] = s & 15 | m << 4;
    }
    packed
}

/// Steps evenly from `first` to `last`.
const fn steps<const N: usize>(first: f32, last: f32) -> [[f32; LANES]; N] {
    let mut steps = [[0.0; LANES]; N];
    let count = N * LANES;
    let mut i = 0;
    while i < count {
        let part = i as f32 / (count - 1) as f32;
        steps[i / LANES][i % LANES] = first + part * (last - first);
        i += 1;
    }
    steps
}

/// As [`steps`], half of them for a farthest value with a positive code, half for the negative.
const fn signed_steps<const N: usize>(first: f32, last: f32) -> [[f32; LANES]; N] {
    let mut steps = steps(first, last);
    let count = N * LANES;
    let mut i = 1;
    while i < count {
        steps[i / LANES][i % LANES] *= -1.0;
        i += 2;
    }
    steps
}

/// `value = d · scale · code - dmin · minimum` for `G` groups.
struct Affine<const G: usize> {
    d: f16,
    dmin: f16,
    scales: [u8; G],
    minima: [u8; G],
    codes: [u8; LEN],
}

/// `value = d · scale · (code - zero)` for `G` groups.
struct Symmetric<const G: usize> {
    d: f16,
    scales: [i8; G],
    codes: [u8; LEN],
}

/// Codes `0 ..= top`, scales and minima `0 ..= top_scale`; `weight` has a group's root mean square
/// and a value.
#[inline(always)]
fn affine<const G: usize, const N: usize>(
    x: &[f32; LEN],
    top: f32,
    top_scale: f32,
    steps: &[[f32; LANES]],
    weight: impl Fn(f32, f32) -> f32,
) -> Option<Affine<G>> {
    let (groups, _) = x.as_chunks::<N>();
    let (mut scales, mut minima) = ([0.0f32; G], [0.0f32; G]);
    for ((x, scale), min) in groups.iter().zip(&mut scales).zip(&mut minima) {
        let squares: f32 = x.iter().map(|v| v * v).sum();
        let rms = (squares / N as f32).sqrt();
        (*scale, *min) = fit::affine(x, &x.map(|v| weight(rms, v)), top, steps);
    }
    let largest = |of: &[f32; G]| of.iter().fold(0.0f32, |a, &b| a.max(b));
    let d = unit(largest(&scales), top_scale)?;
    let dmin = unit(largest(&minima), top_scale)?;
    let mut b = Affine {
        d,
        dmin,
        scales: scales.map(|s| multiple(s, d, 0.0, top_scale) as u8),
        minima: minima.map(|m| multiple(m, dmin, 0.0, top_scale) as u8),
        codes: [0; LEN],
    };
    let (codes, _) = b.codes.as_chunks_mut::<N>();
    let affine = b.scales.iter().zip(&b.minima);
    for ((x, codes), (&scale, &min)) in groups.iter().zip(codes).zip(affine) {
        let inverse = reciprocal(d.to_f32() * f32::from(scale));
        let min = dmin.to_f32() * f32::from(min);
        *codes = x.map(|v| nearest(((v + min) * inverse).clamp(0.0, top)) as i32 as u8);
    }
    Some(b)
}

/// Codes `-zero ..= zero - 1`, scales `-zero_scale ..= zero_scale - 1`.
#[inline(always)]
fn symmetric<const G: usize, const N: usize>(
    x: &[f32; LEN],
    zero: f32,
    zero_scale: f32,
    steps: &[[f32; LANES]],
    weight: impl Fn(f32, f32) -> f32,
) -> Option<Symmetric<G>> {
    let (groups, _) = x.as_chunks::<N>();
    let mut scales = [0.0f32; G];
    for (x, scale) in groups.iter().zip(&mut scales) {
        let squares: f32 = x.iter().map(|v| v * v).sum();
        let rms = (squares / N as f32).sqrt();
        *scale = fit::symmetric(x, &x.map(|v| weight(rms, v)), zero, steps);
    }
    let farthest = scales
        .iter()
        .fold(0.0f32, |far, &s| if s.abs() > far.abs() { s } else { far });
    let d = unit(farthest, -zero_scale)?;
    let mut b = Symmetric {
        d,
        scales: scales.map(|s| multiple(s, d, -zero_scale, zero_scale - 1.0) as i8),
        codes: [0; LEN],
    };
    let (codes, _) = b.codes.as_chunks_mut::<N>();
    for ((x, codes), &scale) in groups.iter().zip(codes).zip(&b.scales) {
        let inverse = reciprocal(d.to_f32() * f32::from(scale));
        *codes = x.map(|v| nearest((v * inverse + zero).clamp(0.0, 2.0 * zero - 1.0)) as i32 as u8);
    }
    Some(b)
}

/// The `f16` of which `largest` is about the multiple `top`; none when it is too large.
fn unit(largest: f32, top: f32) -> Option<f16> {
    let exact = largest / top;
    let unit = half(exact)?;
    // So coarse are the smallest numbers that rounding down would leave `largest` out of reach.
    if unit.to_f32().abs() < f16::MIN_POSITIVE.to_f32() && unit.to_f32().abs() < exact.abs() {
        return Some(f16::from_bits(unit.to_bits() + 1));
    }
    Some(unit)
}

/// Which multiple of `unit` is nearest.
fn multiple(v: f32, unit: f16, low: f32, high: f32) -> i32 {
    nearest((v * reciprocal(unit.to_f32())).clamp(low, high)) as i32
}

/// The reciprocal; 0 of 0.
#[inline(always)]
fn reciprocal(v: f32) -> f32 {
    if v == 0.0 { 0.0 } else { 1.0 / v }
}
