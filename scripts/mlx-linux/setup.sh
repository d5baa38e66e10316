#!/bin/sh
# Linux x86_64 only: prepares MLX (PyPI's CPU wheel) and mlx-c, so that
# `cargo build --features mlx` links them. macOS needs none of this.
# Safe to repeat; run it again after moving the checkout (the paths it writes are absolute).
set -eu
fail() { echo "mlx-linux: $*" >&2; exit 1; }
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "mlx-linux: not needed on $(uname -sm)"
  exit 0
fi
MLX=0.32.2      # what mlx-sys 0.7.0's mlx-c pins (GIT_TAG in its CMakeLists.txt)
SYS=0.7.0
here=$(cd "$(dirname "$0")" && pwd)
repo=$(cd "$here/../.." && pwd)
out=$repo/.mlx-linux
stamp="$MLX $SYS $repo $(cat "$here"/*.h "$here"/*.c "$here"/setup.sh "$here"/bindings.rs | cksum)"
if [ -f "$out/stamp" ] && [ "$(cat "$out/stamp")" = "$stamp" ] && [ -f "$repo/.cargo/config.toml" ]; then
  echo "mlx-linux: ready"
  exit 0
fi
for tool in python3 c++ cc ar cargo; do
  command -v "$tool" >/dev/null || fail "$tool is missing (Debian: apt-get install g++ python3-pip)"
done
python3 -m pip --version >/dev/null 2>&1 || fail "pip is missing (Debian: apt-get install python3-pip)"
mkdir -p "$out/obj" "$repo/.cargo"
rm -f "$out/stamp"
if [ "$(cat "$out/wheel" 2>/dev/null)" != "$MLX" ]; then
  rm -f "$out/wheel"
  python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --upgrade --target "$out/site" "mlx-cpu==$MLX" ||
    fail "PyPI's mlx-cpu==$MLX cannot be installed: it needs the network and glibc 2.35 or newer"
  echo "$MLX" > "$out/wheel"
fi
cd "$repo"
metadata=$(cargo metadata --format-version 1 --all-features) || fail "cargo metadata failed"
c=$(printf '%s' "$metadata" | python3 -c 'import json,sys,os
print(next((os.path.dirname(p["manifest_path"]) for p in json.load(sys.stdin)["packages"] if p["name"]=="mlx-sys" and p["version"]==sys.argv[1]), ""))' "$SYS")/src/mlx-c
[ -d "$c" ] || fail "the workspace does not depend on mlx-sys $SYS: this script is for that version"
grep -q "GIT_TAG v$MLX" "$c/CMakeLists.txt" || fail "mlx-sys $SYS does not pin MLX $MLX"
ls "$c"/mlx/c/*.cpp | grep -v /object.cpp | xargs -d '\n' -P "$(nproc)" -I{} sh -c \
  'c++ -std=c++20 -O2 -DNDEBUG -fPIC -include "$0/half_shim.h" -include "$0/format_shim.h" -I"$1" -I"$2/site/mlx/include" -c "$3" -o "$2/obj/$(basename "$3" .cpp).o"' "$here" "$c" "$out" {} ||
  fail "mlx-c did not compile (g++ 12 is known to work)"
cc -O2 -fPIC -c "$here/mach_shim.c" -o "$out/obj/mach_shim.o"
# Whole or not at all, and untouched where nothing changed: another build may be linking.
ar rcsD "$out/libmlxc.a.new" "$out"/obj/*.o
mv "$out/libmlxc.a.new" "$out/libmlxc.a"
cmp -s "$here/bindings.rs" "$out/bindings.rs" || cp "$here/bindings.rs" "$out/bindings.rs"
cat > "$out/config.toml" <<T
# Written by scripts/mlx-linux/setup.sh. Replaces mlx-sys's build script on this target only.
[target.x86_64-unknown-linux-gnu.mlx]
rustc-link-search = ["native=$out", "native=$out/site/mlx/lib"]
rustc-link-lib = ["static=mlxc", "dylib=mlx", "dylib=stdc++"]
rustc-env = { OUT_DIR = "$out" }

[target.x86_64-unknown-linux-gnu]
rustflags = ["-C", "link-arg=-Wl,--enable-new-dtags,-rpath,$out/site/mlx/lib"]
# The same for the examples in documentation.
rustdocflags = ["-C", "link-arg=-Wl,--enable-new-dtags,-rpath,$out/site/mlx/lib"]
T
cmp -s "$out/config.toml" "$repo/.cargo/config.toml" || cp "$out/config.toml" "$repo/.cargo/config.toml"
echo "$stamp" > "$out/stamp"
echo "mlx-linux: ready; cargo build --release --features mlx"
