#!/usr/bin/env python3
"""Biplane's MLX and mlx-lm by turns on the same models: by_turns.py BIPLANE OUT.json MODEL_DIR…

TURNS (3), RUNS (2), STREAMS (1,8,32), PROMPT (512), GENERATE (128) and DEVICE (gpu) come from the environment. In a turn each
program measures every number of streams in one process, RUNS times after one that does not count; the program that began
last time is second. The first runs on a new machine compile kernels and read libraries: minutes, before anything is measured.
Prints a table of medians, with the share of the card's memory bandwidth (BANDWIDTH, TB/s) that reading the weights
once a step makes of decoding."""
import json
import os
import pathlib
import statistics
import subprocess
import sys

HERE = pathlib.Path(__file__).parent


def env(name, default):
    return os.environ.get(name, default)


class Program:
    def __init__(self, name, command):
        self.name, self.command, self.runs = name, command, {}

    def measure(self, streams, runs):
        """One turn. The process ends with it: what it keeps of the GPU's memory is not the other's."""
        wanted = [n for n in streams for _ in range(runs + 1)]
        asked = "".join(f"{n}\n" for n in wanted)
        process = subprocess.run(self.command, input=asked, stdout=subprocess.PIPE, text=True)
        lines = process.stdout.splitlines()
        if process.returncode or len(lines) != len(wanted):
            raise SystemExit(f"{self.name} ended with {process.returncode} after {len(lines)} of {len(wanted)} measurements")
        for i, (n, line) in enumerate(zip(wanted, lines)):
            if i % (runs + 1):
                self.runs.setdefault(n, []).append(json.loads(line))


def card():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True).stdout.strip()
    except OSError:
        return "no NVIDIA card"


def versions():
    code = "import mlx.core as mx, mlx_lm; print('mlx', mx.__version__, 'mlx-lm', mlx_lm.__version__)"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip()


def compare(biplane, folder, keep):
    prompt, generate = env("PROMPT", "512"), env("GENERATE", "128")
    ours = [biplane, "bench", "-m", folder, "--backend", "mlx", "--device", env("DEVICE", "gpu"), "--turns",
            "--prompt-tokens", prompt, "--generate", generate]
    theirs = [sys.executable, str(HERE / "mlx_lm_bench.py"), folder, prompt, generate]
    programs = [Program("biplane", ours), Program("mlx-lm", theirs)]
    streams = [int(n) for n in env("STREAMS", "1,8,32").split(",")]
    for turn in range(int(env("TURNS", "3"))):
        for program in programs if turn % 2 else programs[::-1]:
            program.measure(streams, int(env("RUNS", "2")))
        keep({p.name: p.runs for p in programs})
    return {p.name: p.runs for p in programs}


def main():
    biplane, out, *folders = sys.argv[1:]
    bandwidth = float(env("BANDWIDTH", "3.35"))
    report = dict(card=card(), versions=versions(), models={})
    print(f"{report['card']}; {report['versions']}; prompt {env('PROMPT', '512')}, {env('GENERATE', '128')} generated")
    print("| model | streams | | mlx-lm tok/s | Biplane tok/s | ratio | of bandwidth, mlx-lm and Biplane |\n|---|---|---|---|---|---|---|")
    for folder in folders:
        weights = sum(f.stat().st_size for f in pathlib.Path(folder).glob("*.safetensors"))

        def keep(runs):
            report["models"][folder] = dict(weights=weights, runs=runs)
            pathlib.Path(out).write_text(json.dumps(report, indent=1))

        runs = compare(biplane, folder, keep)
        for streams, of_ours in runs["biplane"].items():
            for what in ("prefill", "decode"):
                key = what + "_tokens_per_second"
                ours, theirs = ([r[key] for r in of] for of in (of_ours, runs["mlx-lm"][streams]))
                a, b = statistics.median(ours), statistics.median(theirs)
                share = lambda speed: f"{speed / streams * weights / bandwidth / 1e10:.1f} %"
                shares = f"{share(b)}, {share(a)}" if what == "decode" else ""
                spread = lambda v: f"{statistics.median(v):,.0f} ({min(v):,.0f}–{max(v):,.0f})"
                print(f"| {pathlib.Path(folder).name} | {streams} | {what} | {spread(theirs)} | {spread(ours)} | {a / b:.2f} | {shares} |")
            host = {k: statistics.median(r[k] for r in of_ours) for k in ("launch_ms", "wait_ms")}
            print(f"<!-- {streams} streams: host {host['launch_ms']:.2f} ms a step, waits {host['wait_ms']:.2f} ms -->", flush=True)


main()
