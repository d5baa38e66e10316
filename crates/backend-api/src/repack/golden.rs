//! What the formats' own tools give, as FNV-1a hashes of little-endian bytes.

use crate::GgmlKind;

/// What gguf-py's `dequantize` gives for eight blocks of `bytes(position in the table)`.
pub(super) const GGUF_PY: [(GgmlKind, u64); 10] = [
    (GgmlKind::Q4_0, 0x5ee7_d7f9_f130_46a0),
    (GgmlKind::Q4_1, 0x6d2a_fc87_1453_a12f),
    (GgmlKind::Q5_0, 0xe714_a03c_c865_a1bb),
    (GgmlKind::Q5_1, 0xaa01_b434_8be9_24d8),
    (GgmlKind::Q8_0, 0x4d13_4d08_b937_3c18),
    (GgmlKind::Q2K, 0x9e1f_4d11_76c3_10d7),
    (GgmlKind::Q3K, 0xf04c_1edc_a104_e405),
    (GgmlKind::Q4K, 0x1874_e679_60d9_cd4b),
    (GgmlKind::Q5K, 0xba81_fc38_a383_85b6),
    (GgmlKind::Q6K, 0x2f5a_2de4_8f5c_cb98),
];

/// What gguf-py's `quantize` gives for the values of the tests of [`super::quantize_ggml`].
pub(super) const GGUF_PY_WRITES: [(GgmlKind, u64); 5] = [
    (GgmlKind::Q4_0, 0xb919_a45f_8973_ba7c),
    (GgmlKind::Q4_1, 0x83b8_4df2_ae64_a7ba),
    (GgmlKind::Q5_0, 0xb65b_27e4_7be6_f796),
    (GgmlKind::Q5_1, 0xb9fd_5d6a_a165_ba5b),
    (GgmlKind::Q8_0, 0xced7_8098_d84c_b204),
];

/// FNV-1a of codes, scales, biases and dequantized values that MLX 0.32 gives for `quantize` and
/// `dequantize` of `values(1000 * bits + group, 256)` in two rows.
pub(super) const MLX: [(u8, usize, [u64; 4]); 18] = [
    (
        2,
        32,
        [
            0x58d4_5104_239e_0e9a,
            0x6ffb_0103_9a53_0111,
            0xd27a_70b7_bf1f_ede1,
            0xc94a_5eaa_adab_9732,
        ],
    ),
    (
        2,
        64,
        [
            0xeac9_98f2_2153_aee2,
            0x1c28_ea1d_659f_cf1b,
            0x7cf9_9d86_33f5_1053,
            0x9e5a_f8d2_2da6_0dba,
        ],
    ),
    (
        2,
        128,
        [
            0x6ab1_eac5_09a8_850c,
            0x0e19_85fd_0cb0_09fb,
            0x296d_181a_ffe3_8727,
            0x2e4b_bc0f_da91_74b6,
        ],
    ),
    (
        3,
        32,
        [
            0x8e20_0d73_477c_005a,
            0xd171_3da5_cf76_f574,
            0x220a_abe5_e2a4_5514,
            0x5c03_2e2e_fc39_4cdc,
        ],
    ),
    (
        3,
        64,
        [
            0xb8f7_ee04_10ab_ea60,
            0xdec1_b962_625b_ca2f,
            0x182a_755f_778f_7cbb,
            0x5d44_1ead_77f6_d2e3,
        ],
    ),
    (
        3,
        128,
        [
            0x5619_2fa9_1c20_f4e5,
            0x8c59_63f5_a799_d50d,
            0x1e0f_7bbb_27ce_e87d,
            0x623b_16ae_1895_5130,
        ],
    ),
    (
        4,
        32,
        [
            0x5b26_88c6_5bb1_a441,
            0xa5c1_8341_601e_d15d,
            0xd34c_6f42_b45f_b105,
            0x416c_80af_9080_707f,
        ],
    ),
    (
        4,
        64,
        [
            0x5084_b943_00c1_ca8e,
            0x693d_742b_c343_2fd2,
            0xbefd_43f6_014d_16b6,
            0x14ba_f3fb_2e56_8b41,
        ],
    ),
    (
        4,
        128,
        [
            0xe042_87d3_704a_8956,
            0xd011_b37f_8cc2_9c4a,
            0xf074_1add_a785_b866,
            0x09d6_ea2e_8db2_3db4,
        ],
    ),
    (
        5,
        32,
        [
            0x1b3e_b7c2_77d4_2224,
            0x8fe9_12b5_21a9_ed7b,
            0x8634_7c1c_2c78_ed72,
            0x0b6e_a744_6922_68c5,
        ],
    ),
    (
        5,
        64,
        [
            0x292b_4f7f_434d_aa02,
            0x8b8b_f3d4_5a28_01f0,
            0x2b90_1b29_91c4_dcb8,
            0x91ff_0f9c_bd49_328b,
        ],
    ),
    (
        5,
        128,
        [
            0xf90c_4336_505f_cfc5,
            0x2348_bcbd_d16a_c5b9,
            0xe525_453c_197c_9ac1,
            0xf0bf_22f2_480b_777d,
        ],
    ),
    (
        6,
        32,
        [
            0xcea7_0786_78e7_0f53,
            0x234e_23af_98c9_fb56,
            0xb07c_1825_a7fc_bc0a,
            0xc6d7_013e_f9f1_025d,
        ],
    ),
    (
        6,
        64,
        [
            0xeea9_c053_0cdf_f9f9,
            0xd24b_85fa_8390_2f59,
            0x8588_ca43_ec91_278a,
            0x6dca_7d32_d568_57f8,
        ],
    ),
    (
        6,
        128,
        [
            0xccef_da6b_ce30_0c24,
            0xbd5c_415e_7c4a_db36,
            0x1876_d969_0d09_5a2e,
            0x4806_836e_c5e5_5f98,
        ],
    ),
    (
        8,
        32,
        [
            0x641d_3c2c_a85c_759e,
            0x5d91_71fc_c703_717d,
            0x936d_9341_1993_f8bb,
            0x8d7b_2264_6f71_16d6,
        ],
    ),
    (
        8,
        64,
        [
            0x2d14_470e_fd1e_e506,
            0x5c02_3e8f_3be6_70d5,
            0x78fc_7462_2683_bb48,
            0x9cb9_54ed_48c6_5f49,
        ],
    ),
    (
        8,
        128,
        [
            0xb1f3_073b_f57b_e01d,
            0x3173_f173_a678_45d5,
            0x58ae_9b12_86f4_be30,
            0x2ad0_ec51_12bb_9aa9,
        ],
    ),
];
