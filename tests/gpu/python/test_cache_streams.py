# SPDX-License-Identifier: Apache-2.0
"""The cache and the device's order of work: streams other than the one it began on, and a host that never waits."""

import pytest
import torch
from layer_pair import LayerPair
from tiny_models import prompt, tiny_model

from turboquant import TurboQuantCache, enable
from turboquant.attention import turboquant_attention

CALLS = (70, 1, 1, 5, 60, 1, 1)


@pytest.mark.parametrize("offloading", [False, True], ids=["", "offloaded"])
def test_a_cache_goes_on_in_another_stream_that_waits_for_the_first(offloading):
    model = enable(tiny_model(num_hidden_layers=4, head_dim=64)).to(torch.bfloat16)
    ids = prompt(batch=2, tokens=90)["input_ids"]
    texts = []
    for streams in ([torch.cuda.current_stream()], [torch.cuda.Stream() for _ in range(3)]):
        cache, logits, last = TurboQuantCache(model.config, offloading=offloading), [], torch.cuda.current_stream()
        for i, (begin, end) in enumerate([(0, 60), *((j, j + 1) for j in range(60, 80)), (80, 90)]):
            stream = streams[i % len(streams)]
            stream.wait_stream(last)
            with torch.cuda.stream(stream), torch.no_grad():
                torch.cuda._sleep(2_000_000)  # what is not ordered would be overtaken
                logits.append(model(ids[:, begin:end], past_key_values=cache).logits[:, -1].float())
            last = stream
        torch.cuda.synchronize()
        texts.append(torch.stack(logits))
    assert torch.equal(*texts)


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_step_never_waits_for_the_device(dtype):
    pair = LayerPair(batch=3, dtype=dtype, head_dim=128)
    for tokens in (70, 1):
        pair.check(tokens)
    steps = [pair.vectors(1) for _ in range(60)]  # over a page's end: the pool and the table grow
    torch.cuda.set_sync_debug_mode("error")
    try:
        for query, keys, values in steps:
            turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pair.layer.get_seq_length() == 131


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("tokens", [40, 500], ids=["held", "coded"])
def test_a_first_call_never_waits_for_the_device(tokens):
    LayerPair(dtype=torch.bfloat16, head_dim=128).call(tokens)  # kernels are loaded
    pair = LayerPair(dtype=torch.bfloat16, head_dim=128)
    query, keys, values = pair.vectors(tokens)
    torch.cuda.set_sync_debug_mode("error")
    try:
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
        pair.layer.flush()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert pair.layer.get_seq_length() == tokens


def test_two_caches_take_turns_on_two_streams():
    pairs = [LayerPair(dtype=torch.bfloat16, head_dim=64) for _ in range(2)]
    alone = LayerPair(dtype=torch.bfloat16, head_dim=64)
    expected = [alone.call(tokens)[0] for tokens in CALLS]
    streams = [torch.cuda.Stream() for _ in pairs]
    for stream in streams:
        stream.wait_stream(torch.cuda.current_stream())
    outs = [[], []]
    for tokens in CALLS:
        for pair, stream, out in zip(pairs, streams, outs):
            with torch.cuda.stream(stream):
                out.append(pair.call(tokens)[0])
    torch.cuda.synchronize()
    for out in outs:
        assert all(torch.equal(a, b) for a, b in zip(out, expected))
