#!/usr/bin/env python3
"""From a process's start to its first token, and its peak memory: Biplane and llama.cpp by turns; medians.

    benches/cold_start.py FILE.gguf … --biplane target/release/biplane --llama FIRST_TOKEN

FIRST_TOKEN is llama_first_token.c, built with a llama.cpp that was built on the machine itself; with that of
llama-cpp-python's source package, unpacked at SOURCE and installed at PACKAGE (…/site-packages/llama_cpp):

    cc -O2 benches/llama_first_token.c -o first_token -Wl,--allow-shlib-undefined \
        -I SOURCE/vendor/llama.cpp/include -I SOURCE/vendor/llama.cpp/ggml/include \
        -L PACKAGE/lib -lllama -lggml -lggml-base -Wl,-rpath,PACKAGE/lib

Both take the prompt as plain text, choose greedily and end after a token. Files are in the page cache.
"""

import argparse
import os
import pathlib
import statistics
import subprocess
import time


def run(command):
    """Seconds and peak resident MiB of a process."""
    start = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    if status != 0:
        raise SystemExit(f"{' '.join(map(str, command))} failed")
    return seconds, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--biplane", default="target/release/biplane")
    parser.add_argument("--llama", required=True)
    parser.add_argument("--threads", default="2")
    parser.add_argument("--prompt", default="Once upon a time there was a small village by the sea.")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    print("| model | | llama.cpp | Biplane | ratio |\n|---|---|---|---|---|")
    for model in args.models:
        ours = [
            args.biplane, "run", "-m", model, "--backend", "candle", "--threads", args.threads, "--raw",
            "-n", "1", "--temperature", "0", args.prompt,
        ]
        theirs = [args.llama, model, args.threads, args.prompt]
        rounds = [(run(theirs), run(ours)) for _ in range(args.rounds + 1)][1:]
        name = pathlib.Path(model).name
        for i, what in enumerate(("first token s", "peak MiB")):
            a, b = (statistics.median(r[side][i] for r in rounds) for side in (0, 1))
            print(f"| {name} | {what} | {a:.3g} | {b:.3g} | {b / a:.2f} |", flush=True)


if __name__ == "__main__":
    main()
