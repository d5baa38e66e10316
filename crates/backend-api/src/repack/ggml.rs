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
fn half_bits<const AT: usize, const BYTES: usize>(b: &[u8; BYTES]) -> f16 {
    f16::from_le_bytes([b[AT], b[AT + 1]])
}

/// Its value.
#[inline(always)]
fn half_at<const AT: usize, const BYTES: usize>(b: &[u8; BYTES]) -> f32 {
    half_bits::<AT, BYTES>(b).to_f32()
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

/// How a block of 256 codes gives its groups' scales and biases: `d · scales[i]` and `-(dmin · mins[i])`, exact
/// in `f32`. A kind without minima has biases by its zero point.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KScales {
    /// What the scales are multiples of.
    pub d: f16,
    /// What the minima are multiples of.
    pub dmin: f16,
    /// One a group.
    pub scales: [i8; 16],
    /// One a group.
    pub mins: [i8; 16],
}

/// The scales of a block of one of the K kinds; `None` for another kind or number of bytes.
pub fn k_scales(kind: GgmlKind, block: &[u8]) -> Option<KScales> {
    Some(match kind {
        GgmlKind::Q2K => q2_k_scales(block.try_into().ok()?),
        GgmlKind::Q3K => q3_k_scales(block.try_into().ok()?),
        GgmlKind::Q4K => {
            let block: &[u8; 144] = block.try_into().ok()?;
            packed_scales(block)
        }
        GgmlKind::Q5K => {
            let block: &[u8; 176] = block.try_into().ok()?;
            packed_scales(block)
        }
        GgmlKind::Q6K => q6_k_scales(block.try_into().ok()?),
        _ => return None,
    })
}

impl KScales {
    /// Writes a block's scales, and the biases by its minima or its zero point.
    #[inline(always)]
    fn write(&self, zero_point: u8, scales: &mut [f32], biases: &mut [f32]) {
        let (d, dmin) = (self.d.to_f32(), self.dmin.to_f32());
        let parts = self.scales.iter().zip(&self.mins);
        for ((scale, bias), (&s, &m)) in scales.iter_mut().zip(biases).zip(parts) {
            *scale = d * f32::from(s);
            *bias = match zero_point {
                0 => -(dmin * f32::from(m)),
                zero => -f32::from(zero) * *scale,
            };
        }
    }
}

/// Bytes: 16 scales (low nibble) and minima (high), 64 of 2-bit codes, `d`, `dmin`.
fn q2_k(b: &[u8; 84], out: Block<'_, 256, 16>) {
    q2_k_scales(b).write(0, out.scales, out.biases);
    two_bits(&b[16..80], out.codes);
}

fn q2_k_scales(b: &[u8; 84]) -> KScales {
    KScales {
        d: half_bits::<80, 84>(b),
        dmin: half_bits::<82, 84>(b),
        scales: std::array::from_fn(|i| (b[i] & 15) as i8),
        mins: std::array::from_fn(|i| (b[i] >> 4) as i8),
    }
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
    q3_k_scales(b).write(4, out.scales, out.biases);
    two_bits(&b[32..96], out.codes);
    for (i, codes) in out.codes.chunks_exact_mut(32).enumerate() {
        for (code, &mask) in codes.iter_mut().zip(&b[..32]) {
            *code |= (mask >> i & 1) << 2;
        }
    }
}

fn q3_k_scales(b: &[u8; 110]) -> KScales {
    let packed = &b[96..108];
    let scale = |i: usize| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let high = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    };
    KScales {
        d: half_bits::<108, 110>(b),
        scales: std::array::from_fn(scale),
        ..KScales::default()
    }
}

/// `d`, `dmin`, and eight 6-bit scales and minima in 12 bytes: the first four of each lie whole in bytes
/// 0..8, whose upper two bits complete the nibbles of bytes 8..12.
#[inline(always)]
fn packed_scales<const BYTES: usize>(b: &[u8; BYTES]) -> KScales {
    let mut all = KScales {
        d: half_bits::<0, BYTES>(b),
        dmin: half_bits::<2, BYTES>(b),
        ..KScales::default()
    };
    for i in 0..4 {
        let (s, m, both) = (b[4 + i], b[8 + i], b[12 + i]);
        all.scales[i] = (s & 63) as i8;
        all.mins[i] = (m & 63) as i8;
        all.scales[i + 4] = (both & 15 | s >> 6 << 4) as i8;
        all.mins[i + 4] = (both >> 4 | m >> 6 << 4) as i8;
    }
    all
}

/// Bytes: `d`, `dmin`, 12 of scales and minima, 128 of 4-bit codes.
fn q4_k(b: &[u8; 144], out: Block<'_, 256, 8>) {
    packed_scales(b).write(0, out.scales, out.biases);
    for (packed, codes) in b[16..].chunks_exact(32).zip(out.codes.chunks_exact_mut(64)) {
        nibbles(packed, codes);
    }
}

/// Bytes: `d`, `dmin`, 12 of scales and minima, 32 of fifth bits, 128 of 4-bit codes.
fn q5_k(b: &[u8; 176], out: Block<'_, 256, 8>) {
    packed_scales(b).write(0, out.scales, out.biases);
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
    q6_k_scales(b).write(32, out.scales, out.biases);
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

fn q6_k_scales(b: &[u8; 210]) -> KScales {
    KScales {
        d: half_bits::<208, 210>(b),
        scales: std::array::from_fn(|i| b[192 + i] as i8),
        ..KScales::default()
    }
}
