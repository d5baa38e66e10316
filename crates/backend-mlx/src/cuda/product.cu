// y = x · Wᵀ for one row x and a matrix of N rows in MLX's affine groups of 4-bit codes.
// A warp takes R rows; a lane takes 16 bytes of codes of each at a time, so that many loads are
// under way at once. Sums are in float.
//
// Template: T (bfloat16 or half, of x, scales, biases and y), GROUP, R.
constexpr int CODES = 32;
const int N = scales_shape[0];
const int GROUPS = scales_shape[1];
const int CHUNKS = GROUPS * GROUP / CODES;

const int lane = threadIdx.x % 32;
const int first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * R;
if (first >= N) {
  return;
}

const uint4* words = reinterpret_cast<const uint4*>(w);
float sums[R] = {};

#pragma unroll 2
for (int chunk = lane; chunk < CHUNKS; chunk += 32) {
  uint4 packed[R];
  float scale[R];
  float bias[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    // The last warp's surplus rows compute the last row again.
    const int row = min(first + r, N - 1);
    packed[r] = __ldg(words + static_cast<size_t>(row) * CHUNKS + chunk);
    const size_t group = static_cast<size_t>(row) * GROUPS + chunk * CODES / GROUP;
    scale[r] = static_cast<float>(scales[group]);
    bias[r] = static_cast<float>(biases[group]);
  }

  float values[CODES];
  float total = 0;
  const uint4* at = reinterpret_cast<const uint4*>(x + chunk * CODES);
#pragma unroll
  for (int i = 0; i < CODES / 8; ++i) {
    uint4 eight = __ldg(at + i);
    const T* elements = reinterpret_cast<const T*>(&eight);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[8 * i + j] = static_cast<float>(elements[j]);
      total += values[8 * i + j];
    }
  }

#pragma unroll
  for (int r = 0; r < R; ++r) {
    const uint32_t* word = reinterpret_cast<const uint32_t*>(&packed[r]);
    float dot = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // Codes j and j + 4 as two bfloat16 numbers 128 + code.
        const uint32_t two = ((word[i] >> (4 * j)) & 0x000f000fu) | 0x43004300u;
        dot += __uint_as_float(two << 16) * values[8 * i + j];
        dot += __uint_as_float(two & 0xffff0000u) * values[8 * i + j + 4];
      }
    }
    sums[r] += scale[r] * (dot - 128.0f * total) + bias[r] * total;
  }
}

#pragma unroll
for (int r = 0; r < R; ++r) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], step);
  }
  if (lane == 0 && first + r < N) {
    y[first + r] = static_cast<T>(sums[r]);
  }
}
