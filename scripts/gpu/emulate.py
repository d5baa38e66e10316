#!/usr/bin/env python3
"""Runs the sources of Biplane's CUDA kernels on a processor, beside plain loops: emulate.py

Needs a C++ compiler (CXX, or c++). Halves only, and sizes that a processor does in seconds; which launches the program
chooses is in crates/backend-mlx/src/cuda, and what a GPU makes of them only a GPU says."""
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
KERNELS = HERE.parents[1] / "crates/backend-mlx/src/cuda"


def body(name):
    text = (KERNELS / name).read_text().replace("__shared__ alignas(16) T", "alignas(16) static T")
    text = re.sub(r"^#pragma unroll.*$", "", text, flags=re.M)
    operands = re.compile(r'asm volatile\(\s*"mma[^"]*"\s*:[^:]*:([^;]*)\);')
    return operands.sub(lambda m: f"mma(c, {m[1]});".replace('"r"', ""), text)


def up(a, b):
    return -(-a // b)


def product(kernel, n, k, group=1, rows=1, norm=0, gate=0, bias=0, add=0, grid=1, threads=32, **constants):
    names = "".join(f", {key} = {value}" for key, value in constants.items())
    flags = [str(bool(flag)).lower() for flag in (norm, bias, add)]
    what = f"{kernel} {rows} by {n} by {k}, groups of {group}, norm {norm}, gate {gate}, bias {bias}, sum {add}"
    weights = "T" if group == 1 else "uint32_t"
    numbers = f"{rows}, {n}, {k}, {group}, {flags[0]}, {gate}, {flags[1]}, {flags[2]}"
    return f"""{{
using NW = float; static constexpr int N = {n}, K = {k}, GROUP = {group}, GATE = {gate}{names}; static constexpr float EPS = 1e-5f;
static constexpr bool NORM = {flags[0]}, BIAS = {flags[1]}, ADD = {flags[2]}, IS_BF16 = false;
product<{numbers}>("{what}", {{{grid}, 1, 1}}, {threads}, [](const Given& given) {{
auto [x, w_, scales, biases, norm, bias, add, y, x_shape] = given;
const {weights}* w = static_cast<const {weights}*>(w_);
{body("around.cu")}
{"" if group == 1 else body("fragments.cu")}
{body(kernel)}
}});
}}
"""


def dense(n, k, r, team, warps, **around):
    outs = n // 2 if around.get("gate") else n
    of = r // 2 if around.get("gate") else r
    return product("product.cu", n, k, R=r, TEAM=team, WARPS=warps, grid=up(outs, of * warps // team), threads=warps * 32, **around)


def codes(n, k, group, tiles, warps, segment, **around):
    outs, of = (n // 2, 16) if around.get("gate") else (n, 16 * tiles)
    return product("codes.cu", n, k, group, TILES=tiles, WARPS=warps, SEGMENT=segment, grid=up(outs, of), threads=warps * 32, **around)


def several(rows, n, k, group, tiles, warps, **around):
    outs, of = (n // 2, 16) if around.get("gate") else (n, 16 * tiles)
    eights = 1 << (up(rows, 8) - 1).bit_length()
    return product("products.cu", n, k, group, rows, TILES=tiles, WARPS=warps, TOKENS=eights, grid=up(outs, of), threads=warps * 32, **around)


def decode(d, g, kv, rank, freqs, norm, masked, interleaved, rows, seen, end, parts):
    flags = [str(bool(flag)).lower() for flag in (norm, masked, interleaved)]
    what = f"decode.cu {rows} of {g * kv}:{kv} heads of {d}, keys {seen} to {end}, {parts} parts, norm {norm}, mask {masked}"
    return f"""{{
using NW = float; static constexpr int D = {d}, G = {g}, KV = {kv}, RANK = {rank}, FREQS = {freqs};
static constexpr bool NORM = {flags[0]}, MASKED = {flags[1]}, INTERLEAVED = {flags[2]}; static constexpr float EPS = 1e-5f, SCALE = 0.11f;
attention<{d}, {g}, {kv}, {rank}, {freqs}, {", ".join(flags)}>("{what}", {rows}, {seen}, {end}, {parts}, [](const Attended& given) {{
auto [qkv, k, v, k_strides, cos, sin, at_shape, counts, q_norm, k_norm, mask, mask_strides, out, sums] = given;
const Strides v_strides = k_strides;
{body("decode.cu")}
}});
}}
"""


CASES = [
    dense(80, 576, 2, 1, 4, norm=1),
    dense(96, 2048, 4, 4, 4, norm=1, gate=1, bias=1),
    dense(33, 4096, 1, 8, 8, add=1),
    dense(50, 1152, 4, 1, 4, gate=2, add=1),
    codes(80, 576, 32, 1, 5, 640, norm=1),
    codes(96, 576, 64, 2, 3, 768, norm=1, gate=1, bias=1),
    codes(40, 640, 64, 1, 5, 640, bias=1, add=1),
    codes(64, 1152, 64, 2, 3, 1152, norm=1, gate=2, add=1),
    codes(48, 8192, 64, 1, 16, 8192, add=1),
    codes(72, 9216, 32, 2, 4, 5120, norm=1, gate=1, bias=1, add=1),
    codes(33, 2048, 128, 2, 2, 512),
    several(2, 80, 576, 32, 1, 5),
    several(9, 96, 1152, 64, 2, 3, gate=1, bias=1),
    several(32, 64, 1024, 128, 2, 8, gate=2, add=1),
    decode(64, 3, 2, 3, 16, 0, 0, 1, 1, 0, 0, 1),
    decode(64, 3, 2, 3, 32, 0, 0, 1, 1, 0, 1, 1),
    decode(128, 3, 2, 3, 64, 0, 0, 0, 1, 0, 600, 8),
    decode(128, 4, 1, 3, 64, 1, 0, 1, 1, 290, 900, 5),
    decode(256, 4, 1, 3, 128, 1, 0, 0, 1, 0, 330, 8),
    decode(128, 3, 2, 4, 16, 1, 1, 1, 3, 12, 412, 7),
    decode(64, 8, 1, 3, 32, 0, 0, 0, 1, 2, 700, 8),
    decode(128, 8, 2, 4, 64, 1, 1, 0, 5, 0, 9, 1),
]


def main():
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "all.cpp"), pathlib.Path(folder, "all")
        source.write_text(f'#include "{HERE}/emulated.h"\nint main() {{\n{"".join(CASES)}return wrong != 0;\n}}\n')
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-std=c++17", "-O1", "-w", "-pthread", source, "-o", program], check=True)
        sys.exit(subprocess.run([program]).returncode)


main()
