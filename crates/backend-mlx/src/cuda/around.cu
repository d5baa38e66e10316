// What follows the sums of a product of N rows, before it is written: `one` and, of a gated product, `up` are the sums of
// the row's output `to`, which is at `place` among all rows' outputs.
//
// Constants: T, N, GATE (the first half of the rows are gates: 1 SiLU, 2 GELU), BIAS and ADD (vectors that are added).
constexpr int OUTS = GATE != 0 ? N / 2 : N;
auto finished = [&](float one, float up, int to, size_t place) {
  if constexpr (BIAS) {
    one += static_cast<float>(bias[to]);
  }
  if constexpr (GATE != 0) {
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
    one += static_cast<float>(add[place]);
  }
  return static_cast<T>(one);
};
