#!/usr/bin/env python3
"""Biplane beside llama.cpp on one GGUF file, alternating runs; prints medians and ratios as a table.

    benches/beside_llama_cpp.py MODEL.gguf --biplane target/release/biplane --llama-bench PATH

llama-bench comes with llama.cpp; its sources are also in llama-cpp-python's source package on PyPI.
"""

import argparse
import json
import statistics
import subprocess
from collections import defaultdict


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def llama(args, threads, prompt):
    """Prompt tokens a second, and decoded tokens a second after a prompt."""
    common = [args.llama_bench, "-m", args.model, "-t", str(threads), "-r", "1", "-o", "json"]
    prefill = json.loads(output(*common, "-p", str(prompt), "-n", "0"))
    decode = json.loads(output(*common, "-p", "0", "-n", str(args.generate), "-d", str(prompt)))
    return prefill[0]["avg_ts"], decode[0]["avg_ts"]


def biplane(args, threads, prompt):
    """As `llama`."""
    result = json.loads(
        output(
            args.biplane, "bench", "-m", args.model, "--backend", "candle", "--json", "--repeat", "1",
            "--threads", str(threads), "--prompt-tokens", str(prompt),
            "--generate", str(args.generate + 1),
        )
    )[0]
    return result["prefill_tokens_per_second"], result["decode_tokens_per_second"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--biplane", default="target/release/biplane")
    parser.add_argument("--llama-bench", default="llama-bench")
    parser.add_argument("--prompts", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 1])
    parser.add_argument("--generate", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    figures = defaultdict(list)
    for _ in range(args.rounds):
        for threads in args.threads:
            for prompt in args.prompts:
                for name, measure in (("llama.cpp", llama), ("Biplane", biplane)):
                    for what, value in zip(("prefill", "decode"), measure(args, threads, prompt)):
                        figures[threads, prompt, what, name].append(value)
    print("| threads | prompt | | llama.cpp tok/s | Biplane tok/s | ratio |\n|---|---|---|---|---|---|")
    for threads in args.threads:
        for prompt in args.prompts:
            for what in ("prefill", "decode"):
                theirs, ours = (
                    statistics.median(figures[threads, prompt, what, name]) for name in ("llama.cpp", "Biplane")
                )
                print(f"| {threads} | {prompt} | {what} | {theirs:.0f} | {ours:.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
