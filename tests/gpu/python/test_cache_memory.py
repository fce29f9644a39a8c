# SPDX-License-Identifier: Apache-2.0
"""What TurboQuantCache(offloading=True) leaves on the device, by the allocator's account."""

from types import SimpleNamespace

import torch
import transformers
from tiny_models import SHAPE

from turboquant import TurboQuantCache
from turboquant.attention import turboquant_attention

LAYERS, HEADS, HEAD_DIM, TOKENS = 8, 4, 128, 16378  # the next token needs no page


def test_two_layers_of_an_offloaded_cache_are_on_the_device_and_three_while_it_works():
    config = transformers.LlamaConfig(**SHAPE | dict(num_hidden_layers=LAYERS, head_dim=HEAD_DIM))
    module = SimpleNamespace(training=False, is_causal=True, num_key_value_groups=1)

    def step(cache, tokens):
        for layer in range(LAYERS):
            query, keys, values = torch.randn(3, 1, HEADS, tokens, HEAD_DIM, dtype=torch.bfloat16, device="cuda")
            turboquant_attention(module, query, *cache.update(keys, values, layer), None)
        torch.cuda.synchronize()

    step(TurboQuantCache(config), TOKENS)  # what is allocated once: handles, workspaces of libraries
    held, peaks = [], []
    for offloading in (False, True):
        before = torch.cuda.memory_allocated()
        cache = TurboQuantCache(config, offloading=offloading)
        step(cache, TOKENS)
        held.append(torch.cuda.memory_allocated() - before)
        torch.cuda.reset_peak_memory_stats()
        step(cache, 1)
        peaks.append(torch.cuda.max_memory_allocated() - before)
        layer = max(sum(layer.memory()[use] for use in ("pages", "fringe")) for layer in cache.layers)
        if offloading:
            assert cache.memory()["host"] >= (LAYERS - 1) * layer
        cache_workspace = cache.memory()["workspace"]
        del cache
    others = held[0] - LAYERS * layer  # tables and signs stay
    assert 0 <= others < layer
    assert held[1] <= 2 * layer + others + 1024  # the allocator's units
    assert peaks[1] <= 3 * layer + others + cache_workspace + (1 << 20)  # and a step's own tensors
