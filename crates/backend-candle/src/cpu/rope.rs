use super::{Strided, for_row_chunks};

/// Rotary position embedding (Su et al. 2021): the first `2 · freqs` elements of every head turn,
/// the rest pass. `cos` and `sin` are `[tokens, freqs]`; `out` is `[tokens, heads, head_dim]`.
///
/// Pairs are neighbours if `interleaved` (GPT-J), else `(i, i + freqs)` (GPT-NeoX).
///
/// # Panics
/// When a slice is shorter than its shape says or the angles cover more than a head.
#[allow(clippy::too_many_arguments)]
pub fn rope(
    x: Strided<'_>,
    tokens: usize,
    heads: usize,
    head_dim: usize,
    cos: &[f32],
    sin: &[f32],
    freqs: usize,
    interleaved: bool,
    out: &mut [f32],
) {
    assert!(2 * freqs <= head_dim, "the angles cover more than a head");
    assert_eq!(
        out.len(),
        tokens * heads * head_dim,
        "out is [tokens, heads, head_dim]"
    );
    let row = heads * head_dim;
    for_row_chunks(out, row, row, |first, out| {
        for (i, out) in out.chunks_exact_mut(row).enumerate() {
            let token = first + i;
            let cos = &cos[token * freqs..][..freqs];
            let sin = &sin[token * freqs..][..freqs];
            for (head, out) in out.chunks_exact_mut(head_dim).enumerate() {
                turn(x.row(head, token, head_dim), cos, sin, interleaved, out);
            }
        }
    });
}

/// One head of one token.
#[inline]
fn turn(x: &[f32], cos: &[f32], sin: &[f32], interleaved: bool, out: &mut [f32]) {
    let (turned, passed) = x.split_at(2 * cos.len());
    let (out, out_passed) = out.split_at_mut(2 * cos.len());
    out_passed.copy_from_slice(passed);
    let angles = cos.iter().zip(sin);
    if interleaved {
        let pairs = turned.chunks_exact(2).zip(out.chunks_exact_mut(2));
        for ((x, out), (c, s)) in pairs.zip(angles) {
            out[0] = x[0] * c - x[1] * s;
            out[1] = x[1] * c + x[0] * s;
        }
    } else {
        let (a, b) = turned.split_at(cos.len());
        let (first, second) = out.split_at_mut(cos.len());
        for (((a, b), (first, second)), (c, s)) in a
            .iter()
            .zip(b)
            .zip(first.iter_mut().zip(second))
            .zip(angles)
        {
            *first = a * c - b * s;
            *second = b * c + a * s;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_turn_by_their_angle_and_the_rest_passes() {
        let (tokens, heads, d) = (70, 9, 24);
        // Head-major with gaps, as a projection's slice may be.
        let (head_stride, token_stride) = (tokens * 30 + 5, 30);
        let data: Vec<f32> = (0..heads * head_stride)
            .map(|i| (i % 101) as f32 * 0.1 - 5.0)
            .collect();
        let x = Strided {
            data: &data,
            head_stride,
            token_stride,
        };
        for (freqs, interleaved) in [(12, false), (12, true), (5, false), (5, true), (0, false)] {
            let angle = |t: usize, f: usize| t as f32 * 0.37 / (f + 1) as f32;
            let angles = (0..tokens * freqs).map(|i| angle(i / freqs, i % freqs));
            let (sin, cos): (Vec<f32>, Vec<f32>) = angles.map(f32::sin_cos).unzip();
            let mut out = vec![0.0; tokens * heads * d];
            rope(
                x,
                tokens,
                heads,
                d,
                &cos,
                &sin,
                freqs,
                interleaved,
                &mut out,
            );
            for t in 0..tokens {
                for h in 0..heads {
                    let row = &data[h * head_stride + t * token_stride..][..d];
                    let got = &out[(t * heads + h) * d..][..d];
                    let mut want = row.to_vec();
                    for f in 0..freqs {
                        let (i, j) = if interleaved {
                            (2 * f, 2 * f + 1)
                        } else {
                            (f, f + freqs)
                        };
                        let (s, c) = angle(t, f).sin_cos();
                        want[i] = row[i] * c - row[j] * s;
                        want[j] = row[i] * s + row[j] * c;
                    }
                    for (got, want) in got.iter().zip(&want) {
                        assert!((got - want).abs() < 1e-5);
                    }
                }
            }
        }
    }
}
