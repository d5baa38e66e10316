//! Vectors of `f32` and integer lanes over the instruction sets we have kernels for.
//!
//! A kernel is written once, as [`Kernel::run`] over a [`Simd`] type, and [`launch`] compiles it for
//! every instruction set. Which one runs is decided once, from what the processor reports.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;

use std::sync::OnceLock;

/// Most lanes that a vector has.
pub(crate) const MAX_LANES: usize = 16;

/// An instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isa {
    /// Plain Rust, whatever the target has as its baseline.
    Portable,
    /// x86-64 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// That with AVX-VNNI: dot products of bytes.
    #[cfg(target_arch = "x86_64")]
    AvxVnni,
    /// x86-64 with AVX-512 (F, BW, DQ, VL) and AVX-512-VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// 64-bit Arm: always there.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// The best one of this machine, or the one that the environment variable `BIPLANE_CPU`
    /// (`portable`, `avx2`, `avxvnni`, `avx512`, `neon`) asks for if the machine has it.
    pub(crate) fn get() -> Isa {
        static CHOICE: OnceLock<Isa> = OnceLock::new();
        *CHOICE.get_or_init(|| {
            let available = Isa::available();
            let best = available[available.len() - 1];
            let Some(wanted) = std::env::var_os("BIPLANE_CPU") else {
                return best;
            };
            let found = available.iter().find(|isa| wanted == isa.name());
            if found.is_none() {
                tracing::warn!(
                    "BIPLANE_CPU={wanted:?} is not available here, using {}",
                    best.name()
                );
            }
            found.copied().unwrap_or(best)
        })
    }

    /// Those this machine can run, the best one last.
    pub(crate) fn available() -> &'static [Isa] {
        static AVAILABLE: OnceLock<Vec<Isa>> = OnceLock::new();
        AVAILABLE.get_or_init(|| {
            #[allow(unused_mut)]
            let mut found = vec![Isa::Portable];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
            {
                found.push(Isa::Avx2);
                if is_x86_feature_detected!("avxvnni") {
                    found.push(Isa::AvxVnni);
                }
                if is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
                {
                    found.push(Isa::Avx512);
                }
            }
            #[cfg(target_arch = "aarch64")]
            found.push(Isa::Neon);
            found
        })
    }

    /// Its name in `BIPLANE_CPU`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => "avxvnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }
}

/// Asks for a cache line that will be read soon; any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(p: *const T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint, which never faults; every x86-64 has it.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = p;
}

/// A computation over vectors.
pub(crate) trait Kernel {
    /// Whether it takes dot products of bytes ([`Simd::dot4`]).
    const BYTES: bool = false;

    /// Runs it; implementations are `#[inline(always)]`, so that they compile for the instruction
    /// set of [`launch`].
    ///
    /// # Safety
    /// The machine has `V`'s instructions.
    unsafe fn run<V: Simd>(self);
}

/// Runs a kernel with the instructions of `isa`, which must come from [`Isa`]'s functions.
#[inline]
pub(crate) fn launch<K: Kernel>(isa: Isa, kernel: K) {
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn avx2<K: Kernel>(kernel: K) {
        // SAFETY: compiled with, and only called on machines with, these instructions.
        unsafe { kernel.run::<avx2::Avx2<false>>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn avxvnni<K: Kernel>(kernel: K) {
        // SAFETY: as above.
        unsafe { kernel.run::<avx2::Avx2<true>>() }
    }
    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn avx512<K: Kernel>(kernel: K) {
        // SAFETY: as above.
        unsafe { kernel.run::<avx512::Avx512>() }
    }
    match isa {
        // SAFETY: needs no special instructions.
        Isa::Portable => unsafe { kernel.run::<portable::Portable>() },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Isa::available` gives this value only after detecting the instructions.
        Isa::Avx2 => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni if K::BYTES => unsafe { avxvnni(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::AvxVnni => unsafe { avx2(kernel) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx512 => unsafe { avx512(kernel) },
        #[cfg(target_arch = "aarch64")]
        // SAFETY: every 64-bit Arm has NEON.
        Isa::Neon => unsafe { kernel.run::<neon::Neon>() },
    }
}

/// Lanes of `f32` and of 32-bit words.
///
/// # Safety
/// Every method needs the instruction set; those with pointers need [`Simd::LANES`] elements there,
/// of any alignment.
pub(crate) trait Simd: Copy + 'static {
    /// Whether these are a processor's instructions rather than arrays.
    const HARDWARE: bool;
    /// Lanes of a vector: 8, or 16 where there are 32 registers of them.
    const LANES: usize;
    /// Floats.
    type F: Copy;
    /// Words.
    type I: Copy;

    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(p: *const f32) -> Self::F;
    unsafe fn store(p: *mut f32, x: Self::F);
    unsafe fn load_f16(p: *const u16) -> Self::F;
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Bytes without a sign as floats.
    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::F {
        let mut wide = [0.0; MAX_LANES];
        // SAFETY: the caller's contract.
        unsafe {
            for (i, wide) in wide.iter_mut().enumerate().take(Self::LANES) {
                *wide = f32::from(*p.add(i));
            }
            Self::load(wide.as_ptr())
        }
    }
    /// Bytes with a sign as floats.
    #[inline(always)]
    unsafe fn load_signed_bytes(p: *const i8) -> Self::F {
        let mut wide = [0.0; MAX_LANES];
        // SAFETY: the caller's contract.
        unsafe {
            for (i, wide) in wide.iter_mut().enumerate().take(Self::LANES) {
                *wide = f32::from(*p.add(i));
            }
            Self::load(wide.as_ptr())
        }
    }
    /// The halves of half as many bytes as floats, a byte's lower half first.
    #[inline(always)]
    unsafe fn load_nibbles(p: *const u8) -> Self::F {
        let mut wide = [0.0; MAX_LANES];
        // SAFETY: the caller's contract.
        unsafe {
            for i in 0..Self::LANES / 2 {
                let byte = *p.add(i);
                wide[2 * i] = f32::from(byte & 15);
                wide[2 * i + 1] = f32::from(byte >> 4);
            }
            Self::load(wide.as_ptr())
        }
    }
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a · b + c`; rounded once where the hardware can.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `a · b + c`, always rounded once: the same bits everywhere.
    #[inline(always)]
    unsafe fn fma_once(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: the caller's contract.
        unsafe { Self::fma(a, b, c) }
    }
    /// `if a > b { a } else { b }`: gives `b` when either is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: gives `b` when either is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// Sum of the lanes: of 16, the upper eight added to the lower, then always in the order
    /// ((0+4)+(2+6)) + ((1+5)+(3+7)).
    unsafe fn sum(a: Self::F) -> f32;
    /// [`Simd::sum`] of four vectors, bit for bit.
    #[inline(always)]
    unsafe fn sum4(a: [Self::F; 4]) -> [f32; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            [
                Self::sum(a[0]),
                Self::sum(a[1]),
                Self::sum(a[2]),
                Self::sum(a[3]),
            ]
        }
    }

    /// [`Simd::sum`] of sixteen vectors, bit for bit.
    #[inline(always)]
    unsafe fn sum16(a: [[Self::F; 4]; 4]) -> [[f32; 4]; 4] {
        // SAFETY: the caller's contract.
        unsafe {
            [
                Self::sum4(a[0]),
                Self::sum4(a[1]),
                Self::sum4(a[2]),
                Self::sum4(a[3]),
            ]
        }
    }

    /// `x · 2^n` for a normal `x` near 1, `n` given as floats and as words: whole numbers whose halves are
    /// exponents of normal numbers. Rounded once.
    #[inline(always)]
    unsafe fn scale(x: Self::F, _n: Self::F, n: Self::I) -> Self::F {
        // SAFETY: the caller's contract.
        unsafe {
            // In two steps: 2^n itself may be beyond the normal numbers.
            let half = Self::half_signed(n);
            let rest = Self::sub_words(n, half);
            let bias = Self::splat_word(127);
            let half = Self::from_bits(Self::shl(Self::add_words(half, bias), 23));
            let rest = Self::from_bits(Self::shl(Self::add_words(rest, bias), 23));
            Self::mul(Self::mul(x, half), rest)
        }
    }

    unsafe fn splat_word(x: u32) -> Self::I;
    unsafe fn load_words(p: *const u32) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// `acc + Σ codes·x` in every lane over its four bytes, those of `codes` without a sign and below
    /// 64 unless `WIDE`, those of `x` with one and not -128. No sum saturates.
    unsafe fn dot4<const WIDE: bool>(acc: Self::I, codes: Self::I, x: Self::I) -> Self::I;
    unsafe fn add_words(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn sub_words(a: Self::I, b: Self::I) -> Self::I;
    /// Logical shift right.
    unsafe fn shr(a: Self::I, bits: u32) -> Self::I;
    /// Arithmetic shift right by one.
    unsafe fn half_signed(a: Self::I) -> Self::I;
    unsafe fn shl(a: Self::I, bits: u32) -> Self::I;
    /// Signed words as floats of the same value.
    unsafe fn to_float(a: Self::I) -> Self::F;
    /// The bits of floats.
    unsafe fn to_bits(a: Self::F) -> Self::I;
    /// Floats of these bits.
    unsafe fn from_bits(a: Self::I) -> Self::F;
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sums<'a>(
        &'a [f32; 16 * MAX_LANES],
        &'a mut [[f32; 4]; 4],
        &'a mut [f32; 16],
    );

    impl Kernel for Sums<'_> {
        #[inline(always)]
        unsafe fn run<V: Simd>(self) {
            // SAFETY: sixteen vectors.
            unsafe {
                let mut all = [[V::splat(0.0); 4]; 4];
                for i in 0..16 {
                    let vector = V::load(self.0.as_ptr().add(i * MAX_LANES));
                    all[i / 4][i % 4] = vector;
                    self.2[i] = V::sum(vector);
                }
                *self.1 = V::sum16(all);
            }
        }
    }

    #[test]
    fn sums_of_sixteen_vectors_are_those_of_each() {
        // Values whose sum depends on the order.
        let x = std::array::from_fn(|i| ((i * 7919 % 1009) as f32).powi(3) * 1e-3 - 1e5);
        for &isa in Isa::available() {
            let (mut together, mut each) = ([[0.0; 4]; 4], [0.0; 16]);
            launch(isa, Sums(&x, &mut together, &mut each));
            assert_eq!(together.as_flattened(), each, "{isa:?}");
        }
    }
}
