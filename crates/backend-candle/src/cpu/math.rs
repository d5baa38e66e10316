use super::simd::{MAX_LANES, Simd};

/// `e^x`, within 2 units in the last place, of every lane.
///
/// Below about -104 it is 0, above 88.73 infinity; NaN stays NaN. The method is the usual one
/// (Cephes' `expf`): `x = n·ln 2 + r`, a polynomial in `r`, and [`Simd::scale`].
#[inline(always)]
pub(super) unsafe fn exp<V: Simd>(x: V::F) -> V::F {
    /// Added to a float below 2^22, it leaves the nearest whole number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const POLYNOMIAL: [f32; 6] = [
        1.987_569_1e-4,
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ];
    // SAFETY: the caller's contract.
    unsafe {
        let x = V::min(V::splat(89.0), V::max(V::splat(-104.0), x));
        let rounded = V::fma(x, V::splat(std::f32::consts::LOG2_E), V::splat(ROUND));
        let n = V::sub_words(V::to_bits(rounded), V::splat_word(ROUND.to_bits()));
        let whole = V::sub(rounded, V::splat(ROUND));
        let r = V::fma(whole, V::splat(-LN2_HIGH), x);
        let r = V::fma(whole, V::splat(-LN2_LOW), r);
        let mut p = V::splat(POLYNOMIAL[0]);
        for c in &POLYNOMIAL[1..] {
            p = V::fma(p, r, V::splat(*c));
        }
        let p = V::add(V::fma(p, V::mul(r, r), r), V::splat(1.0));
        V::scale(p, whole, n)
    }
}

/// Up to a vector of elements, the missing ones `fill`.
#[inline(always)]
pub(super) unsafe fn load_part<V: Simd>(x: &[f32], fill: f32) -> V::F {
    let mut all = [fill; MAX_LANES];
    all[..x.len()].copy_from_slice(x);
    // SAFETY: as many elements as a vector may have.
    unsafe { V::load(all.as_ptr()) }
}

/// The first lanes, as many as `out` has.
#[inline(always)]
pub(super) unsafe fn store_part<V: Simd>(out: &mut [f32], x: V::F) {
    let mut all = [0.0; MAX_LANES];
    // SAFETY: as many elements as a vector may have.
    unsafe { V::store(all.as_mut_ptr(), x) };
    out.copy_from_slice(&all[..out.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Isa, Kernel, launch};

    struct Exp<'a>([f32; MAX_LANES], &'a mut [f32; MAX_LANES]);

    impl Kernel for Exp<'_> {
        #[inline(always)]
        unsafe fn run<V: Simd>(self) {
            for at in (0..MAX_LANES).step_by(V::LANES) {
                // SAFETY: a vector's elements each.
                unsafe {
                    let x = V::load(self.0.as_ptr().add(at));
                    V::store(self.1.as_mut_ptr().add(at), exp::<V>(x));
                }
            }
        }
    }

    fn exp_of(isa: Isa, x: [f32; MAX_LANES]) -> [f32; MAX_LANES] {
        let mut out = [0.0; MAX_LANES];
        launch(isa, Exp(x, &mut out));
        out
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for &isa in Isa::available() {
            let mut worst = 0.0f64;
            for i in 0..20_000 {
                let x: [f32; MAX_LANES] = std::array::from_fn(|l| {
                    -87.3 + (i * MAX_LANES + l) as f32 * (176.0 / 320_000.0)
                });
                for (x, got) in x.into_iter().zip(exp_of(isa, x)) {
                    let want = f64::from(x).exp();
                    let ulp = f64::from((want as f32).next_up()) - f64::from(want as f32);
                    worst = worst.max((f64::from(got) - want).abs() / ulp);
                }
            }
            assert!(worst < 2.0, "{isa:?}: {worst}");
        }
    }

    #[test]
    fn exp_at_the_ends() {
        for &isa in Isa::available() {
            let inf = f32::INFINITY;
            let mut x = [0.0; MAX_LANES];
            x[..8].copy_from_slice(&[f32::NAN, inf, -inf, 0.0, -0.0, 89.0, -104.0, 88.7]);
            let got = exp_of(isa, x);
            assert!(got[0].is_nan() && got[7].is_finite());
            assert_eq!(got[1..7], [inf, 0.0, 1.0, 1.0, inf, 0.0]);
            let small = exp_of(isa, [-90.0; MAX_LANES])[0];
            assert!((small - (-90f32).exp()).abs() < 1e-43, "{small:e}");
        }
    }
}
