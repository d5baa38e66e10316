// y = x · Wᵀ for one row x and a matrix [N, K] in MLX's affine groups of 4-bit codes, on tensor cores, with
// what comes before and after it. A block takes 16 rows of W for each of its TILES; its warps share the
// columns, 128 at a time, of which a lane takes 32 codes of two rows a tile, a round ahead. The order of
// columns within a product is free: codes are taken as they lie, and x in the same order.
//
// x fills the first of a tile's eight columns. What is normed is more than T holds: the second column has
// what the first leaves over. 1 / rms is a factor of the whole row, applied last.
//
// Constants: T, K, N, GROUP, TILES, WARPS, SEGMENT (columns that shared memory holds at a time, whole rounds),
// NORM with NW and EPS as in product.cu, and those of fragments.cu and around.cu, which come before; of gated products
// the first tile are gates, the second their factors.
constexpr int OUT = GATE != 0 ? 16 : 16 * TILES;
constexpr int ROUND = WARPS * 128;
constexpr int THREADS = WARPS * 32;
// Groups of a row, those of a segment, and how many scales a thread takes at once.
constexpr int GROUPS = K / GROUP;
constexpr int STAGED = SEGMENT / GROUP;
constexpr int SOME = GROUPS % 8 == 0 && STAGED % 8 == 0 ? 8 : 1;
// Eight more, so that the rows of a warp's lanes lie in different banks.
constexpr int ROW = STAGED + 8;
// What is normed may be beyond the largest half.
constexpr float DOWN = HALF && NORM ? 1.0f / 64 : 1.0f;

const int first = blockIdx.x * OUT;
const int warp = threadIdx.x / 32;
const int lane = threadIdx.x % 32;
const int line = lane / 4;
const int quarter = lane % 4;
const int column = warp * 128 + quarter * 32;

struct alignas(16) Eight {
  T element[8];
};
struct alignas(16) Weights {
  NW element[16 / sizeof(NW)];
};
constexpr int WEIGHTS = 16 / sizeof(NW);

// The row of W that the block has at `r`.
auto row_of = [&](int r) {
  const int at = min(first + (GATE != 0 ? r % 16 : r), OUTS - 1);
  return static_cast<size_t>(GATE != 0 && r >= 16 ? at + OUTS : at);
};
const uint4* codes[TILES][2];
#pragma unroll
for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    codes[tile][half] = reinterpret_cast<const uint4*>(w + row_of(16 * tile + 8 * half + line) * (K / 8));
  }
}
uint4 packed[TILES][2];
auto fetch = [&](int k) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      packed[tile][half] = k < K ? __ldcs(codes[tile][half] + k / 32) : make_uint4(0, 0, 0, 0);
    }
  }
};
fetch(column);

__shared__ uint4 elements[NORM ? 2 : 1][SEGMENT / 8];
__shared__ alignas(16) T factors[2][TILES * 16][ROW];
float squares = 0;
float sums[TILES][4] = {};
for (int begin = 0; begin < K; begin += SEGMENT) {
  if (begin > 0) {
    __syncthreads();
  }
  // Scales and biases of the block's rows.
  for (int i = threadIdx.x; i < TILES * 16 * (STAGED / SOME); i += THREADS) {
    const int r = i / (STAGED / SOME);
    const int group = i % (STAGED / SOME) * SOME;
    if (begin / GROUP + group < GROUPS) {
      const size_t from = row_of(r) * GROUPS + begin / GROUP + group;
      if constexpr (SOME == 8) {
        *reinterpret_cast<uint4*>(&factors[0][r][group]) = __ldcs(reinterpret_cast<const uint4*>(scales + from));
        *reinterpret_cast<uint4*>(&factors[1][r][group]) = __ldcs(reinterpret_cast<const uint4*>(biases + from));
      } else {
        factors[0][r][group] = scales[from];
        factors[1][r][group] = biases[from];
      }
    }
  }
  // Elements j and j + 4 of eight side by side, as the codes are.
  for (int i = threadIdx.x; i < min(SEGMENT, K - begin) / 8; i += THREADS) {
    Eight high = *reinterpret_cast<const Eight*>(x + begin + 8 * i);
    Eight low;
    if constexpr (NORM) {
#pragma unroll
      for (int part = 0; part < 8 / WEIGHTS; ++part) {
        const Weights some = *reinterpret_cast<const Weights*>(norm + begin + 8 * i + WEIGHTS * part);
#pragma unroll
        for (int j = 0; j < WEIGHTS; ++j) {
          T& element = high.element[WEIGHTS * part + j];
          float value = static_cast<float>(element);
          squares += value * value;
          value *= static_cast<float>(some.element[j]) * DOWN;
          element = static_cast<T>(value);
          low.element[WEIGHTS * part + j] = static_cast<T>(value - static_cast<float>(element));
        }
      }
    }
    auto paired = [](const Eight& eight) {
      uint32_t two[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const T2 both{eight.element[j], eight.element[j + 4]};
        two[j] = *reinterpret_cast<const uint32_t*>(&both);
      }
      return make_uint4(two[0], two[1], two[2], two[3]);
    };
    elements[0][i] = paired(high);
    if constexpr (NORM) {
      elements[1][i] = paired(low);
    }
  }
  __syncthreads();

  // All lanes of a warp go over the same rounds, of which the last may have fewer columns.
  for (int k = begin + column; k - column < min(begin + SEGMENT, K); k += ROUND) {
    uint4 held[TILES][2];
    T2 scale[TILES][2];
    T2 offset[TILES][2];
    const int group = min(k - begin, K - 1 - begin) / GROUP;
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int r = 16 * tile + 8 * half + line;
        held[tile][half] = packed[tile][half];
        scale[tile][half] = T2{factors[0][r][group], factors[0][r][group]};
        offset[tile][half] = T2{factors[1][r][group], factors[1][r][group]};
      }
    }
    fetch(k + ROUND);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (line < (NORM ? 2 : 1) && k < K) {
        eight = elements[line][(k - begin) / 8 + i];
      }
      const uint32_t columns[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int tile = 0; tile < TILES; ++tile) {
        uint32_t values[2][4];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const uint32_t word = reinterpret_cast<const uint32_t*>(&held[tile][half])[i];
          values_of(word, scale[tile][half], offset[tile][half], values[half]);
        }
        multiply(sums[tile], values, columns);
      }
    }
  }
}

// A tile's first two columns lie with the lanes of the first quarter.
__shared__ float parts[WARPS][16 * TILES];
__shared__ float squares_of[WARPS];
if (quarter == 0) {
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
    parts[warp][16 * tile + line] = sums[tile][0] + sums[tile][1];
    parts[warp][16 * tile + line + 8] = sums[tile][2] + sums[tile][3];
  }
}
if constexpr (NORM) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    squares += __shfl_xor_sync(0xffffffffu, squares, step);
  }
  if (lane == 0) {
    squares_of[warp] = squares;
  }
}
__syncthreads();
const int to = first + static_cast<int>(threadIdx.x);
if (threadIdx.x >= OUT || to >= OUTS) {
  return;
}
float one = 0;
float up = 0;
#pragma unroll
for (int i = 0; i < WARPS; ++i) {
  one += parts[i][threadIdx.x];
  if constexpr (GATE != 0) {
    up += parts[i][16 + threadIdx.x];
  }
}
if constexpr (NORM) {
  float all = 0;
#pragma unroll
  for (int i = 0; i < WARPS; ++i) {
    all += squares_of[i];
  }
  const float factor = rsqrtf(all / K + EPS) / DOWN;
  one *= factor;
  up *= factor;
}
y[to] = finished(one, up, to, to);
