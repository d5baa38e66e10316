"""Streams completions from any OpenAI-compatible server: load.py PORT STREAMS TOKENS [MODEL]

Medians of five runs: tokens per second of all streams, over the whole run and while all of them decode.
"""

import http.client
import json
import statistics
import sys
import threading
import time

port, streams, tokens = (int(argument) for argument in sys.argv[1:4])
model = sys.argv[4] if len(sys.argv) > 4 else "default"
animals = "cat dog horse whale eagle snake tiger shark mouse sheep camel otter crow toad moose hen".split()


def answer(i, seen):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    animal = animals[i % len(animals)]
    body = {
        "model": model,
        "prompt": f"Here is all that is known of the {animal}, where it lives and what it eats. The",
        "max_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
    }
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    reply = connection.getresponse()
    if reply.status != 200:
        raise RuntimeError(f"{reply.status}: {reply.read()}")
    for line in reply:
        if line.startswith(b"data:") and b"[DONE]" not in line and json.loads(line[5:]).get("choices"):
            seen[i].append(time.monotonic())


whole, decode = [], []
for _ in range(5):
    seen = [[] for _ in range(streams)]
    threads = [threading.Thread(target=answer, args=(i, seen)) for i in range(streams)]
    begun = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended = max(times[-1] for times in seen)
    together = max(times[0] for times in seen)
    whole.append(streams * tokens / (ended - begun))
    decode.append(sum(t > together for times in seen for t in times) / (ended - together))
print(f"{streams} streams: {statistics.median(whole):.1f} tokens/s, {statistics.median(decode):.1f} in decode")
