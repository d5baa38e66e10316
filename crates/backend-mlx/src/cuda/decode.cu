// One token of each of some sequences: RMSNorm of its query and key heads, rotation, its key and value
// written to the caches, and attention to all keys that it sees. A block takes the query heads of one
// key head of one row, and a part of the keys; the last of a row's blocks joins their results.
//
// qkv [rows, (heads + 2 · kv_heads) · D]; k and v [.., rows, kv_heads, capacity, D], written at `end`;
// cos and sin [rows, freqs]; mask [rows, end + 1 - seen], added to the scores; at [seen + 1, end + 1], whose
// elements are not read;
// counts: a zero for each row's key head, left as zeros. sums are the parts' results.
//
// Constants: T, D, G (query heads of a key head), KV (key heads), RANK (of k and v), NORM with NW and EPS,
// SCALE, MASKED, INTERLEAVED, FREQS. Grid: parts, KV, rows.
constexpr int WARPS = 8;
// A lane's elements of a head; LANES of a warp share a key.
constexpr int EACH = G > 4 ? 8 : 16;
constexpr int LANES = D / EACH;
constexpr int KEYS = 32 / LANES;
// Keys whose elements a lane asks for at once.
constexpr int AT_ONCE = 2;
constexpr float HIDDEN = -3.0e38f;

const int lane = threadIdx.x % 32;
const int warp = threadIdx.x / 32;
const int part = blockIdx.x;
const int parts = gridDim.x;
const int kv_head = blockIdx.y;
const int row = blockIdx.z;
const int seen = at_shape[0] - 1;
const int end = at_shape[1] - 1;

struct alignas(16) Eight {
  T element[8];
};

T* keys = const_cast<T*>(k) + kv_head * k_strides[RANK - 3] + (RANK == 4 ? row * k_strides[0] : 0);
T* values = const_cast<T*>(v) + kv_head * v_strides[RANK - 3] + (RANK == 4 ? row * v_strides[0] : 0);
const int64_t key_step = k_strides[RANK - 2];
const int64_t value_step = v_strides[RANK - 2];
const T* mine = qkv + static_cast<size_t>(row) * (G + 2) * KV * D;
const int column = lane % LANES * EACH;

// Keys before the new one, a run for each part.
const int old = end - seen;
const int run = (old + parts - 1) / parts;
const int begin = min(part * run, old);
const int stop = min(begin + run, old);

Eight key_parts[AT_ONCE][EACH / 8];
Eight value_parts[AT_ONCE][EACH / 8];
auto fetch = [&](int first) {
#pragma unroll
  for (int u = 0; u < AT_ONCE; ++u) {
    const int key = first + (u * WARPS + warp) * KEYS + lane / LANES;
    // Any key that exists stands in for one that does not.
    const int place = seen + max(min(key, stop - 1), 0);
    const Eight* from = reinterpret_cast<const Eight*>(keys + place * key_step + column);
    const Eight* also = reinterpret_cast<const Eight*>(values + place * value_step + column);
#pragma unroll
    for (int i = 0; i < EACH / 8; ++i) {
      key_parts[u][i] = from[i];
      value_parts[u][i] = also[i];
    }
  }
};
// They are under way while the heads are made ready.
fetch(begin);

// The heads, normed and turned: queries times the scale (in base 2), then the key.
__shared__ float heads[G + 1][D];
for (int head = warp; head <= G; head += WARPS) {
  const T* from = mine + (head < G ? kv_head * G + head : G * KV + kv_head) * D;
  float factor = 1;
  if constexpr (NORM) {
    float squares = 0;
#pragma unroll
    for (int i = lane; i < D; i += 32) {
      const float value = static_cast<float>(from[i]);
      squares += value * value;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      squares += __shfl_xor_sync(0xffffffffu, squares, step);
    }
    factor = rsqrtf(squares / D + EPS);
  }
  const NW* weight = head < G ? q_norm : k_norm;
  auto value = [&](int i) {
    float one = static_cast<float>(from[i]);
    if constexpr (NORM) {
      // As norm and rotation apart, which round between them.
      one = static_cast<float>(static_cast<T>(one * factor * static_cast<float>(weight[i])));
    }
    return one;
  };
#pragma unroll
  for (int i = lane; i < D; i += 32) {
    float one = value(i);
    if (i < 2 * FREQS) {
      const int freq = INTERLEAVED ? i / 2 : i % FREQS;
      const bool second = INTERLEAVED ? i % 2 == 1 : i >= FREQS;
      const float other = value(INTERLEAVED ? i ^ 1 : (second ? i - FREQS : i + FREQS));
      const float c = cos[row * FREQS + freq];
      const float s = sin[row * FREQS + freq];
      one = second ? one * c + other * s : one * c - other * s;
    }
    // Rounded, as the cache holds it.
    one = static_cast<float>(static_cast<T>(one));
    heads[head][i] = head < G ? one * SCALE * 1.44269504f : one;
    if (head == G && part == 0) {
      keys[end * key_step + i] = static_cast<T>(one);
    }
  }
}
const T* new_value = mine + ((G + 1) * KV + kv_head) * D;
if (part == 0) {
  for (int i = threadIdx.x; i < D; i += WARPS * 32) {
    values[end * value_step + i] = new_value[i];
  }
}
__syncthreads();

float query[G][EACH];
float sum[G][EACH];
float top[G];
float total[G];
#pragma unroll
for (int g = 0; g < G; ++g) {
  top[g] = HIDDEN;
  total[g] = 0;
#pragma unroll
  for (int i = 0; i < EACH; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(&heads[g][column + i]);
    query[g][i] = four.x;
    query[g][i + 1] = four.y;
    query[g][i + 2] = four.z;
    query[g][i + 3] = four.w;
    sum[g][i] = sum[g][i + 1] = sum[g][i + 2] = sum[g][i + 3] = 0;
  }
}
// The new key is the first part's.
if (part == 0 && warp == 0) {
  float hidden = 0;
  if constexpr (MASKED) {
    hidden = static_cast<float>(mask[row * mask_strides[0] + old * mask_strides[1]]);
  }
  const bool is_mine = lane < LANES && hidden > HIDDEN;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    float score = 0;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      score += query[g][i] * heads[G][column + i];
    }
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) {
      score += __shfl_xor_sync(0xffffffffu, score, step);
    }
    if (is_mine) {
      top[g] = score + hidden * 1.44269504f;
      total[g] = 1;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        sum[g][i] = static_cast<float>(new_value[column + i]);
      }
    }
  }
}

for (int first = begin; first < stop; first += WARPS * KEYS * AT_ONCE) {
  if (first != begin) {
    fetch(first);
  }
  float score[AT_ONCE][G];
#pragma unroll
  for (int u = 0; u < AT_ONCE; ++u) {
    float element[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      element[i] = static_cast<float>(key_parts[u][i / 8].element[i % 8]);
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      score[u][g] = 0;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        score[u][g] += query[g][i] * element[i];
      }
    }
  }
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) {
#pragma unroll
    for (int u = 0; u < AT_ONCE; ++u) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        score[u][g] += __shfl_xor_sync(0xffffffffu, score[u][g], step);
      }
    }
  }
  float higher[G];
#pragma unroll
  for (int g = 0; g < G; ++g) {
    higher[g] = top[g];
  }
#pragma unroll
  for (int u = 0; u < AT_ONCE; ++u) {
    const int key = first + (u * WARPS + warp) * KEYS + lane / LANES;
    bool visible = key < stop;
    float hidden = 0;
    if constexpr (MASKED) {
      const int64_t where = max(min(key, stop - 1), 0);
      hidden = static_cast<float>(mask[row * mask_strides[0] + where * mask_strides[1]]);
      visible = visible && hidden > HIDDEN;
      hidden *= 1.44269504f;
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      score[u][g] = visible ? score[u][g] + (MASKED ? hidden : 0.0f) : HIDDEN;
      higher[g] = max(higher[g], score[u][g]);
    }
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    const float factor = exp2f(top[g] - higher[g]);
    top[g] = higher[g];
    total[g] *= factor;
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      sum[g][i] *= factor;
    }
  }
#pragma unroll
  for (int u = 0; u < AT_ONCE; ++u) {
    float element[EACH];
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      element[i] = static_cast<float>(value_parts[u][i / 8].element[i % 8]);
    }
#pragma unroll
    for (int g = 0; g < G; ++g) {
      const float weight = score[u][g] > -2.9e38f ? exp2f(score[u][g] - top[g]) : 0.0f;
      total[g] += weight;
#pragma unroll
      for (int i = 0; i < EACH; ++i) {
        sum[g][i] += weight * element[i];
      }
    }
  }
}

// The lanes of a warp, then its block's warps.
__shared__ float tops[WARPS][G];
__shared__ float totals[WARPS][G];
__shared__ float sums_of[WARPS][G][D];
#pragma unroll
for (int g = 0; g < G; ++g) {
  float highest = top[g];
#pragma unroll
  for (int step = LANES; step < 32; step *= 2) {
    highest = max(highest, __shfl_xor_sync(0xffffffffu, highest, step));
  }
  const float factor = exp2f(top[g] - highest);
  total[g] *= factor;
#pragma unroll
  for (int i = 0; i < EACH; ++i) {
    sum[g][i] *= factor;
  }
#pragma unroll
  for (int step = LANES; step < 32; step *= 2) {
    total[g] += __shfl_xor_sync(0xffffffffu, total[g], step);
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      sum[g][i] += __shfl_xor_sync(0xffffffffu, sum[g][i], step);
    }
  }
  if (lane < LANES) {
#pragma unroll
    for (int i = 0; i < EACH; i += 4) {
      *reinterpret_cast<float4*>(&sums_of[warp][g][column + i]) =
          make_float4(sum[g][i], sum[g][i + 1], sum[g][i + 2], sum[g][i + 3]);
    }
  }
  if (lane == 0) {
    tops[warp][g] = highest;
    totals[warp][g] = total[g];
  }
}
__syncthreads();

const size_t group = static_cast<size_t>(row) * KV + kv_head;
// Of each part: G · D sums, G highest scores, G totals.
float* results = sums + group * parts * G * (D + 2);
for (int i = threadIdx.x; i < G * D; i += WARPS * 32) {
  const int g = i / D;
  float highest = HIDDEN;
#pragma unroll
  for (int other = 0; other < WARPS; ++other) {
    highest = max(highest, tops[other][g]);
  }
  float one = 0;
  float weights = 0;
#pragma unroll
  for (int other = 0; other < WARPS; ++other) {
    const float factor = exp2f(tops[other][g] - highest);
    one += sums_of[other][g][i % D] * factor;
    weights += totals[other][g] * factor;
  }
  if (parts == 1) {
    out[group * G * D + i] = static_cast<T>(one / weights);
  } else {
    float* to = results + part * G * (D + 2);
    to[i] = one;
    if (i % D == 0) {
      to[G * D + g] = highest;
      to[G * D + G + g] = weights;
    }
  }
}
if (parts == 1) {
  return;
}

__shared__ bool last;
__threadfence();
__syncthreads();
if (threadIdx.x == 0) {
  uint32_t* count = const_cast<uint32_t*>(counts) + group;
  last = atomicAdd(count, 1u) == static_cast<uint32_t>(parts - 1);
  if (last) {
    *count = 0;
  }
}
__syncthreads();
if (!last) {
  return;
}
__threadfence();
for (int i = threadIdx.x; i < G * D; i += WARPS * 32) {
  const int g = i / D;
  float highest = HIDDEN;
  for (int other = 0; other < parts; ++other) {
    highest = max(highest, __ldcg(results + other * G * (D + 2) + G * D + g));
  }
  float one = 0;
  float weights = 0;
  for (int other = 0; other < parts; ++other) {
    const float* from = results + other * G * (D + 2);
    const float factor = exp2f(__ldcg(from + G * D + g) - highest);
    one += __ldcg(from + i) * factor;
    weights += __ldcg(from + G * D + G + g) * factor;
  }
  out[group * G * D + i] = static_cast<T>(one / weights);
}
