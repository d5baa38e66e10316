use biplane_backend::{DType, Error, GgmlKind, PackedLayout, PackedMatrix, Result};

use super::apart;
use super::codec::{self, Codec, PANEL, Quads};

/// How elements are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// Codes of `bits` bits in blocks of `block` elements.
    Codes {
        bits: usize,
        block: usize,
    },
    F32,
    F16,
    BF16,
}

/// Calls `$body` with `$C` the codec type of codes of `$bits` bits in blocks of `$block`.
macro_rules! with_codes {
    ($bits:expr, $block:expr, $C:ident => $body:expr) => {{
        use $crate::cpu::matrix::codec::Codes;
        macro_rules! run {
            ($t:ty) => {{
                type $C = $t;
                $body
            }};
        }
        match ($bits, $block) {
            (2, 16) => run!(Codes<2, 16>),
            (4, 16) => run!(Codes<4, 16>),
            (6, 16) => run!(Codes<6, 16>),
            (8, 16) => run!(Codes<8, 16>),
            (2, _) => run!(Codes<2, 32>),
            (3, _) => run!(Codes<3, 32>),
            (4, _) => run!(Codes<4, 32>),
            (5, _) => run!(Codes<5, 32>),
            (6, _) => run!(Codes<6, 32>),
            _ => run!(Codes<8, 32>),
        }
    }};
}
pub(super) use with_codes;

/// Calls `$body` with `$C` the codec type of a format.
macro_rules! with_codec {
    ($format:expr, $C:ident => $body:expr) => {{
        use $crate::cpu::matrix::codec::{DenseF32, DenseHalf};
        macro_rules! dense {
            ($t:ty) => {{
                type $C = $t;
                $body
            }};
        }
        match $format {
            Format::Codes { bits, block } => {
                $crate::cpu::matrix::layout::with_codes!(bits, block, $C => $body)
            }
            Format::F32 => dense!(DenseF32),
            Format::F16 => dense!(DenseHalf<false>),
            Format::BF16 => dense!(DenseHalf<true>),
        }
    }};
}
pub(super) use with_codec;

/// What groups' scales (and biases) are stored as: the narrowest that holds them exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ScaleType {
    F32,
    F16,
    BF16,
    /// Signed bytes, multiples of a half that is common to [`SUPER`] elements of a row.
    Multiple,
}

/// Elements of a row whose scales are multiples of one half.
pub(super) const SUPER: usize = 256;

/// What a group adds to its codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bias {
    /// A number of its own.
    Stored,
    /// `-zero · scale`: codes count from `zero`, and nothing is stored.
    ZeroPoint(u8),
}

/// Scales and biases of a quantized matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scaling {
    pub ty: ScaleType,
    pub bias: Bias,
}

/// Where everything is in a packed matrix.
///
/// The matrix is panels of [`PANEL`] rows; a panel is runs of groups; a run is its scales, its biases if
/// stored, and its groups' blocks. Scales (and biases) are `[PANEL]` of a run of one group, or, where they
/// are multiples, `[PANEL]` halves and `[groups, PANEL]` bytes of a run of [`SUPER`] elements. Missing rows
/// and elements are zeros. Where low bits lie apart (see [`apart`]), they follow the last panel, in the order
/// of panels and blocks, and every panel ends with `[PANEL]` bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub rows: usize,
    pub cols: usize,
    pub format: Format,
    /// `None` for dense elements.
    pub scaling: Option<Scaling>,
    /// Elements of a row in a group.
    pub group: usize,
    /// Whether blocks hold their codes' high bits alone.
    pub apart: bool,
    sizes: Sizes,
}

/// What follows from the rest of a [`Layout`], computed with it: kernels ask for every panel.
#[derive(Clone, Copy, Debug, Default)]
struct Sizes {
    panels: usize,
    groups: usize,
    block: usize,
    group_blocks: usize,
    run_groups: usize,
    runs: usize,
    scale_words: usize,
    header_words: usize,
    group_words: usize,
    low_words: usize,
}

impl Layout {
    /// The layout for a checkpoint's matrix.
    ///
    /// # Errors
    /// [`Error::Weight`] for formats that do not exist.
    pub fn of(m: &PackedMatrix<'_>) -> Result<Layout> {
        let bad = |reason: String| Error::Weight {
            name: m.name.into(),
            reason,
        };
        let ty = |dtype| match dtype {
            DType::F32 => Ok((Format::F32, ScaleType::F32)),
            DType::F16 => Ok((Format::F16, ScaleType::F16)),
            DType::BF16 => Ok((Format::BF16, ScaleType::BF16)),
            _ => Err(bad(format!(
                "element type {dtype}, expected f32, f16 or bf16"
            ))),
        };
        let [rows, cols] = m.shape;
        let (format, scaling, group) = match (m.layout, m.spec()) {
            (PackedLayout::Dense { dtype, .. }, _)
            | (
                PackedLayout::Affine {
                    scale_dtype: dtype, ..
                },
                None,
            ) => {
                let format = ty(dtype)?.0;
                (format, None, with_codec!(format, C => C::BLOCK))
            }
            (
                PackedLayout::Affine {
                    scale_dtype,
                    bits,
                    group_size,
                    ..
                },
                _,
            ) => {
                let scaling = Scaling {
                    ty: ty(scale_dtype)?.1,
                    bias: Bias::Stored,
                };
                (
                    codes(bits, group_size).map_err(bad)?,
                    Some(scaling),
                    group_size,
                )
            }
            (PackedLayout::Ggml { kind, .. }, _) => {
                let spec = kind.spec();
                let format = codes(spec.bits, spec.group_size).map_err(bad)?;
                let bias = match m.zero_point() {
                    0 => Bias::Stored,
                    zero => Bias::ZeroPoint(zero),
                };
                let scaling = Scaling {
                    ty: ggml_scale_type(kind),
                    bias,
                };
                (format, Some(scaling), spec.group_size)
            }
        };
        Ok(Layout {
            rows,
            cols,
            format,
            scaling,
            group,
            apart: false,
            sizes: Sizes::default(),
        }
        .sized())
    }

    /// With low bits apart, if it is a vocabulary's matrix in a format that allows it.
    pub fn apart_if_tall(self) -> Layout {
        /// Rows that make reading less worth a second pass, and how many times its columns it has.
        const ROWS: usize = 16_384;
        const TALL: usize = 4;
        let format = matches!(
            self.format,
            Format::Codes {
                bits: 8,
                block: apart::BLOCK
            }
        );
        let zero = |s: Scaling| matches!(s.bias, Bias::ZeroPoint(apart::MIDDLE..));
        let zero = self.scaling.is_some_and(zero);
        Layout {
            apart: format
                && zero
                && self.group == apart::BLOCK
                && self.rows >= ROWS
                && self.rows / TALL >= self.cols,
            ..self
        }
        .sized()
    }

    /// With the sizes that the other fields ask for.
    fn sized(mut self) -> Layout {
        let (block, block_words) = with_codec!(self.format, C => (C::BLOCK, C::WORDS));
        let groups = self.cols.div_ceil(self.group);
        let group_blocks = self.group / block;
        let ty = self.scaling.map(|s| s.ty);
        let run_groups = match ty {
            Some(ScaleType::Multiple) => SUPER / self.group,
            _ => 1,
        };
        let scale_words = match ty {
            None => 0,
            Some(ScaleType::F32) => PANEL,
            Some(ScaleType::F16 | ScaleType::BF16) => PANEL / 2,
            Some(ScaleType::Multiple) => PANEL / 2 + run_groups * (PANEL / 4),
        };
        let (block_words, low_words) = match self.apart {
            true => (apart::Apart::BLOCK_WORDS, apart::Apart::LOW_WORDS),
            false => (block_words, 0),
        };
        self.sizes = Sizes {
            panels: self.rows.div_ceil(PANEL),
            groups,
            block,
            group_blocks,
            run_groups,
            runs: groups.div_ceil(run_groups),
            scale_words,
            header_words: match self.scaling.map(|s| s.bias) {
                Some(Bias::Stored) => 2 * scale_words,
                _ => scale_words,
            },
            group_words: group_blocks * block_words,
            low_words,
        };
        self
    }

    /// Number of panels.
    pub fn panels(&self) -> usize {
        self.sizes.panels
    }

    /// Number of groups of a row.
    pub fn groups(&self) -> usize {
        self.sizes.groups
    }

    /// Elements of a row in a block.
    pub fn block(&self) -> usize {
        self.sizes.block
    }

    /// Blocks of a group.
    pub fn group_blocks(&self) -> usize {
        self.sizes.group_blocks
    }

    /// Blocks of a row.
    pub fn blocks(&self) -> usize {
        self.groups() * self.group_blocks()
    }

    /// Groups of a run.
    pub fn run_groups(&self) -> usize {
        self.sizes.run_groups
    }

    /// Number of runs of a row.
    pub fn runs(&self) -> usize {
        self.sizes.runs
    }

    /// Words of a panel's scales of one run.
    pub fn scale_words(&self) -> usize {
        self.sizes.scale_words
    }

    /// Words before a run's first block.
    pub fn header_words(&self) -> usize {
        self.sizes.header_words
    }

    /// Words of a group's blocks.
    pub fn group_words(&self) -> usize {
        self.sizes.group_words
    }

    /// Words of a run of a panel.
    pub fn run_words(&self) -> usize {
        self.header_words() + self.run_groups() * self.group_words()
    }

    /// Words of a panel's runs.
    pub fn runs_words(&self) -> usize {
        self.runs() * self.run_words()
    }

    /// Words of a block's low bits, where they lie apart.
    pub fn low_words(&self) -> usize {
        self.sizes.low_words
    }

    /// Words of a panel, without what lies apart.
    pub fn panel_words(&self) -> usize {
        self.runs_words() + if self.apart { PANEL } else { 0 }
    }

    /// Words of a panel that lie apart.
    pub fn apart_words(&self) -> usize {
        self.blocks() * self.low_words()
    }

    /// The layout of the same matrix with a byte a code and scales in `f32`.
    pub fn as_bytes(&self) -> Layout {
        Layout {
            format: Format::Codes {
                bits: 8,
                block: self.block(),
            },
            scaling: self.scaling.map(|s| Scaling {
                ty: ScaleType::F32,
                ..s
            }),
            apart: false,
            ..*self
        }
        .sized()
    }
}

/// The format that holds codes of `bits` in groups of `group`, in the narrowest width there is.
fn codes(bits: u8, group: usize) -> std::result::Result<Format, String> {
    let wide = usize::from(bits);
    match (bits, group) {
        // Blocks of 16 with odd widths would end within a word.
        (3 | 5, 16) => Ok(Format::Codes {
            bits: wide + 1,
            block: 16,
        }),
        (2 | 4 | 6 | 8, 16) => Ok(Format::Codes {
            bits: wide,
            block: 16,
        }),
        (2..=6 | 8, 32 | 64 | 128) => Ok(Format::Codes {
            bits: wide,
            block: codec::PANEL,
        }),
        _ => Err(format!(
            "{bits} bits in groups of {group}; requantize to 4 or 8 bits in groups of 32"
        )),
    }
}

/// The type that holds a block format's scales, as `repack` reads them, exactly.
fn ggml_scale_type(kind: GgmlKind) -> ScaleType {
    match kind {
        GgmlKind::Q4_0 | GgmlKind::Q4_1 | GgmlKind::Q5_0 | GgmlKind::Q5_1 | GgmlKind::Q8_0 => {
            ScaleType::F16
        }
        GgmlKind::Q2K | GgmlKind::Q3K | GgmlKind::Q4K | GgmlKind::Q5K | GgmlKind::Q6K => {
            ScaleType::Multiple
        }
    }
}
