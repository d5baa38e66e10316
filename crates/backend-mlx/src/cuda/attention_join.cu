// The parts of attention.cu as one: `sums` [rows, heads, parts, D] and `stats` [rows, heads, parts, 2]
// give `out` [rows, heads, D].
//
// Constants: T, D. Grid: D threads, rows · heads.
const int parts = sums_shape[2];
const size_t head = blockIdx.y;
float top = -3.0e38f;
for (int part = 0; part < parts; ++part) {
  top = max(top, stats[2 * (head * parts + part)]);
}
float total = 0;
float one = 0;
for (int part = 0; part < parts; ++part) {
  const size_t at = head * parts + part;
  const float factor = exp2f(stats[2 * at] - top);
  total += stats[2 * at + 1] * factor;
  one += sums[at * D + threadIdx.x] * factor;
}
out[head * D + threadIdx.x] = static_cast<T>(one / total);
