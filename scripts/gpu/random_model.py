#!/usr/bin/env python3
"""A model of real size out of random numbers: random_model.py DIR {llama-3.2-3b,gemma-3-1b} {4,8,16}

16 is bf16, less is MLX's affine quantization in groups of 64. Speed does not depend on the values."""
import importlib
import json
import pathlib
import sys

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

SHAPES = {
    "llama-3.2-3b": dict(
        model_type="llama", architectures=["LlamaForCausalLM"], hidden_size=3072, intermediate_size=8192,
        num_hidden_layers=28, num_attention_heads=24, num_key_value_heads=8, head_dim=128, vocab_size=128256,
        rms_norm_eps=1e-5, rope_theta=500000.0, max_position_embeddings=131072, tie_word_embeddings=True,
        hidden_act="silu", rope_scaling=dict(
            rope_type="llama3", factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0,
            original_max_position_embeddings=8192)),
    "gemma-3-1b": dict(
        model_type="gemma3_text", architectures=["Gemma3ForCausalLM"], hidden_size=1152, intermediate_size=6912,
        num_hidden_layers=26, num_attention_heads=4, num_key_value_heads=1, head_dim=256, vocab_size=262144,
        rms_norm_eps=1e-6, rope_theta=1000000.0, rope_local_base_freq=10000.0, query_pre_attn_scalar=256,
        sliding_window=512, sliding_window_pattern=6, max_position_embeddings=32768, tie_word_embeddings=True,
        hidden_activation="gelu_pytorch_tanh"),
}


def tokenizer(vocab_size):
    vocab = {f"t{i}": i for i in range(vocab_size)}
    return dict(
        version="1.0", truncation=None, padding=None, added_tokens=[], normalizer=None,
        pre_tokenizer=dict(type="WhitespaceSplit"), post_processor=None, decoder=dict(type="ByteLevel", add_prefix_space=False, trim_offsets=False, use_regex=False),
        model=dict(type="WordLevel", vocab=vocab, unk_token="t0"))


def main():
    folder, shape, bits = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    config = dict(SHAPES[shape])
    module = importlib.import_module("mlx_lm.models." + config["model_type"])
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.update(tree_map(lambda p: p.astype(mx.bfloat16), model.parameters()))
    if bits < 16:
        nn.quantize(model, group_size=64, bits=bits)
        config["quantization"] = config["quantization_config"] = dict(group_size=64, bits=bits, mode="affine")
    weights = {k: v for k, v in tree_flatten(model.parameters()) if not k.startswith("lm_head.")}
    mx.eval(weights)
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer(config["vocab_size"])))
    (folder / "tokenizer_config.json").write_text("{}")


main()
