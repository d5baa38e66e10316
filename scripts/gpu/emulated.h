// What the kernels in crates/backend-mlx/src/cuda need of CUDA, on a processor: a thread for each thread of a block, one
// block after the other. For emulate.py.
#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

template <typename E> static constexpr E min(E a, E b) { return b < a ? b : a; }
template <typename E> static constexpr E max(E a, E b) { return a < b ? b : a; }
using T = _Float16;
template <typename E> struct Extents {
  E at[4];
  E operator[](int axis) const { return at[axis]; }
};
using Shape = Extents<int>;
using Strides = Extents<long long>;
struct alignas(16) float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
struct alignas(16) uint4 { uint32_t x, y, z, w; };
static uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
struct T2 { T x, y; };
static T2 __hsub2(T2 a, T2 b) { return {T(float(a.x) - float(b.x)), T(float(a.y) - float(b.y))}; }
static T2 __hfma2(T2 a, T2 b, T2 c) { return {T(fmaf(a.x, b.x, c.x)), T(fmaf(a.y, b.y, c.y))}; }

struct Place { int x, y, z; };
static thread_local Place threadIdx;
static Place blockIdx, gridDim, blockDim;
static pthread_barrier_t whole, warps[32];
static float swapped[32][32];
static uint32_t fragments[32][32][6];

#define __shared__ static
static void meet_warp() { pthread_barrier_wait(&warps[threadIdx.x / 32]); }
static void __syncthreads() { pthread_barrier_wait(&whole); }
static void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static uint32_t atomicAdd(uint32_t* p, uint32_t n) { return __atomic_fetch_add(p, n, __ATOMIC_SEQ_CST); }
static float __ldcg(const float* p) { return *p; }
template <typename E> static E __ldcs(const E* p) { return *p; }
static float rsqrtf(float x) { return 1 / std::sqrt(x); }
static float __shfl_xor_sync(unsigned, float one, int step) {
  auto& mine = swapped[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  mine[lane] = one;
  meet_warp();
  const float other = mine[lane ^ step];
  meet_warp();
  return other;
}
static uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t which) {
  const uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t all = 0;
  for (int i = 0; i < 4; ++i) {
    all |= uint32_t(bytes >> (8 * (which >> (4 * i) & 7)) & 255) << (8 * i);
  }
  return all;
}

static float half_of(uint32_t two, int which) {
  const uint16_t bits = which ? two >> 16 : two;
  T value;
  memcpy(&value, &bits, 2);
  return value;
}
// mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32, by PTX's layout of fragments.
static void mma(float* c, uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  auto& of = fragments[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  const uint32_t mine[6] = {a0, a1, a2, a3, b0, b1};
  memcpy(of[lane], mine, sizeof mine);
  meet_warp();
  for (int i = 0; i < 4; ++i) {
    for (int k = 0; k < 16; ++k) {
      const int quarter = k % 8 / 2;
      const float a = half_of(of[lane / 4 * 4 + quarter][k / 8 * 2 + i / 2], k % 2);
      c[i] += a * half_of(of[(lane % 4 * 2 + i % 2) * 4 + quarter][4 + k / 8], k % 2);
    }
  }
  meet_warp();
}

static void launch(Place grid, int threads, std::function<void()> kernel) {
  gridDim = grid;
  blockDim = {threads, 1, 1};
  pthread_barrier_init(&whole, nullptr, threads);
  for (auto& warp : warps) pthread_barrier_init(&warp, nullptr, 32);
  for (int i = 0; i < grid.x * grid.y * grid.z; ++i) {
    blockIdx = {i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y};
    std::vector<std::thread> all;
    for (int t = 0; t < threads; ++t) {
      all.emplace_back([&, t] { threadIdx = {t, 0, 0}; kernel(); });
    }
    for (auto& thread : all) thread.join();
  }
}

static std::mt19937 numbers(1);
template <typename E> static std::vector<E> some(size_t n, float size) {
  std::uniform_real_distribution<float> between(-size, size);
  std::vector<E> all(n);
  for (auto& one : all) one = E(between(numbers));
  return all;
}
static int wrong = 0;
static void report(const char* what, double error, double allowed) {
  const bool right = error <= allowed;
  printf("%s %s: %.1e\n", right ? "ok   " : "WRONG", what, error);
  wrong += !right;
}

struct Given {
  const T* x;
  const void* w;
  const T *scales, *biases;
  const float* norm;
  const T *bias, *add;
  T* y;
  Shape x_shape;
};
// x · Wᵀ and what surrounds it, of M rows, beside the kernel's result.
template <int M, int N, int K, int GROUP, bool NORM, int GATE, bool BIAS, bool ADD>
static void product(const char* what, Place grid, int threads, std::function<void(const Given&)> kernel) {
  constexpr bool DENSE = GROUP == 1;
  constexpr int OUTS = GATE ? N / 2 : N;
  auto x = some<T>(size_t(M) * K, 2), w = some<T>(DENSE ? size_t(N) * K : 1, 0.5f);
  auto scales = some<T>(size_t(N) * K / GROUP, 0.05f), biases = some<T>(size_t(N) * K / GROUP, 0.3f);
  auto bias = some<T>(N, 1), add = some<T>(size_t(M) * OUTS, 1);
  auto norm = some<float>(K, 1);
  std::vector<uint32_t> codes((size_t)N * K / 8);
  for (auto& word : codes) word = numbers();
  std::vector<T> y((size_t)M * OUTS, T(777));
  const void* weights = DENSE ? static_cast<const void*>(w.data()) : codes.data();
  const Given given = {x.data(), weights, scales.data(), biases.data(), norm.data(), bias.data(), add.data(), y.data(),
                       {{M, K, 0, 0}}};
  launch(grid, threads, [&] { kernel(given); });
  double worst = 0;
  for (int m = 0; m < M; ++m) {
    const T* row = x.data() + size_t(m) * K;
    double squares = 0;
    for (int k = 0; k < K; ++k) squares += double(row[k]) * double(row[k]);
    std::vector<double> sums(N);
    for (int n = 0; n < N; ++n) {
      double sum = 0;
      for (int k = 0; k < K; ++k) {
        const size_t at = size_t(n) * K + k;
        const int code = codes[at / 8] >> (4 * (k % 8)) & 15;
        const T weight = DENSE ? w[DENSE ? at : 0] : T(code * float(scales[at / GROUP]) + float(biases[at / GROUP]));
        sum += double(weight) * double(row[k]) * (NORM ? norm[k] : 1.0f);
      }
      sums[n] = (NORM ? sum / std::sqrt(squares / K + 1e-5) : sum) + (BIAS ? double(bias[n]) : 0);
    }
    for (int n = 0; n < OUTS; ++n) {
      double one = sums[n];
      if (GATE == 1) one = one / (1 + std::exp(-one)) * sums[n + N / 2];
      if (GATE == 2) {
        one = 0.5 * one * (1 + std::tanh(0.7978845608 * (one + 0.044715 * one * one * one))) * sums[n + N / 2];
      }
      if (ADD) one += double(add[size_t(m) * OUTS + n]);
      const double error = std::fabs(one - double(y[size_t(m) * OUTS + n])) / (1 + std::fabs(one));
      if (!(error <= worst)) worst = error;
    }
  }
  report(what, worst, 2e-3);
}

struct Attended {
  const T *qkv, *k, *v;
  Strides strides;
  const float *cos, *sin;
  Shape at;
  const uint32_t* counts;
  const float *q_norm, *k_norm;
  const T* mask;
  Strides mask_strides;
  T* out;
  float* sums;
};
// A token's attention beside the kernel's outputs and the caches that it leaves.
template <int D, int G, int KV, int RANK, int FREQS, bool NORM, bool MASKED, bool INTERLEAVED>
static void attention(const char* what, int rows, int seen, int end, int parts, std::function<void(const Attended&)> kernel) {
  constexpr float EPS = 1e-5f, SCALE = 0.11f;
  const int capacity = end + 5, len = end + 1 - seen;
  auto qkv = some<T>(size_t(rows) * (G + 2) * KV * D, 1);
  auto k = some<T>(size_t(rows) * KV * capacity * D, 1), v = some<T>(k.size(), 1);
  auto cos = some<float>(rows * FREQS, 1), sin = some<float>(rows * FREQS, 1);
  auto q_norm = some<float>(D, 1), k_norm = some<float>(D, 1);
  std::vector<T> mask((size_t)rows * len);
  for (int i = 0; i < rows * len; ++i) mask[i] = i % len < 2 * (i / len) && i % len < len - 1 ? T(-INFINITY) : T(0);
  std::vector<uint32_t> counts(rows * KV, 0);
  std::vector<T> out((size_t)rows * KV * G * D);
  std::vector<float> sums((size_t)rows * KV * G * parts * (D + 2));
  const long long head = (long long)capacity * D;
  const Strides strides = RANK == 4 ? Strides{{KV * head, head, D, 1}} : Strides{{head, D, 1, 0}};
  const auto old_k = k, old_v = v;
  const Attended given = {qkv.data(), k.data(), v.data(), strides, cos.data(), sin.data(), {{seen + 1, end + 1, 0, 0}},
                          counts.data(), q_norm.data(), k_norm.data(), mask.data(), {{len, 1, 0, 0}}, out.data(), sums.data()};
  launch({parts, KV, rows}, 256, [&] { kernel(given); });
  double worst = 0, kept = 0;
  for (auto count : counts) kept += count;
  for (int row = 0; row < rows; ++row) {
    for (int h = 0; h < KV; ++h) {
      auto made = [&](const T* from, const float* weight) {
        double squares = 0;
        for (int i = 0; i < D; ++i) squares += double(from[i]) * double(from[i]);
        const float factor = NORM ? 1 / std::sqrt(squares / D + EPS) : 1;
        std::vector<float> x(D), y;
        for (int i = 0; i < D; ++i) x[i] = NORM ? float(T(float(from[i]) * factor * weight[i])) : float(from[i]);
        y = x;
        for (int i = 0; i < 2 * FREQS; ++i) {
          const int freq = INTERLEAVED ? i / 2 : i % FREQS;
          const bool second = INTERLEAVED ? i % 2 : i >= FREQS;
          const float other = x[INTERLEAVED ? i ^ 1 : second ? i - FREQS : i + FREQS];
          const float c = cos[row * FREQS + freq], s = sin[row * FREQS + freq];
          y[i] = second ? x[i] * c + other * s : x[i] * c - other * s;
        }
        for (auto& one : y) one = float(T(one));
        return y;
      };
      const T* mine = qkv.data() + size_t(row) * (G + 2) * KV * D;
      const size_t base = (size_t(row) * KV + h) * capacity * D;
      const auto new_key = made(mine + (G * KV + h) * D, k_norm.data());
      const T* new_value = mine + ((G + 1) * KV + h) * D;
      auto key = [&](int t, int i) { return t == end ? new_key[i] : float(old_k[base + size_t(t) * D + i]); };
      auto value = [&](int t, int i) { return float(t == end ? new_value[i] : old_v[base + size_t(t) * D + i]); };
      for (int t = 0; t < capacity; ++t) {
        for (int i = 0; i < D; ++i) {
          const size_t at = base + size_t(t) * D + i;
          kept = max(kept, double(std::fabs(float(k[at]) - key(t, i))));
          kept = max(kept, double(std::fabs(float(v[at]) - value(t, i))));
        }
      }
      for (int g = 0; g < G; ++g) {
        const auto query = made(mine + (h * G + g) * D, q_norm.data());
        std::vector<double> weights(len);
        double top = -1e30, total = 0;
        for (int t = 0; t < len; ++t) {
          for (int i = 0; i < D; ++i) weights[t] += double(query[i]) * key(seen + t, i) * SCALE;
          if (MASKED) weights[t] += double(mask[row * len + t]);
          top = max(top, weights[t]);
        }
        for (auto& one : weights) total += one = std::exp(one - top);
        for (int i = 0; i < D; ++i) {
          double one = 0;
          for (int t = 0; t < len; ++t) one += weights[t] / total * value(seen + t, i);
          const double error = std::fabs(one - double(out[((size_t(row) * KV + h) * G + g) * D + i]));
          if (!(error <= worst)) worst = error;
        }
      }
    }
  }
  report(what, worst, 1e-3);
  report("  and its caches", kept, 2e-3);
}
