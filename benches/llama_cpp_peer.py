#!/usr/bin/env python3
"""llama.cpp on a GGUF file, as llama-cpp-python brings it: prints prompt tokens a second, decoded tokens a
second after the prompt, seconds to load, and peak resident memory in MiB, as JSON.

    llama_cpp_peer.py MODEL.gguf THREADS PROMPT GENERATE

Token ids are made up and nothing is sampled, as in llama-bench: only `llama_decode` is timed. Build the package on
the machine itself (`pip install --no-binary llama-cpp-python llama-cpp-python`), or its kernels are not the best.
"""

import ctypes
import json
import resource
import sys
import time

import llama_cpp as lib


def main():
    path, (threads, prompt, generate) = sys.argv[1], map(int, sys.argv[2:5])
    started = time.perf_counter()
    quiet = lib.llama_log_callback(lambda *_: None)
    lib.llama_log_set(quiet, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = prompt + generate + 64
    params.n_batch = params.n_ubatch = 512
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(model, params)
    loaded = time.perf_counter() - started

    def decode(ids):
        ids = (lib.llama_token * len(ids))(*ids)
        if lib.llama_decode(context, lib.llama_batch_get_one(ids, len(ids))) != 0:
            sys.exit("llama_decode failed")
        lib.llama_synchronize(context)

    memory = lib.llama_get_memory(context)
    decode([1, 2, 3, 4])
    lib.llama_memory_clear(memory, True)
    ids = [(7 * i + 11) % 30_000 for i in range(prompt)]
    started = time.perf_counter()
    decode(ids)
    prefill = prompt / (time.perf_counter() - started)
    started = time.perf_counter()
    for i in range(generate):
        decode([(13 * i + 5) % 30_000])
    decoded = generate / (time.perf_counter() - started)
    print(json.dumps({
        "prefill": prefill,
        "decode": decoded,
        "load": loaded,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }))


main()
