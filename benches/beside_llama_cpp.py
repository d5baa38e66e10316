#!/usr/bin/env python3
"""Biplane beside llama.cpp on one GGUF file, alternating runs; prints medians and ratios as a table.

    benches/beside_llama_cpp.py MODEL.gguf --biplane target/release/biplane --python PYTHON

PYTHON is one with llama-cpp-python, see llama_cpp_peer.py. With --bandwidth PROGRAM, which read_bandwidth.rs
becomes, the memory is measured in the same turns, and what share of it the weights of each token make: what
llama.cpp reads (all of the file, or --token-bytes) times tokens a second. Biplane may read less of it.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
from collections import defaultdict


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def llama(args, threads, prompt):
    """Prompt tokens a second, decoded tokens a second after a prompt, peak resident MiB."""
    peer = pathlib.Path(__file__).with_name("llama_cpp_peer.py")
    result = json.loads(output(args.python, peer, args.model, str(threads), str(prompt), str(args.generate)))
    return result["prefill"], result["decode"], result["peak"]


def biplane(args, threads, prompt):
    """As `llama`."""
    result = json.loads(
        output(
            args.biplane, "bench", "-m", args.model, "--backend", "candle", "--json", "--repeat", "1",
            "--threads", str(threads), "--prompt-tokens", str(prompt),
            "--generate", str(args.generate + 1),
        )
    )[0]
    speeds = (result[f"{what}_tokens_per_second"] for what in ("prefill", "decode"))
    return *speeds, result["peak_memory_bytes"] / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--biplane", default="target/release/biplane")
    parser.add_argument("--python", default="python3", help="one with llama-cpp-python")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--generate", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bandwidth", help="a program that prints GB/s for a number of threads")
    parser.add_argument("--token-bytes", type=float, help="weights that a token reads, if not the whole file")
    args = parser.parse_args()
    figures = defaultdict(list)
    for _ in range(args.rounds):
        for threads in args.threads:
            if args.bandwidth:
                figures[threads].append(float(output(args.bandwidth, str(threads))))
            for prompt in args.prompts:
                for name, measure in (("llama.cpp", llama), ("Biplane", biplane)):
                    for what, value in zip(("prefill", "decode", "peak MiB"), measure(args, threads, prompt)):
                        figures[threads, prompt, what, name].append(value)
    print("| threads | prompt | | llama.cpp | Biplane | ratio |\n|---|---|---|---|---|---|")
    for threads in args.threads:
        for prompt in args.prompts:
            for what in ("prefill", "decode", "peak MiB"):
                theirs, ours = (
                    statistics.median(figures[threads, prompt, what, name]) for name in ("llama.cpp", "Biplane")
                )
                shares = ""
                if what == "decode" and args.bandwidth:
                    read = args.token_bytes or pathlib.Path(args.model).stat().st_size
                    limit = statistics.median(figures[threads]) * 1e9 / read
                    shares = f" of at most {limit:.0f}: {theirs / limit:.0%} and {ours / limit:.0%} |"
                print(f"| {threads} | {prompt} | {what} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |{shares}")


if __name__ == "__main__":
    main()
