use std::{ops::Range, sync::Mutex};

use biplane_backend::repack::{CanonicalRows, canonical_rows, k_scales};
use biplane_backend::{PackedLayout, PackedMatrix, Result};
use half::{bf16, f16};

use crate::cpu::pages::{Line, Lines};
use crate::cpu::pool;

use super::apart::{self, Apart};
use super::codec::{Codec, PANEL, Quads, halves_mut};
use super::layout::{Bias, Format, Layout, ScaleType, Scaling, with_codec, with_codes};

/// Bytes of the checkpoint that a task packs, and then has no more use for.
const AT_ONCE: usize = 2 << 20;

/// A matrix's panels, as `layout` says.
///
/// # Errors
/// [`Error::OutOfMemory`]; [`Error::Weight`] for malformed bytes.
pub(super) fn pack(
    m: &PackedMatrix<'_>,
    layout: &Layout,
    taken: &(dyn Fn(Range<usize>) + Sync),
) -> Result<Lines> {
    let lines_of = |words| words / (size_of::<Line>() / 4);
    let (panel, low) = (
        lines_of(layout.panel_words()),
        lines_of(layout.apart_words()),
    );
    let lines = (panel + low).saturating_mul(layout.panels());
    // Zeros that take no memory before they are written, as the checkpoint's is freed.
    let mut data = Lines::zeroed(lines)?;
    let bytes: usize = m
        .bytes_of_rows(0..layout.rows)
        .iter()
        .map(|b| b.len())
        .sum();
    let pieces = bytes.div_ceil(AT_ONCE).max(4 * pool::threads());
    let chunk = layout.panels().div_ceil(pieces);
    let failed = Mutex::new(None);
    {
        // One lock for each piece lets tasks write their own without unsafe code.
        let (panels, apart) = data.split_at_mut(panel * layout.panels());
        let mut apart = apart.chunks_mut((chunk * low).max(1));
        let pieces: Vec<_> = panels
            .chunks_mut(chunk * panel)
            .map(|panels| Mutex::new((panels, apart.next().unwrap_or_default())))
            .collect();
        pool::parallel_for(pieces.len(), |i| {
            let mut piece = pieces[i].lock().unwrap_or_else(|e| e.into_inner());
            let (panels, apart) = &mut *piece;
            let mut apart = apart.chunks_exact_mut(low.max(1));
            let first = i * chunk * PANEL;
            for (i, lines) in panels.chunks_exact_mut(panel).enumerate() {
                let words = bytemuck::cast_slice_mut(lines);
                let low = bytemuck::cast_slice_mut(apart.next().unwrap_or_default());
                if let Err(e) = pack_panel(m, layout, first + i * PANEL, words, low) {
                    failed
                        .lock()
                        .unwrap_or_else(|e| e.into_inner())
                        .get_or_insert(e);
                }
            }
            taken(first..layout.rows.min(first + chunk * PANEL));
        });
    }
    match failed.into_inner().unwrap_or_else(|e| e.into_inner()) {
        Some(error) => Err(error),
        None => Ok(data),
    }
}

/// Packs the rows from `first` on into one panel of zeros, `low` being what of it lies apart.
fn pack_panel(
    m: &PackedMatrix<'_>,
    layout: &Layout,
    first: usize,
    words: &mut [u32],
    low: &mut [u32],
) -> Result<()> {
    let rows = first..layout.rows.min(first + PANEL);
    if let PackedLayout::Dense { bytes, .. } = m.layout {
        let size = match layout.format {
            Format::F32 => 4,
            _ => 2,
        };
        for (lane, row) in rows.enumerate() {
            let bytes = &bytes[row * layout.cols * size..][..layout.cols * size];
            let element = |k: usize| match size {
                4 => u32::from_le_bytes([
                    bytes[4 * k],
                    bytes[4 * k + 1],
                    bytes[4 * k + 2],
                    bytes[4 * k + 3],
                ]),
                _ => u32::from(u16::from_le_bytes([bytes[2 * k], bytes[2 * k + 1]])),
            };
            with_codec!(layout.format, C => {
                for k in 0..layout.cols {
                    C::set(&mut words[k / C::BLOCK * C::WORDS..], k % C::BLOCK, lane, element(k));
                }
            });
        }
        return Ok(());
    }

    let mut canonical = CanonicalRows::default();
    canonical_rows(m, rows.clone(), &mut canonical)?;
    let Format::Codes { bits, block } = layout.format else {
        return Ok(());
    };
    let (groups, run_groups) = (layout.groups(), layout.run_groups());
    let (run_words, group_words) = (layout.run_words(), layout.group_words());
    let (header_words, scale_words) = (layout.header_words(), layout.scale_words());
    let (words, bounds) = words.split_at_mut(layout.runs_words());
    let low_words = layout.group_blocks() * layout.low_words();
    // Group by group for all lanes: a group's words stay in the cache.
    for group in 0..groups {
        let run = &mut words[group / run_groups * run_words..][..run_words];
        if let Some(scaling) = layout.scaling {
            let (scales, biases) = run.split_at_mut(scale_words);
            for lane in 0..rows.len() {
                set_scale(
                    scaling.ty,
                    scales,
                    lane,
                    canonical.scales[lane * groups + group],
                );
                if scaling.bias == Bias::Stored {
                    set_scale(
                        scaling.ty,
                        biases,
                        lane,
                        canonical.biases[lane * groups + group],
                    );
                }
            }
        }
        let blocks = &mut run[header_words + group % run_groups * group_words..][..group_words];
        let codes = &canonical.codes[group * layout.group..];
        if layout.apart {
            let low = &mut low[group * low_words..][..low_words];
            for (lane, codes) in codes.chunks(layout.cols).enumerate() {
                if let Some(codes) = codes.first_chunk() {
                    Apart::set(blocks, low, lane, codes);
                }
            }
            continue;
        }
        with_codes!(bits, block, C => {
            store_codes(blocks, C::BLOCK_WORDS, C::set_quad, codes, layout.cols, 4 * C::QUADS);
        });
    }
    if layout.apart {
        for (lane, kept) in bounds.iter_mut().enumerate().take(rows.len()) {
            let codes = &canonical.codes[lane * layout.cols..][..layout.cols];
            let scales = &canonical.scales[lane * groups..][..groups];
            *kept = apart::bound(codes, scales).to_bits();
        }
    }
    if let (PackedLayout::Ggml { kind, blocks }, Some(scaling)) = (m.layout, layout.scaling)
        && scaling.ty == ScaleType::Multiple
    {
        let runs = blocks[rows.start * layout.runs() * kind.block_bytes()..]
            .chunks_exact(kind.block_bytes())
            .map(|block| k_scales(kind, block).unwrap_or_default());
        for (i, all) in runs.take(rows.len() * layout.runs()).enumerate() {
            let (lane, run) = (i / layout.runs(), i % layout.runs());
            let run = &mut words[run * layout.run_words()..];
            set_multiples(run, lane, all.d, &all.scales[..run_groups]);
            if scaling.bias == Bias::Stored {
                // Minima are taken away.
                let run = &mut run[layout.scale_words()..];
                set_multiples(run, lane, -all.dmin, &all.mins[..run_groups]);
            }
        }
    }
    Ok(())
}

/// Stores the codes of a group's blocks, each of `words` words and `elements` of a row; lanes' codes lie
/// `stride` apart, the last lane's being the last.
#[inline(always)]
fn store_codes(
    blocks: &mut [u32],
    words: usize,
    set_quad: impl Fn(&mut [u32], usize, usize, u32),
    codes: &[u8],
    stride: usize,
    elements: usize,
) {
    for (i, block) in blocks.chunks_exact_mut(words).enumerate() {
        for (lane, codes) in codes.chunks(stride).enumerate() {
            let codes = &codes[i * elements..][..elements];
            for (q, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                set_quad(block, q, lane, u32::from_le_bytes(*codes));
            }
        }
    }
}

#[inline]
fn set_scale(ty: ScaleType, words: &mut [u32], lane: usize, value: f32) {
    match ty {
        ScaleType::F32 => words[lane] = value.to_bits(),
        ScaleType::F16 => halves_mut(words)[lane] = f16::from_f32(value).to_bits(),
        ScaleType::BF16 => halves_mut(words)[lane] = bf16::from_f32(value).to_bits(),
        // They come from the file, all of a run at once.
        ScaleType::Multiple => {}
    }
}

/// Stores a lane's scales of a run: `unit` times each of `multiples`.
fn set_multiples(run: &mut [u32], lane: usize, unit: f16, multiples: &[i8]) {
    halves_mut(run)[lane] = unit.to_bits();
    let bytes: &mut [i8] = bytemuck::cast_slice_mut(&mut run[PANEL / 2..]);
    for (multiple, bytes) in multiples.iter().zip(bytes.chunks_exact_mut(PANEL)) {
        bytes[lane] = *multiple;
    }
}

/// Scale and stored bias of a lane in group `g` of the run whose words these are.
pub(super) fn scale_and_bias(
    layout: &Layout,
    scaling: Scaling,
    run: &[u32],
    g: usize,
    lane: usize,
) -> (f32, f32) {
    use super::codec::{half_to_f32, halves};
    let get = |words: &[u32]| match scaling.ty {
        ScaleType::F32 => f32::from_bits(words[lane]),
        ScaleType::F16 => half_to_f32(halves(words)[lane], false),
        ScaleType::BF16 => half_to_f32(halves(words)[lane], true),
        ScaleType::Multiple => {
            let multiples: &[i8] = bytemuck::cast_slice(&words[PANEL / 2..]);
            half_to_f32(halves(words)[lane], false) * f32::from(multiples[g * PANEL + lane])
        }
    };
    let bias = match scaling.bias {
        Bias::Stored => get(&run[layout.scale_words()..]),
        Bias::ZeroPoint(_) => 0.0,
    };
    (get(run), bias)
}
