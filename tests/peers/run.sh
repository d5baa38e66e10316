#!/usr/bin/env bash
# Models that Biplane writes, in mlx-lm and in llama.cpp.
#
#   tests/peers/run.sh [BINARY]     target/release/biplane where no binary is named
#
# Needs Python 3.10 and the test models ($BIPLANE_TEST_MODELS); the programs come from PyPI, pinned, into .venv
# beside this file.
set -euo pipefail
binary=$(realpath "${1:-$(dirname "$0")/../../target/release/biplane}")
cd "$(dirname "$0")"
models=$(realpath "${BIPLANE_TEST_MODELS:-$PWD/../../models}")
if ! cmp -s requirements.txt .venv/installed.txt; then
  python3 -m venv --clear .venv
  .venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
  cp requirements.txt .venv/installed.txt
fi
.venv/bin/python peers.py "$binary" "$models"
