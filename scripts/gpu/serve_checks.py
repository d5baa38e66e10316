#!/usr/bin/env python3
"""What a server on a GPU does over time and without memory: serve_checks.py BIPLANE OUT.json MODEL [OPTIONS of serve…]

REQUESTS (1000) short requests, 8 at once, with the GPU's and the process's memory along the way; then another process takes
the GPU's memory but for LEFT (3) GiB, a prompt of LONG (100000; 0 leaves this out) tokens is asked for, and short requests
after it. Prompts are numbers of tokens, as a random model's text means nothing."""
import concurrent.futures
import json
import os
import pathlib
import random
import subprocess
import sys
import time

from server import Server

TAKE = """
import torch, sys
free = torch.cuda.mem_get_info()[0]
kept = torch.empty(max(free - int(float(sys.argv[1]) * 2**30), 0), dtype=torch.uint8, device="cuda")
print(f"{free / 2**30:.2f} GiB were free, {torch.cuda.mem_get_info()[0] / 2**30:.2f} are", flush=True)
sys.stdin.read()
"""


def setting(name, default):
    return type(default)(os.environ.get(name, default))


def memory(server):
    used = subprocess.run(["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"], capture_output=True, text=True)
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text()
    rss = next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))
    return dict(gpu_mib=int(used.stdout or 0), rss_mib=int(rss) // 1024)


def ask(server, prompt, tokens):
    start = time.time()
    status, said = server.post("/v1/completions", dict(prompt=prompt, max_tokens=tokens, temperature=0))
    said = said.get("error") or said["choices"][0]["text"][:80]
    return dict(status=status, seconds=round(time.time() - start, 2), said=said)


def many(server, out):
    random.seed(1)
    total, failed = setting("REQUESTS", 1000), 0
    prompts = [[random.randrange(100, 20000) for _ in range(random.randrange(8, 64))] for _ in range(total)]
    seen = [dict(requests=0, **memory(server))]
    start = time.time()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda prompt: ask(server, prompt, 16), prompts)
        for n, answer in enumerate(answers, 1):
            failed += answer["status"] != 200
            if n in (10, 50, 100, 200, 500) or n % 1000 == 0 or n == total:
                seen.append(dict(requests=n, failed=failed, seconds=round(time.time() - start, 1), **memory(server)))
                print(seen[-1], flush=True)
    out["requests"] = seen


def without_memory(server, out):
    taker = subprocess.Popen([sys.executable, "-c", TAKE, str(setting("LEFT", 3.0))], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    seen = out["without_memory"] = [dict(taken=taker.stdout.readline().strip(), **memory(server))]
    long = [i * 7919 % 20000 + 100 for i in range(setting("LONG", 100000))]
    for name, prompt in [("short", long[:20]), ("long", long), ("short", long[20:40]), ("short", long[40:60])]:
        seen.append(dict(prompt=name, **ask(server, prompt, 8), **memory(server)))
        print(seen[-1], flush=True)
    taker.communicate("")
    seen.append(dict(prompt="short, all memory back", **ask(server, long[60:80], 8)))
    print(seen[-1], flush=True)


def main():
    biplane, path, model, *options = sys.argv[1:]
    out = {}
    with Server(biplane, model, *options) as server:
        for step in [many] + [without_memory] * (setting("LONG", 100000) > 0):
            step(server, out)
            pathlib.Path(path).write_text(json.dumps(out, indent=1))


main()
