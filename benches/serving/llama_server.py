"""llama.cpp's server from the Python package xllamacpp: llama_server.py MODEL.gguf SLOTS PORT"""

import sys
import time

import xllamacpp

model, slots, port = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
params = xllamacpp.CommonParams()
params.model.path = model
params.n_parallel = slots
params.n_ctx = 1024 * slots
params.cpuparams.n_threads = 2
params.cpuparams_batch.n_threads = 2
params.port = port
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(3600)
