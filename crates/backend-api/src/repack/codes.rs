use super::bad;
use super::validate::check_bits;
use crate::Result;

/// Packs codes (one a byte) into MLX's little-endian 32-bit words, lowest bits first; replaces what
/// `out` held.
///
/// Codes of 3, 5 and 6 bits run over word borders. Rows need no gaps between them: a row is always
/// a whole number of words, so any number of rows can be packed at once.
///
/// # Errors
/// [`crate::Error::Weight`] for a width MLX does not have, a code that needs more bits, or a number
/// of codes that does not fill the last word.
pub fn pack_codes(codes: &[u8], bits: u8, out: &mut Vec<u32>) -> Result<()> {
    check_bits("codes", bits)?;
    if !(codes.len() % 32 * usize::from(bits)).is_multiple_of(32) {
        return Err(bad(
            "codes",
            format!(
                "{} codes of {bits} bits do not fill whole 32-bit words",
                codes.len()
            ),
        ));
    }
    let all = codes.iter().fold(0, |all, &code| all | code);
    if u32::from(all) >> bits != 0 {
        return Err(bad("codes", format!("a code needs more than {bits} bits")));
    }
    out.clear();
    out.reserve(codes.len() / 32 * usize::from(bits) + usize::from(bits));
    match bits {
        2 => pack::<2>(codes, out),
        3 => pack::<3>(codes, out),
        4 => pack::<4>(codes, out),
        5 => pack::<5>(codes, out),
        6 => pack::<6>(codes, out),
        _ => pack::<8>(codes, out),
    }
    Ok(())
}

fn pack<const BITS: usize>(codes: &[u8], out: &mut Vec<u32>) {
    // 32 codes are a whole number of words whatever the width.
    let (blocks, rest) = codes.as_chunks::<32>();
    for block in blocks {
        let mut words = [0u32; 8];
        pack_into::<BITS>(block, &mut words);
        out.extend_from_slice(&words[..BITS]);
    }
    let mut words = [0u32; 8];
    pack_into::<BITS>(rest, &mut words);
    out.extend_from_slice(&words[..rest.len() * BITS / 32]);
}

/// At most 32 codes, into words that hold zeros.
#[inline(always)]
fn pack_into<const BITS: usize>(codes: &[u8], words: &mut [u32; 8]) {
    for (i, &code) in codes.iter().enumerate() {
        let (word, shift) = (i * BITS / 32 % 8, i * BITS % 32);
        let wide = u64::from(code) << shift;
        words[word] |= wide as u32;
        words[(word + 1) % 8] |= (wide >> 32) as u32;
    }
}

/// Unpacks the first `n` codes of MLX's little-endian 32-bit words to one a byte; replaces what
/// `out` held. `words` needs no alignment and may be longer.
///
/// # Errors
/// [`crate::Error::Weight`] for a width MLX does not have, or too few words.
pub fn unpack_codes(words: &[u8], bits: u8, n: usize, out: &mut Vec<u8>) -> Result<()> {
    check_bits("codes", bits)?;
    let needed = n
        .checked_mul(usize::from(bits))
        .map(|bits| bits.div_ceil(8))
        .filter(|&needed| needed <= words.len())
        .ok_or_else(|| {
            bad(
                "codes",
                format!("{n} codes of {bits} bits do not fit {} bytes", words.len()),
            )
        })?;
    // What is written over need not be cleared first.
    out.resize(n, 0);
    unpack_into(&words[..needed], bits, out);
    Ok(())
}

/// Fills `out` from at least `out.len() · bits` bits; a checked width.
pub(super) fn unpack_into(words: &[u8], bits: u8, out: &mut [u8]) {
    match bits {
        2 => unpack::<2>(words, out),
        3 => unpack::<3>(words, out),
        4 => unpack::<4>(words, out),
        5 => unpack::<5>(words, out),
        6 => unpack::<6>(words, out),
        _ => {
            for (code, &byte) in out.iter_mut().zip(words) {
                *code = byte;
            }
        }
    }
}

fn unpack<const BITS: usize>(words: &[u8], out: &mut [u8]) {
    // Eight codes are `BITS` whole bytes.
    let (packed, packed_rest) = words.as_chunks::<BITS>();
    let (blocks, rest) = out.as_chunks_mut::<8>();
    for (block, packed) in blocks.iter_mut().zip(packed) {
        *block = unpack_eight::<BITS>(packed);
    }
    if !rest.is_empty() {
        let mut last = [0; BITS];
        let tail = packed.get(blocks.len()).map_or(packed_rest, |p| p);
        for (to, &from) in last.iter_mut().zip(tail) {
            *to = from;
        }
        let codes = unpack_eight::<BITS>(&last);
        rest.copy_from_slice(&codes[..rest.len()]);
    }
}

#[inline(always)]
fn unpack_eight<const BITS: usize>(packed: &[u8; BITS]) -> [u8; 8] {
    let mut wide = [0; 8];
    wide[..BITS].copy_from_slice(packed);
    let wide = u64::from_le_bytes(wide);
    std::array::from_fn(|i| (wide >> (i * BITS)) as u8 & ((1 << BITS) - 1))
}
