#!/usr/bin/env bash
# The official clients, and schemathesis on /openapi.json, against a running server.
#
#   tests/clients/run.sh [BINARY]      all of it; target/release/biplane where no binary is named
#   tests/clients/run.sh BINARY NAME   only python, node or schema
#
# Needs Python 3.10, Node 20 and a model: $BIPLANE_TEST_MODELS/smollm2-135m-instruct-q4_1.gguf.
# The clients come from PyPI and npm, pinned, into .venv and node_modules beside this file.
set -euo pipefail
binary=$(realpath "${1:-$(dirname "$0")/../../target/release/biplane}")
only=${2:-all}
cd "$(dirname "$0")"
model=${BIPLANE_TEST_MODELS:-$PWD/../../models}/smollm2-135m-instruct-q4_1.gguf
export BIPLANE_KEY=clients BIPLANE_MODEL_NAME=smollm2

wants() { [ "$only" = all ] || [ "$only" = "$1" ]; }

if wants python || wants schema; then
  if ! cmp -s requirements.txt .venv/installed.txt; then
    python3 -m venv --clear .venv
    .venv/bin/pip install -q --disable-pip-version-check -r requirements.txt
    cp requirements.txt .venv/installed.txt
  fi
fi
if wants node && ! cmp -s package-lock.json node_modules/installed.json; then
  npm ci --no-audit --no-fund --silent
  cp package-lock.json node_modules/installed.json
fi

said=$(mktemp)
server=
stop() {
  if [ -n "$server" ]; then
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
  fi
}
trap 'stop; rm -f "$said"' EXIT

# start MODEL ARGUMENTS…: a server at a free port, once it is ready.
start() {
  "$binary" serve -m "$1" --model-name "$BIPLANE_MODEL_NAME" --device cpu --port 0 \
    --api-key "$BIPLANE_KEY" --kv-memory 512M "${@:2}" 2>"$said" &
  server=$!
  for _ in $(seq 600); do
    BIPLANE_URL=$(grep -om1 'http://[0-9.:]*' "$said" || true)
    if [ -n "$BIPLANE_URL" ] && curl -fs -o /dev/null "$BIPLANE_URL/ready"; then break; fi
    kill -0 "$server" || { cat "$said" >&2; exit 1; }
    sleep 0.1
  done
  export BIPLANE_URL
}

alive() { kill -0 "$server" || { echo "the server has died:" >&2; cat "$said" >&2; failed=1; }; }

failed=0
if wants python || wants node; then
  start "$model"
  if wants python; then .venv/bin/python -m pytest -q -W ignore -p no:cacheprovider --no-header . || failed=1; fi
  if wants node; then npm test --silent || failed=1; fi
  alive
  stop
fi
if wants schema; then
  # A model of no sense, which is fast. What is asked for may be refused, but never with a status that the
  # description does not have, and never by a fault.
  start ../fixtures/llama/mlx-4bit --ctx 128
  .venv/bin/schemathesis run "$BIPLANE_URL/openapi.json" --header "Authorization: Bearer $BIPLANE_KEY" \
    --checks not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,response_schema_conformance \
    --max-examples "${EXAMPLES:-50}" --seed 1 --request-timeout 60 --no-color || failed=1
  alive
fi
exit $failed
