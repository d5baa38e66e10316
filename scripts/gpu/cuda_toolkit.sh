#!/usr/bin/env bash
# CUDA 13.0's compiler and what programs link with, from PyPI, for a machine without a GPU: cuda_toolkit.sh DIR
# DIR becomes a CUDA_HOME. Its libcuda.so is a stub that programs link with; the real one is the GPU's driver.
set -euo pipefail
[ $# = 1 ] || { sed -n 2,3p "$0" >&2; exit 1; }
mkdir -p "$1"
home=$(cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
platforms=()
for glibc in 28 27 17 12; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
python3 -m pip download -q --no-deps --only-binary=:all: "${platforms[@]}" \
  --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 -d "$work" \
  nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
  nvidia-cuda-cccl==13.0.85 nvidia-cuda-nvrtc==13.0.88 nvidia-curand==10.4.0.35 nvidia-cublas==13.0.2.14
for wheel in "$work"/*.whl; do python3 -m zipfile -e "$wheel" "$work/all"; done
cp -r "$work"/all/nvidia/cu13/. "$home"
chmod +x "$home"/bin/* "$home"/nvvm/bin/*
ln -sfn lib "$home/lib64"
# Linkers look for names without versions.
for lib in "$home"/lib/lib*.so.*; do
  ln -sf "$(basename "$lib")" "${lib%%.so.*}.so"
done
# Every function of the driver that its header declares.
grep -ohE '\bcu[A-Z][A-Za-z0-9]*(_v[0-9]+|_ptsz|_ptds)*' "$home/include/cuda.h" | sort -u |
  sed 's/.*/void &(void) {}/' >"$work/stub.c"
gcc -shared -Wl,-soname,libcuda.so.1 -o "$home/lib/libcuda.so" "$work/stub.c"
