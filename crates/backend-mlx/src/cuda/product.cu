// y = x · Wᵀ for one row x and a dense matrix [N, K], with what comes before and after it. TEAM warps take R
// rows, and share their columns, of which a lane takes eight at a time. Sums are in float.
//
// Constants: T (of x, W and y), K, R, TEAM, WARPS, and those of around.cu, which comes before.
// NORM: x is RMS-normed, with weights of type NW and EPS; 1 / rms is a factor of the whole row, applied last.
constexpr int OUT = GATE != 0 ? R / 2 : R;

const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int mate = warp % TEAM;
const int first = (blockIdx.x * (WARPS / TEAM) + warp / TEAM) * OUT;

struct alignas(16) Eight {
  T element[8];
};
struct alignas(16) Weights {
  NW element[16 / sizeof(NW)];
};
constexpr int WEIGHTS = 16 / sizeof(NW);

const Eight* row[R];
#pragma unroll
for (int r = 0; r < R; ++r) {
  // The last team's surplus rows compute the last row again.
  const size_t at = min(first + r % OUT, OUTS - 1) + (r >= OUT ? OUTS : 0);
  row[r] = reinterpret_cast<const Eight*>(w + at * K);
}
float sums[R] = {};
float squares = 0;

#pragma unroll 2
for (int chunk = mate * 32 + lane; chunk < K / 8; chunk += TEAM * 32) {
  Eight weights[R];
#pragma unroll
  for (int r = 0; r < R; ++r) {
    // Read once: it is not to drive out what is read again.
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(row[r] + chunk));
    weights[r] = *reinterpret_cast<const Eight*>(&bits);
  }
  float values[8];
  const Eight eight = *reinterpret_cast<const Eight*>(x + chunk * 8);
#pragma unroll
  for (int j = 0; j < 8; ++j) {
    values[j] = static_cast<float>(eight.element[j]);
  }
  if constexpr (NORM) {
#pragma unroll
    for (int i = 0; i < 8 / WEIGHTS; ++i) {
      const Weights some = *reinterpret_cast<const Weights*>(norm + chunk * 8 + WEIGHTS * i);
#pragma unroll
      for (int j = 0; j < WEIGHTS; ++j) {
        float& value = values[WEIGHTS * i + j];
        squares += value * value;
        value *= static_cast<float>(some.element[j]);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      sums[r] += static_cast<float>(weights[r].element[j]) * values[j];
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
if constexpr (TEAM > 1) {
  __shared__ float all[WARPS][R + 1];
  if (lane == 0) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
      all[warp][r] = sums[r];
    }
    all[warp][R] = squares;
  }
  __syncthreads();
  if (mate == 0) {
#pragma unroll
    for (int other = 1; other < TEAM; ++other) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        sums[r] += all[warp + other][r];
      }
      squares += all[warp + other][R];
    }
  }
}
if (mate != 0 || lane != 0) {
  return;
}
const float factor = NORM ? rsqrtf(squares / K + EPS) : 1.0f;
#pragma unroll
for (int r = 0; r < OUT; ++r) {
  const int to = first + r;
  if (to >= OUTS) {
    break;
  }
  y[to] = finished(sums[r] * factor, GATE != 0 ? sums[r + R - OUT] * factor : 0.0f, to, to);
}
