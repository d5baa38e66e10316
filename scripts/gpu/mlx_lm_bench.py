#!/usr/bin/env python3
"""mlx-lm's speed by its own generate_step and BatchGenerator: mlx_lm_bench.py DIR [PROMPT GENERATE]

Loads once, then measures once for every line of standard input, a number of streams, and prints a line of JSON:
what `biplane bench --turns` does."""
import json
import pathlib
import sys
import time

import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model


def alone(model, prompt, generate):
    start = time.perf_counter()
    times = []
    for token, _ in generate_step(mx.array(prompt), model, max_tokens=generate):
        times.append(time.perf_counter())
    return len(prompt) / (times[0] - start), (len(times) - 1) / (times[-1] - times[0])


def together(model, prompts, generate):
    batch = BatchGenerator(model, max_tokens=generate, completion_batch_size=len(prompts), prefill_batch_size=len(prompts))
    batch.insert(prompts)
    start, seen, first, last = time.perf_counter(), {}, None, None
    count = 0
    while True:
        responses = batch.next()
        prompt_side, responses = responses if isinstance(responses, tuple) else ([], responses)
        now = time.perf_counter()
        for r in responses:
            seen[r.uid] = seen.get(r.uid, 0) + 1
        if first is None and len(seen) == len(prompts):
            first, count = now, 0
        elif first is not None:
            if any(r.finish_reason for r in responses):
                break
            count, last = count + len(responses), now
        if not responses and not prompt_side:
            break
    return sum(map(len, prompts)) / (first - start), count / (last - first)


def main():
    folder = pathlib.Path(sys.argv[1])
    prompt, generate = (int(a) for a in (sys.argv[2:4] or [512, 128]))
    model, config = load_model(folder)
    for line in sys.stdin:
        n = int(line)
        prompts = mx.random.randint(0, config["vocab_size"], (n, prompt)).tolist()
        prefill, decode = alone(model, prompts[0], generate) if n == 1 else together(model, prompts, generate)
        print(json.dumps(dict(prefill_tokens_per_second=prefill, decode_tokens_per_second=decode)), flush=True)


main()
