"""Models that Biplane writes, in mlx-lm and in llama.cpp: peers.py BIPLANE MODELS

Each program continues the same texts greedily, and must give what Biplane gives, token by token up to the
first whose lead over the second is less than what the other's rounding may change."""

import json
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

PROMPTS = ["The capital of France is", "1, 2, 3, 4, 5,", "Monday, Tuesday, Wednesday,", "def add(a, b):\n    "]
TOKENS = 24
FEWEST = 12
# Leads in logits. mlx-lm computes in f32 here; llama.cpp rounds activations to 8 bits.
MLX_LEAD = 0.02
LLAMA_LEAD = 0.5

SMOLLM2 = "smollm2-135m-instruct-q4_1.gguf"
GEMMA = "gemma-3-270m-q4_k_m.gguf"


def all_as(isq):
    return ["--isq", isq, "--isq-override", f"*={isq}"]


# Verb, model (of those before, or a file), options, output.
WRITTEN = [
    ("convert", SMOLLM2, [], "smollm2"),
    ("quantize", SMOLLM2, all_as("AFQ4"), "smollm2-4bit"),
    ("quantize", SMOLLM2, all_as("AFQ8") + ["--isq-override", "down_proj=AFQ6"], "smollm2-mixed"),
    ("quantize", GEMMA, all_as("AFQ8"), "gemma-8bit"),
    ("convert", "smollm2-4bit", [], "smollm2-4bit.gguf"),
    ("quantize", SMOLLM2, all_as("Q4K"), "smollm2-q4k.gguf"),
    ("quantize", SMOLLM2, all_as("Q8_0"), "smollm2-q8_0.gguf"),
    ("quantize", GEMMA, all_as("Q8_0"), "gemma-q8_0.gguf"),
    ("quantize", GEMMA, all_as("Q6K"), "gemma-q6k.gguf"),
]


def mlx_lm_greedy(path):
    """mlx-lm's text after each prompt, up to the first near tie, and how many tokens that is."""
    import mlx.core as mx
    import mlx_lm
    from mlx_lm.generate import generate_step

    mx.set_default_device(mx.cpu)
    model, tokenizer = mlx_lm.load(str(path))
    # In half precision MLX's processor sums too coarsely to be compared with.
    model.set_dtype(mx.float32)
    for prompt in PROMPTS:
        ids = mx.array(tokenizer.encode(prompt))
        tokens = []
        for token, logprobs in generate_step(ids, model, max_tokens=TOKENS):
            best = mx.sort(logprobs)[-2:]
            if token in tokenizer.eos_token_ids or (best[1] - best[0]).item() < MLX_LEAD:
                break
            tokens.append(token)
        yield tokenizer.decode(ids.tolist() + tokens)[len(tokenizer.decode(ids.tolist())):], len(tokens)


def llama_greedy(path):
    """The same of llama.cpp."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 512
    params.n_parallel = 1
    params.warmup = False
    params.port = 0
    server = xllamacpp.Server(params)
    for prompt in PROMPTS:
        asked = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "n_probs": 2, "cache_prompt": False}
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(asked).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=300) as reply:
            steps = json.load(reply)["completion_probabilities"]
        text, count = b"", 0
        for step in steps:
            first, second = step["top_logprobs"][:2]
            if first["logprob"] - second["logprob"] < LLAMA_LEAD:
                break
            text += bytes(step["bytes"])
            count += 1
        yield text.decode(errors="ignore"), count


def biplane_greedy(biplane, path, backend):
    for prompt in PROMPTS:
        run = [biplane, "run", "--raw", "-q", "--exact", "--temperature", "0", "--device", "cpu", "-n", str(TOKENS)]
        done = subprocess.run(run + ["--backend", backend, "-m", str(path), prompt], capture_output=True, check=True)
        yield done.stdout.decode(errors="ignore")


def main(biplane, models):
    version = subprocess.run([biplane, "doctor", "--json"], capture_output=True, env={"HF_HUB_OFFLINE": "1"}).stdout
    known = {check["name"] for check in json.loads(version)["checks"]}
    backends = [name for name in ("candle", "mlx") if name in known]
    failed = False
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        for verb, model, options, output in WRITTEN:
            source = work / model if (work / model).exists() else models / model
            subprocess.run([biplane, verb, "-m", source, *options, "-o", work / output], capture_output=True, check=True)
            peer, greedy = ("llama.cpp", llama_greedy) if output.endswith(".gguf") else ("mlx-lm", mlx_lm_greedy)
            expected = list(greedy(work / output))
            for backend in backends:
                got = list(biplane_greedy(biplane, work / output, backend))
                same = [g.startswith(e) for g, (e, _) in zip(got, expected)]
                tokens = sum(count for _, count in expected)
                print(f"{output}: {peer} and {backend} agree on {sum(same)} of {len(same)} texts, {tokens} tokens", flush=True)
                for g, (e, _), good in zip(got, expected, same):
                    if not good:
                        print(f"  {peer}: {e!r}\n  {backend}: {g!r}")
                # Texts that all begin with a near tie would show nothing.
                failed |= not all(same) or tokens < FEWEST
    sys.exit(failed)


main(sys.argv[1], Path(sys.argv[2]))
