#include <cuda_bf16.h>
#include <cuda_fp16.h>
using int32_t = int;
using uint32_t = unsigned int;
using int64_t = long long;
template <typename T> struct Extents {
T at[4];
__device__ T operator[](int axis) const { return at[axis]; }
};
using Shape = Extents<int32_t>;
using Strides = Extents<int64_t>;
