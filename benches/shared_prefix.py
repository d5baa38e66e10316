#!/usr/bin/env python3
"""What a shared beginning saves: time to the first token of a server's first and second request.

    benches/shared_prefix.py FILE.gguf ...      needs target/release/biplane and the port 8124

Five pairs of requests, each with some 340 tokens in common that no other pair has; medians.
"""
import json
import pathlib
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
ADDRESS = "http://127.0.0.1:8124"
WORDS = (ROOT / "LICENSE-APACHE").read_text().split()
ENDS = [" First question: what is it?", " Another: who may use it and how?"]


def post(path, body):
    request = urllib.request.Request(ADDRESS + path, json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def ready():
    for _ in range(300):
        try:
            with urllib.request.urlopen(ADDRESS + "/ready"):
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("the server did not get ready")


for file in sys.argv[1:]:
    server = subprocess.Popen(
        [ROOT / "target/release/biplane", "serve", "-m", file, "--port", "8124", "--backend", "candle"],
        stderr=subprocess.DEVNULL,
    )
    try:
        ready()
        pairs = []
        for i in range(5):
            shared = " ".join(WORDS[i * 320 : i * 320 + 270])
            ask = lambda end: post("/v1/completions", {"prompt": shared + end, "max_tokens": 16, "temperature": 0})
            pairs.append([ask(end)["timings"] for end in ENDS])
    finally:
        server.terminate()
        server.wait()
    for which in (0, 1):
        median = lambda key: statistics.median(pair[which][key] for pair in pairs)
        print(
            f"{pathlib.Path(file).name}: cached {median('cached_n')}, new {median('prompt_n')}, "
            f"first token {median('time_to_first_token_ms'):.1f} ms, "
            f"decode step {1e3 / median('predicted_per_second'):.1f} ms"
        )
