// Eight 4-bit codes of two rows on tensor cores.
//
// Constants: T, T2, IS_BF16.
constexpr bool HALF = sizeof(T) == 2 && !IS_BF16;

// The values of a word's codes j and j + 4, side by side.
auto values_of = [](uint32_t word, T2 scale, T2 offset, uint32_t (&values)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    // 128 + code in bfloat16, or 1024 + code in half.
    uint32_t two = ((word >> (4 * j)) & 0x000f000fu) | (HALF ? 0x64006400u : 0x43004300u);
    const T base = static_cast<T>(HALF ? 1024.0f : 128.0f);
    T2 code = __hsub2(*reinterpret_cast<T2*>(&two), T2{base, base});
    code = __hfma2(code, scale, offset);
    values[j] = *reinterpret_cast<uint32_t*>(&code);
  }
};

// Adds their products with a lane's eight elements of eight columns, in the same order.
auto multiply = [](float (&c)[4], const uint32_t (&values)[2][4], const uint32_t (&columns)[4]) {
#pragma unroll
  for (int pair = 0; pair < 2; ++pair) {
    if constexpr (HALF) {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(values[0][2 * pair]), "r"(values[1][2 * pair]), "r"(values[0][2 * pair + 1]),
            "r"(values[1][2 * pair + 1]), "r"(columns[2 * pair]), "r"(columns[2 * pair + 1]));
    } else {
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
          : "r"(values[0][2 * pair]), "r"(values[1][2 * pair]), "r"(values[0][2 * pair + 1]),
            "r"(values[1][2 * pair + 1]), "r"(columns[2 * pair]), "r"(columns[2 * pair + 1]));
    }
  }
};
