#!/usr/bin/env bash
# Runs the library's examples, already built, on a small model, and looks at what they say.
#
#   scripts/examples.sh FOLDER MODEL [BACKEND...]
#
# FOLDER holds the programs; MODEL is a chat model; the backends are those of the build.
set -euo pipefail
folder=$1 model=$2
shift 2
said=$(mktemp)
trap 'rm -f "$said"' EXIT

# example NAME PATTERN...: it must succeed, and each pattern be in a line of what it says.
example() {
  local name=$1
  shift
  if ! "$folder/$name" "$model" >"$said" 2>&1; then
    echo "$name failed:" >&2
    cat "$said" >&2
    exit 1
  fi
  for pattern in "$@"; do
    if ! grep -qE -- "$pattern" "$said"; then
      echo "$name did not say /$pattern/, but:" >&2
      cat "$said" >&2
      exit 1
    fi
  done
  echo "$name"
}

example simple '^[A-Za-z].{20}' 'tokens/s'
example streaming '[A-Za-z].{20}'
printf 'Hello\nGoodbye\n' | example chat_loop '^> .{5}' '^> $'
example tools '^(add|divide)\(.*\) gave (Ok|Err)\('
example structured_output ' is (the capital|a city) of .*, with [0-9]+ million inhabitants'
example embeddings '^  -?[01]\.[0-9]{3}  A kitten'
example isq 'tokens/s in'
example compare_backends "${@/%/: first token after}"
example batch_of_prompts '^What is Rust\?' '^Who was Ada' 'tokens/s in all'
example custom_template '^USER: What is the capital' '^ASSISTANT:'
