// Some rows of a matrix in MLX's affine groups of 4-bit codes, as T: a block takes a row, a thread eight
// codes at a time. Product and sum round on their own, as `dequantize` does.
//
// Constants: T, S (of scales and biases), GROUP, ZERO (what is taken from codes whose bias is that many
// scales; biases are read where it is 0).
const int cols = codes_shape[1];
const size_t from = ids[blockIdx.x];
for (int word = threadIdx.x; word < cols; word += blockDim.x) {
  const size_t group = from * (cols * 8 / GROUP) + word * 8 / GROUP;
  const uint32_t packed = codes[from * cols + word];
  const float scale = static_cast<float>(scales[group]);
  const float bias = static_cast<float>(biases[group]);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float code = static_cast<float>((packed >> (4 * i)) & 15u) - ZERO;
    const float product = __fmul_rn(code, scale);
    y[(static_cast<size_t>(blockIdx.x) * cols + word) * 8 + i] =
        static_cast<T>(ZERO != 0 ? product : __fadd_rn(product, bias));
  }
}
