#!/usr/bin/env python3
"""Biplane's MLX backend beside mlx-lm on the same libmlx and directories, by turns; prints medians and ratios.

    benches/beside_mlx_lm.py MODEL_DIR[=DTYPE] … --biplane target/release/biplane --python PYTHON

PYTHON is one with mlx-lm and the mlx that Biplane links (`cat .mlx-linux/wheel` says which on Linux:
`pip install mlx-lm "mlx[cpu]==…"`). DTYPE (bf16, f16, f32) is that of the activations; both programs use it. mlx-lm
computes in the one that the directory's dense tensors have, so that a directory's own is the one to give.

Token ids are made up. A round is one process of each program, which measures after a run that does not count.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
from collections import defaultdict


KEYS = [f"{what}_tokens_per_second" for what in ("prefill", "decode")]


def output(*command, **more):
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, **more).stdout


def mlx_lm(args, folder):
    """Prompt tokens a second, decoded tokens a second."""
    script = pathlib.Path(__file__).parents[1] / "scripts/gpu/mlx_lm_bench.py"
    # A line of input is a run of one stream; the first does not count.
    lines = output(args.python, script, folder, args.prompt, args.generate, input="1\n" * (1 + args.repeat))
    results = [json.loads(line) for line in lines.splitlines()][1:]
    return tuple(statistics.median(r[key] for r in results) for key in KEYS)


def biplane(args, folder, dtype):
    """As `mlx_lm`."""
    command = [
        args.biplane, "bench", "-m", folder, "--backend", "mlx", "--json", "--repeat", args.repeat,
        "--prompt-tokens", args.prompt, "--generate", args.generate,
    ]
    result = json.loads(output(*command, *(["--dtype", dtype] if dtype else [])))[0]
    return tuple(result[key] for key in KEYS)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL_DIR[=DTYPE]")
    parser.add_argument("--biplane", default="target/release/biplane")
    parser.add_argument("--python", default="python3", help="one with mlx-lm")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--generate", type=int, default=17)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    print("| model | dtype | | mlx-lm | Biplane | ratio |\n|---|---|---|---|---|---|")
    for model in args.models:
        folder, _, dtype = model.partition("=")
        figures = defaultdict(list)
        for _ in range(args.rounds):
            for name, measured in (("mlx-lm", mlx_lm(args, folder)), ("Biplane", biplane(args, folder, dtype))):
                for what, value in zip(("prefill", "decode"), measured):
                    figures[what, name].append(value)
        for what in ("prefill", "decode"):
            theirs, ours = (statistics.median(figures[what, name]) for name in ("mlx-lm", "Biplane"))
            label = pathlib.Path(folder).name
            print(f"| {label} | {dtype or 'auto'} | {what} | {theirs:.1f} | {ours:.1f} | {ours / theirs:.2f} |", flush=True)


if __name__ == "__main__":
    main()
