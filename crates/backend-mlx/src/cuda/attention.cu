// Attention of one query a row: q [rows, heads, D], k and v [rows, kv_heads, len, D], whose elements of
// a head lie side by side, and a mask [rows, len] that is added to the scores. A block takes one head of one row and a part of the
// keys, a warp every 32nd run of KEYS of them.
//
// One part gives `out` [rows, heads, D]; of more parts each gives sums that are not divided yet, and
// `stats` [rows, heads, parts, 2] the largest score and the sum of weights.
//
// Constants: T, D, KEYS, MASKED, O (element type of `out`). Grid: parts, heads, rows.
constexpr int WARPS = 32;
constexpr int EACH = D / 32;

const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int part = blockIdx.x;
const int parts = gridDim.x;
const int head = blockIdx.y;
const int row = blockIdx.z;
const int len = k_shape[2];
const int kv_head = head / (gridDim.y / k_shape[1]);

const T* keys = k + row * k_strides[0] + kv_head * k_strides[1] + lane * EACH;
const T* values = v + row * v_strides[0] + kv_head * v_strides[1] + lane * EACH;
const int64_t key_step = k_strides[2];
const int64_t value_step = v_strides[2];

float query[EACH];
float sum[EACH] = {};
#pragma unroll
for (int i = 0; i < EACH; ++i) {
  const int64_t at = row * q_strides[0] + head * q_strides[1] + lane * EACH + i;
  // Base 2, which the processor has.
  query[i] = static_cast<float>(q[at]) * scale[0] * 1.44269504f;
}

struct alignas(EACH * sizeof(T)) Run {
  T element[EACH];
};

float largest = -3.0e38f;
float weights = 0;
for (int first = (part * WARPS + warp) * KEYS; first < len; first += parts * WARPS * KEYS) {
  Run key[KEYS];
  Run value[KEYS];
  float score[KEYS];
#pragma unroll
  for (int j = 0; j < KEYS; ++j) {
    const int at = min(first + j, len - 1);
    key[j] = *reinterpret_cast<const Run*>(keys + at * key_step);
    value[j] = *reinterpret_cast<const Run*>(values + at * value_step);
  }
#pragma unroll
  for (int j = 0; j < KEYS; ++j) {
    score[j] = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      score[j] += query[i] * static_cast<float>(key[j].element[i]);
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      score[j] += __shfl_xor_sync(0xffffffffu, score[j], step);
    }
  }
  float top = largest;
#pragma unroll
  for (int j = 0; j < KEYS; ++j) {
    bool seen = first + j < len;
    if constexpr (MASKED) {
      if (seen) {
        const float hidden = static_cast<float>(mask[row * mask_strides[0] + (first + j) * mask_strides[1]]);
        score[j] += hidden * 1.44269504f;
        seen = hidden > -3.0e38f;
      }
    }
    score[j] = seen ? score[j] : -3.0e38f;
    top = max(top, score[j]);
  }
  const float factor = exp2f(largest - top);
  weights *= factor;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    sum[i] *= factor;
  }
#pragma unroll
  for (int j = 0; j < KEYS; ++j) {
    const float weight = score[j] > -2.9e38f ? exp2f(score[j] - top) : 0.0f;
    weights += weight;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      sum[i] += weight * static_cast<float>(value[j].element[i]);
    }
  }
  largest = top;
}

__shared__ float tops[WARPS];
__shared__ float totals[WARPS];
__shared__ float sums[WARPS][D + 1];
if (lane == 0) {
  tops[warp] = largest;
  totals[warp] = weights;
}
#pragma unroll
for (int i = 0; i < EACH; ++i) {
  sums[warp][lane * EACH + i] = sum[i];
}
__syncthreads();

float top = tops[lane];
#pragma unroll
for (int step = 16; step > 0; step /= 2) {
  top = max(top, __shfl_xor_sync(0xffffffffu, top, step));
}
const float factor = exp2f(tops[lane] - top);
float total = totals[lane] * factor;
#pragma unroll
for (int step = 16; step > 0; step /= 2) {
  total += __shfl_xor_sync(0xffffffffu, total, step);
}
const size_t block = (static_cast<size_t>(row) * gridDim.y + head) * parts + part;
for (int i = warp; i < D; i += WARPS) {
  float one = sums[lane][i] * factor;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    one += __shfl_xor_sync(0xffffffffu, one, step);
  }
  if (lane == 0) {
    out[block * D + i] = static_cast<O>(parts == 1 ? one / total : one);
  }
}
if (threadIdx.x == 0) {
  stats[2 * block] = top;
  stats[2 * block + 1] = total;
}
