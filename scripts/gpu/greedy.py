#!/usr/bin/env python3
"""Greedy answers of a model, and where those of two runs part:

greedy.py run BIPLANE MODEL OUT.json [OPTIONS of serve…]
greedy.py compare A.json B.json

The prompts are below, and the file TEXT's (environment) first 300, 600 and 900 characters; TOKENS (64) are generated after
each, one prompt after the other and, where TOGETHER is set, all at once."""
import concurrent.futures
import json
import os
import pathlib
import sys

from server import Server

PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n    ",
    "Water boils at a lower temperature on a mountain because",
    "1, 1, 2, 3, 5, 8, 13,",
    "Dear Sir or Madam,\n\nI am writing to",
    "The three laws of thermodynamics are:\n1.",
    "Question: What is the largest planet of the solar system?\nAnswer:",
]


def run(biplane, model, out, *options):
    text = pathlib.Path(os.environ["TEXT"]).read_text() if "TEXT" in os.environ else ""
    prompts = PROMPTS + [text[:n] for n in (300, 600, 900) if text]
    body = dict(max_tokens=int(os.environ.get("TOKENS", "64")), temperature=0, logprobs=2)
    with Server(biplane, model, *options) as server:

        def answer(prompt):
            status, said = server.post("/v1/completions", dict(body, prompt=prompt))
            if status != 200:
                raise SystemExit(f"{status}: {said}")
            return dict(prompt=prompt, **said["choices"][0]["logprobs"])

        with concurrent.futures.ThreadPoolExecutor(len(prompts) if "TOGETHER" in os.environ else 1) as pool:
            answers = list(pool.map(answer, prompts))
    pathlib.Path(out).write_text(json.dumps(answers))


def compare(a, b):
    a, b = (json.loads(pathlib.Path(name).read_text()) for name in (a, b))
    for x, y in zip(a, b):
        n = min(len(x["tokens"]), len(y["tokens"]))
        at = next((i for i in range(n) if x["tokens"][i] != y["tokens"][i]), n)
        end = "equal" if at == n else "; ".join(
            f"{one['tokens'][at]!r} leads by {lead(one['top_logprobs'][at]):.3f}" for one in (x, y))
        print(f"{x['prompt'][-40:]!r}: {at} of {n} tokens, {end}")


def lead(top):
    first, second = sorted(top.values())[-1:-3:-1]
    return first - second


if __name__ == "__main__":
    {"run": run, "compare": compare}[sys.argv[1]](*sys.argv[2:])
