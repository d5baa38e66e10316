//! GGML's blocks (ggml-common.h of llama.cpp) read as canonical form.

use half::f16;

use super::CanonicalRows;
use crate::GgmlKind;

/// Reads as many blocks as `out` has room for.
pub(super) fn read_blocks(kind: GgmlKind, blocks: &[u8], out: &mut CanonicalRows) {
    match kind {
        GgmlKind::Q4_0 => each(blocks, out, q4_0),
        GgmlKind::Q4_1 => each(blocks, out, q4_1),
        GgmlKind::Q5_0 => each(blocks, out, q5_0),
        GgmlKind::Q5_1 => each(blocks, out, q5_1),
        GgmlKind::Q8_0 => each(blocks, out, q8_0),
        GgmlKind::Q2K => each(blocks, out, q2_k),
        GgmlKind::Q3K => each(blocks, out, q3_k),
        GgmlKind::Q4K => each(blocks, out, q4_k),
        GgmlKind::Q5K => each(blocks, out, q5_k),
        GgmlKind::Q6K => each(blocks, out, q6_k),
    }
}

/// One block in canonical form: `N` codes in `G` groups.
struct Block<'a, const N: usize, const G: usize> {
    codes: &'a mut [u8; N],
    scales: &'a mut [f32; G],
    biases: &'a mut [f32; G],
}

#[inline(always)]
fn each<const BYTES: usize, const N: usize, const G: usize>(
    blocks: &[u8],
    out: &mut CanonicalRows,
    read: impl Fn(&[u8; BYTES], Block<'_, N, G>),
) {
    let (blocks, _) = blocks.as_chunks::<BYTES>();
    let (codes, _) = out.codes.as_chunks_mut::<N>();
    let (scales, _) = out.scales.as_chunks_mut::<G>();
    let (biases, _) = out.biases.as_chunks_mut::<G>();
    for (((block, codes), scales), biases) in blocks.iter().zip(codes).zip(scales).zip(biases) {
        read(
            block,
            Block {
                codes,
                scales,
                biases,
            },
        );
    }
}

/// The `f16` at byte `AT`.
#[inline(always)]
fn half_at<const AT: usize, const BYTES: usize>(b: &[u8; BYTES]) -> f32 {
    f16::from_le_bytes([b[AT], b[AT + 1]]).to_f32()
}

/// The lower nibbles of `packed` into the first half of `codes`, the upper into the second.
#[inline(always)]
fn nibbles(packed: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(packed.len());
    for ((low, high), &byte) in low.iter_mut().zip(high).zip(packed) {
        *low = byte & 15;
        *high = byte >> 4;
    }
}

/// Sets bit 4 of code `i` to bit `i` of the mask.
#[inline(always)]
fn fifth_bits(mask: &[u8], codes: &mut [u8; 32]) {
    for (codes, &mask) in codes.chunks_exact_mut(8).zip(mask) {
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= (mask >> i & 1) << 4;
        }
    }
}

fn q4_0(b: &[u8; 18], out: Block<'_, 32, 1>) {
    let d = half_at::<0, 18>(b);
    nibbles(&b[2..], out.codes);
    *out.scales = [d];
    *out.biases = [-8.0 * d];
}

fn q4_1(b: &[u8; 20], out: Block<'_, 32, 1>) {
    nibbles(&b[4..], out.codes);
    *out.scales = [half_at::<0, 20>(b)];
    *out.biases = [half_at::<2, 20>(b)];
}

fn q5_0(b: &[u8; 22], out: Block<'_, 32, 1>) {
    let d = half_at::<0, 22>(b);
    nibbles(&b[6..], out.codes);
    fifth_bits(&b[2..6], out.codes);
    *out.scales = [d];
    *out.biases = [-16.0 * d];
}

fn q5_1(b: &[u8; 24], out: Block<'_, 32, 1>) {
    nibbles(&b[8..], out.codes);
    fifth_bits(&b[4..8], out.codes);
    *out.scales = [half_at::<0, 24>(b)];
    *out.biases = [half_at::<2, 24>(b)];
}

fn q8_0(b: &[u8; 34], out: Block<'_, 32, 1>) {
    let d = half_at::<0, 34>(b);
    for (code, &byte) in out.codes.iter_mut().zip(&b[2..]) {
        // Signed to unsigned: adds 128.
        *code = byte ^ 0x80;
    }
    *out.scales = [d];
    *out.biases = [-128.0 * d];
}

/// Bytes: 16 scales (low nibble) and minima (high), 64 of 2-bit codes, `d`, `dmin`.
fn q2_k(b: &[u8; 84], out: Block<'_, 256, 16>) {
    let (d, dmin) = (half_at::<80, 84>(b), half_at::<82, 84>(b));
    for (i, &scale) in b[..16].iter().enumerate() {
        out.scales[i] = d * f32::from(scale & 15);
        out.biases[i] = -(dmin * f32::from(scale >> 4));
    }
    two_bits(&b[16..80], out.codes);
}

/// 32 bytes hold 128 2-bit codes: the lowest bits of all bytes first.
#[inline(always)]
fn two_bits(packed: &[u8], codes: &mut [u8; 256]) {
    for (packed, codes) in packed.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, &byte) in codes.iter_mut().zip(packed) {
                *code = byte >> (2 * i) & 3;
            }
        }
    }
}

/// Bytes: 32 of third bits, 64 of 2-bit codes, 12 of 6-bit scales, `d`.
fn q3_k(b: &[u8; 110], out: Block<'_, 256, 16>) {
    let d = half_at::<108, 110>(b);
    let packed = &b[96..108];
    for i in 0..16 {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        let scale = d * (f32::from(low | high << 4) - 32.0);
        out.scales[i] = scale;
        out.biases[i] = -4.0 * scale;
    }
    two_bits(&b[32..96], out.codes);
    for (i, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, &mask) in codes.iter_mut().zip(&b[..32]) {
            *code |= (mask >> i & 1) << 2;
        }
    }
}

/// Eight 6-bit scales and minima in 12 bytes: the first four of each lie whole in bytes 0..8, whose
/// upper two bits complete the nibbles of bytes 8..12.
#[inline(always)]
fn k_scales(d: f32, dmin: f32, packed: &[u8], scales: &mut [f32; 8], biases: &mut [f32; 8]) {
    for i in 0..4 {
        let (s, m, both) = (packed[i], packed[i + 4], packed[i + 8]);
        scales[i] = d * f32::from(s & 63);
        biases[i] = -(dmin * f32::from(m & 63));
        scales[i + 4] = d * f32::from(both & 15 | s >> 6 << 4);
        biases[i + 4] = -(dmin * f32::from(both >> 4 | m >> 6 << 4));
    }
}

/// Bytes: `d`, `dmin`, 12 of scales and minima, 128 of 4-bit codes.
fn q4_k(b: &[u8; 144], out: Block<'_, 256, 8>) {
    let (d, dmin) = (half_at::<0, 144>(b), half_at::<2, 144>(b));
    k_scales(d, dmin, &b[4..16], out.scales, out.biases);
    for (packed, codes) in b[16..].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        nibbles(packed, codes);
    }
}

/// Bytes: `d`, `dmin`, 12 of scales and minima, 32 of fifth bits, 128 of 4-bit codes.
fn q5_k(b: &[u8; 176], out: Block<'_, 256, 8>) {
    let (d, dmin) = (half_at::<0, 176>(b), half_at::<2, 176>(b));
    k_scales(d, dmin, &b[4..16], out.scales, out.biases);
    for (packed, codes) in b[48..].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        nibbles(packed, codes);
    }
    for (i, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, &mask) in codes.iter_mut().zip(&b[16..48]) {
            *code |= (mask >> i & 1) << 4;
        }
    }
}

/// Bytes: 128 of lower nibbles, 64 of upper bit pairs, 16 signed scales, `d`.
fn q6_k(b: &[u8; 210], out: Block<'_, 256, 16>) {
    let d = half_at::<208, 210>(b);
    for (i, &scale) in b[192..208].iter().enumerate() {
        let scale = d * f32::from(scale as i8);
        out.scales[i] = scale;
        out.biases[i] = -32.0 * scale;
    }
    let halves = b[..128].chunks_exact(64).zip(b[128..192].chunks_exact(32));
    for ((low, high), codes) in halves.zip(out.codes.chunks_exact_mut(128)) {
        nibbles(low, codes);
        for (i, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (code, &pair) in codes.iter_mut().zip(high) {
                *code |= (pair >> (2 * i) & 3) << 4;
            }
        }
    }
}
