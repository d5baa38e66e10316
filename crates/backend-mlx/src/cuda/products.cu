// y = x · Wᵀ for a few rows x and a matrix of N rows in MLX's affine groups of 4-bit codes, on tensor
// cores. A block takes 16 rows of W for each of its TILES; its warps share the columns, 128 at a time, of
// which a lane takes 32 codes of two rows a tile. The order of columns within a product is free: codes
// are taken as they lie, and x in the same order.
//
// Constants: K, GROUP, TILES, TOKENS (eights of rows of x), WARPS, and those of fragments.cu and around.cu, which come before;
// of gated products the first tile are gates, the second their factors.
const int M = x_shape[0];
constexpr int OUT = GATE != 0 ? 16 : 16 * TILES;
const int first = blockIdx.x * OUT;

const int warp = threadIdx.x / 32;
const int lane = threadIdx.x % 32;
const int line = lane / 4;
const int quarter = lane % 4;

size_t row[TILES][2];
#pragma unroll
for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int at = first + (GATE != 0 ? 0 : 16 * tile) + 8 * half + line;
    row[tile][half] = min(at, OUTS - 1) + (GATE != 0 && tile == 1 ? OUTS : 0);
  }
}

float sums[TILES][TOKENS][4] = {};
for (int start = warp * 128; start < K; start += WARPS * 128) {
  const int k = start + quarter * 32;
  const bool inside = k < K;
  uint4 packed[TILES][2];
  T2 scale[TILES][2];
  T2 offset[TILES][2];
#pragma unroll
  for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      packed[tile][half] = make_uint4(0, 0, 0, 0);
      T s = static_cast<T>(0.0f);
      T b = static_cast<T>(0.0f);
      if (inside) {
        packed[tile][half] = *reinterpret_cast<const uint4*>(w + row[tile][half] * (K / 8) + k / 8);
        const size_t group = row[tile][half] * (K / GROUP) + k / GROUP;
        s = scales[group];
        b = biases[group];
      }
      scale[tile][half] = T2{s, s};
      offset[tile][half] = T2{b, b};
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    uint32_t columns[TOKENS][4];
#pragma unroll
    for (int n = 0; n < TOKENS; ++n) {
      uint4 eight = make_uint4(0, 0, 0, 0);
      if (inside && 8 * n + line < M) {
        eight = *reinterpret_cast<const uint4*>(x + static_cast<size_t>(8 * n + line) * K + k + 8 * i);
      }
      // Elements j and j + 4 side by side, as the codes are.
      columns[n][0] = __byte_perm(eight.x, eight.z, 0x5410);
      columns[n][1] = __byte_perm(eight.x, eight.z, 0x7632);
      columns[n][2] = __byte_perm(eight.y, eight.w, 0x5410);
      columns[n][3] = __byte_perm(eight.y, eight.w, 0x7632);
    }
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
      uint32_t values[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint32_t word = reinterpret_cast<const uint32_t*>(&packed[tile][half])[i];
        values_of(word, scale[tile][half], offset[tile][half], values[half]);
      }
#pragma unroll
      for (int n = 0; n < TOKENS; ++n) {
        multiply(sums[tile][n], values, columns[n]);
      }
    }
  }
}

__shared__ float parts[WARPS][8 * TOKENS][16 * TILES + 1];
#pragma unroll
for (int tile = 0; tile < TILES; ++tile) {
#pragma unroll
  for (int n = 0; n < TOKENS; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      parts[warp][8 * n + 2 * quarter + i % 2][16 * tile + line + 8 * (i / 2)] = sums[tile][n][i];
    }
  }
}
__syncthreads();
for (int at = threadIdx.x; at < OUT * M; at += WARPS * 32) {
  const int token = at / OUT;
  const int to = first + at % OUT;
  if (to >= OUTS) {
    continue;
  }
  float one = 0;
  float up = 0;
#pragma unroll
  for (int i = 0; i < WARPS; ++i) {
    one += parts[i][token][at % OUT];
    if constexpr (GATE != 0) {
      up += parts[i][token][16 + at % OUT];
    }
  }
  const size_t place = static_cast<size_t>(token) * OUTS + to;
  y[place] = finished(one, up, to, place);
}
