use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::DType;

/// Little-endian `F32`, `F16` or `BF16` elements to `f32`, bit-exact; `bytes` needs no alignment and
/// holds at least `out.len()` elements.
pub(super) fn to_f32s(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        DType::F16 => f16s(bytes, out),
        DType::BF16 => {
            let (halves, _) = bytes.as_chunks::<2>();
            for (to, &from) in out.iter_mut().zip(halves) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(from)) << 16);
            }
        }
        _ => {
            let (singles, _) = bytes.as_chunks::<4>();
            for (to, &from) in out.iter_mut().zip(singles) {
                *to = f32::from_le_bytes(from);
            }
        }
    }
}

fn f16s(bytes: &[u8], out: &mut [f32]) {
    // A short aligned copy lets `half` convert with the processor's instructions.
    let mut aligned = [f16::ZERO; 64];
    let (halves, _) = bytes.as_chunks::<2>();
    for (to, from) in out.chunks_mut(64).zip(halves.chunks(64)) {
        for (a, &b) in aligned.iter_mut().zip(from) {
            *a = f16::from_le_bytes(b);
        }
        aligned[..to.len()].convert_to_f32_slice(to);
    }
}
