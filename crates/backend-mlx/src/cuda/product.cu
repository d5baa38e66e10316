// y = x · Wᵀ for one row x and a matrix of N rows, with what comes before and after it. W is in MLX's
// affine groups of 4-bit codes, or dense. A warp takes R rows; a lane takes CODES elements of each at a
// time, so that many loads are under way at once. Sums are in float.
//
// Constants: T (of x, scales, biases and y), BITS (4, or 16 for dense), GROUP, R, CODES,
// NORM: x is RMS-normed, with weights of type NW and EPS; 1 / rms is a factor of the whole row, applied last.
// GATE: the first half of the rows are gates: 1 SiLU, 2 GELU. BIAS and ADD: vectors that are added.
constexpr int OUT = GATE != 0 ? R / 2 : R;
const int N = w_shape[0];
const int OUTS = GATE != 0 ? N / 2 : N;
const int K = BITS == 4 ? w_shape[1] * 8 : w_shape[1];
const int CHUNKS = K / CODES;
constexpr int WORDS = BITS == 4 ? CODES / 8 : CODES / 2;

const int lane = threadIdx.x % 32;
const int first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * OUT;
if (first >= OUTS) {
  return;
}

struct alignas(WORDS * 4) Packed {
  uint32_t word[WORDS];
};
struct alignas(16) Eight {
  T element[8];
};
struct alignas(16) Weights {
  NW element[16 / sizeof(NW)];
};
constexpr int WEIGHTS = 16 / sizeof(NW);

const Packed* packed_rows = reinterpret_cast<const Packed*>(w);
size_t row[R];
#pragma unroll
for (int r = 0; r < R; ++r) {
  // The last warp's surplus rows compute the last row again.
  row[r] = min(first + r % OUT, OUTS - 1) + (r >= OUT ? OUTS : 0);
}
float sums[R] = {};
float squares = 0;

#pragma unroll 2
for (int chunk = lane; chunk < CHUNKS; chunk += 32) {
  Packed packed[R];
  float scale[R];
  float bias_of_group[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    packed[r] = packed_rows[row[r] * CHUNKS + chunk];
    if constexpr (BITS == 4) {
      const size_t group = row[r] * (K / GROUP) + chunk * CODES / GROUP;
      scale[r] = static_cast<float>(scales[group]);
      bias_of_group[r] = static_cast<float>(biases[group]);
    }
  }

  float values[CODES];
  const Eight* at = reinterpret_cast<const Eight*>(x + chunk * CODES);
#pragma unroll
  for (int i = 0; i < CODES / 8; ++i) {
    const Eight eight = at[i];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      values[8 * i + j] = static_cast<float>(eight.element[j]);
    }
  }
  if constexpr (NORM) {
    const Weights* factors = reinterpret_cast<const Weights*>(norm + chunk * CODES);
#pragma unroll
    for (int i = 0; i < CODES / WEIGHTS; ++i) {
      const Weights some = factors[i];
#pragma unroll
      for (int j = 0; j < WEIGHTS; ++j) {
        float& value = values[WEIGHTS * i + j];
        squares += value * value;
        value *= static_cast<float>(some.element[j]);
      }
    }
  }

  if constexpr (BITS == 4) {
    float total = 0;
#pragma unroll
    for (int i = 0; i < CODES; ++i) {
      total += values[i];
    }
#pragma unroll
    for (int r = 0; r < R; ++r) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < WORDS; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          // Codes j and j + 4 as two bfloat16 numbers 128 + code.
          const uint32_t two = ((packed[r].word[i] >> (4 * j)) & 0x000f000fu) | 0x43004300u;
          dot += __uint_as_float(two << 16) * values[8 * i + j];
          dot += __uint_as_float(two & 0xffff0000u) * values[8 * i + j + 4];
        }
      }
      sums[r] += scale[r] * (dot - 128.0f * total) + bias_of_group[r] * total;
    }
  } else {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const T* elements = reinterpret_cast<const T*>(&packed[r]);
#pragma unroll
      for (int i = 0; i < CODES; ++i) {
        sums[r] += static_cast<float>(elements[i]) * values[i];
      }
    }
  }
}

#pragma unroll
for (int step = 16; step > 0; step /= 2) {
#pragma unroll
  for (int r = 0; r < R; ++r) {
    sums[r] += __shfl_xor_sync(0xffffffffu, sums[r], step);
  }
  if constexpr (NORM) {
    squares += __shfl_xor_sync(0xffffffffu, squares, step);
  }
}
if (lane != 0) {
  return;
}
const float factor = NORM ? rsqrtf(squares / K + EPS) : 1.0f;
#pragma unroll
for (int r = 0; r < OUT; ++r) {
  const int to = first + r;
  if (to >= OUTS) {
    break;
  }
  float one = sums[r] * factor;
  if constexpr (BIAS) {
    one += static_cast<float>(bias[to]);
  }
  if constexpr (GATE != 0) {
    float up = sums[r + OUT] * factor;
    if constexpr (BIAS) {
      up += static_cast<float>(bias[to + OUTS]);
    }
    if constexpr (GATE == 1) {
      one = one / (1.0f + expf(-one)) * up;
    } else {
      one = 0.5f * one * (1.0f + tanhf(0.7978845608f * (one + 0.044715f * one * one * one))) * up;
    }
  }
  if constexpr (ADD) {
    one += static_cast<float>(add[to]);
  }
  y[to] = static_cast<T>(one);
}
