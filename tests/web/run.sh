#!/usr/bin/env bash
# The page's tests against a mock, then the part that holds for a real server against one.
#
#   tests/web/run.sh [BINARY]   target/release/biplane where no binary is named
#
# Needs Node 20, Chromium and a model: $BIPLANE_TEST_MODELS/smollm2-135m-instruct-q4_1.gguf.
set -euo pipefail
binary=$(realpath "${1:-$(dirname "$0")/../../target/release/biplane}")
cd "$(dirname "$0")"
model=${BIPLANE_TEST_MODELS:-$PWD/../../models}/smollm2-135m-instruct-q4_1.gguf

npm ci --no-audit --no-fund --silent
npm test --silent

said=$(mktemp)
"$binary" serve -m "$model" --device cpu --port 0 --kv-memory 512M 2>"$said" &
server=$!
trap 'kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; rm -f "$said"' EXIT
for _ in $(seq 600); do
  url=$(grep -om1 'http://[0-9.:]*' "$said" || true)
  if [ -n "$url" ] && curl -fs -o /dev/null "$url/ready"; then break; fi
  kill -0 "$server" || { cat "$said" >&2; exit 1; }
  sleep 0.1
done
BASE_URL=$url/ node --test real.test.js
