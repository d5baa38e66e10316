#!/usr/bin/env bash
# Packs a biplane binary and MLX's CUDA library into one archive for a GPU machine: pack.sh BINARY OUT.tar.xz
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# = 2 ] || { sed -n 2p "$0" >&2; exit 1; }
binary=$1 out=$2 version=0.32.2 arch=${GPU_ARCH:-90}
ldd "$binary" | grep -q libmlx || { echo "$binary is not linked with MLX: build it with --features mlx" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
site=$work/gpu/site
wheels=("mlx-cuda-13==$version")
[ -z "${WITH_MLX_LM:-}" ] || wheels+=("mlx==$version" "mlx-lm==$version")
python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
  --platform manylinux_2_35_x86_64 -d "$work/wheels" "${wheels[@]}"
mkdir -p "$site"
for wheel in "$work"/wheels/*.whl; do python3 -m zipfile -e "$wheel" "$site"; done
strip -o "$work/libmlx.so" "$site/mlx/lib/libmlx.so"
python3 "$here/keep_one_arch.py" "$work/libmlx.so" "$site/mlx/lib/libmlx.so" "$arch"
strip -o "$work/gpu/biplane" "$binary"
chmod +x "$work/gpu/biplane"
cp "$here"/env.sh "$here"/*.py "$work/gpu/"
tar -C "$work" -cf - gpu | xz -T0 -${XZ_LEVEL:-6} >"$out"
ls -l "$out"
