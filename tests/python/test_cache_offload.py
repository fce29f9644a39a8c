# SPDX-License-Identifier: Apache-2.0
"""TurboQuantCache(offloading=True): the same bytes and texts, while most layers lie in host memory.

Surgery on layers that are away: test_cache_surgery.py. On the CPU the copies are copies too, so the books are tested;
that device memory is free in between shows on a GPU only."""

import copy

import pytest
import torch
import where
from layer_pair import LayerPair
from tiny_models import generate, prompt, tiny_model
from turboquant import TurboQuantCache, enable

pytestmark = pytest.mark.usefixtures("one_thread")


def run(model, offloading, inputs, tokens=40, **options):
    torch.manual_seed(5)
    cache = TurboQuantCache(model.config, offloading=offloading)
    return generate(enable(model), "turboquant", cache, inputs, tokens, **options), cache


@pytest.mark.parametrize(
    "options",
    [dict(), dict(num_beams=3), dict(do_sample=True, num_return_sequences=2), dict(prefill_chunk_size=33), dict(prompt_lookup_num_tokens=3)],
    ids=lambda options: "+".join(options) or "greedy",
)
def test_texts_and_logits_are_those_without_offloading(options):
    model = tiny_model(num_hidden_layers=4)
    inputs = prompt(batch=1 if "prompt_lookup_num_tokens" in options else 2, tokens=100)
    (expected, _), (ours, cache) = (run(model, offloading, inputs, **options) for offloading in (False, True))
    assert torch.equal(ours.sequences, expected.sequences)
    assert all(torch.equal(a, b) for a, b in zip(ours.logits, expected.logits))
    assert sum(layer.away for layer in cache.layers) >= 2


@pytest.mark.parametrize("family", ["gemma2", "gemma3n", "gemma4", "qwen3_next"])
def test_models_of_several_kinds_of_layers(family):
    model, inputs = tiny_model(family), prompt(batch=2, padding=(0, 9))
    (expected, _), (ours, _) = (run(model, offloading, inputs) for offloading in (False, True))
    assert torch.equal(ours.sequences, expected.sequences)


def test_bytes_come_back_as_they_went():
    staying = LayerPair(batch=2)
    going = type("Going", (LayerPair,), dict(offloaded=True))(batch=2)
    for tokens in (70, 1, 5, 60, 1, 1):
        for pair in (staying, going):
            pair.check(tokens)
        assert going.layer.away and going.layer.pages.pool.data.device.type == going.layer.fringe.device.type == "cpu"
        if where.DEVICE == "cuda":
            torch.cuda.synchronize()
            assert going.layer.pages.pool.data.is_pinned() and going.layer.fringe.is_pinned()
        assert torch.equal(going.layer.pages.pool.data, staying.layer.pages.pool.data.cpu())
        assert torch.equal(going.layer.fringe, staying.layer.fringe.cpu())


def test_only_a_few_layers_are_on_the_device_at_a_time():
    model = enable(tiny_model(num_hidden_layers=6))
    cache = TurboQuantCache(model.config, offloading=True)
    ids = prompt(tokens=80)["input_ids"]
    with torch.no_grad():
        for begin, end in ((0, 70), (70, 71), (71, 80)):
            model(ids[:, begin:end], past_key_values=cache)
            here = [layer.index for layer in cache.layers if not layer.away]
            assert here == [0, 5]  # the last has just attended, the first is on its way back
    memory = cache.memory()
    assert memory["host"] > 0 and cache.nbytes == sum(memory.values())
    one = cache.layers[5].memory()["pages"]
    assert memory["pages"] == 2 * one and memory["host"] >= 5 * one


def test_a_layer_with_tokens_to_attend_to_stays():
    pair = type("Going", (LayerPair,), dict(offloaded=True))()
    pair.check(70)
    query, keys, values = pair.vectors(1)
    pair.layer.update(keys, values)
    pair.layer.offload()
    assert not pair.layer.away
    pair.layer.flush()
    pair.layer.offload()
    assert pair.layer.away and pair.layer.get_seq_length() == 71


def test_a_copy_of_an_offloaded_cache_goes_its_own_way():
    model = enable(tiny_model(num_hidden_layers=4))
    ids = prompt(tokens=90)["input_ids"]
    cache = TurboQuantCache(model.config, offloading=True)
    with torch.no_grad():
        model(ids[:, :80], past_key_values=cache)
        other = copy.deepcopy(cache)
        expected = [model(ids[:, 80 + i : 81 + i], past_key_values=cache).logits for i in range(4)]
        model(ids[:, :1], past_key_values=cache)
        ours = [model(ids[:, 80 + i : 81 + i], past_key_values=other).logits for i in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))
    assert {layer.ring[0] for layer in other.layers} == {other.layers[0]}


def test_an_error_in_the_middle_of_a_model_leaves_a_cache_that_goes_on_after_crop():
    model = enable(tiny_model(num_hidden_layers=4))
    ids = prompt(tokens=90)["input_ids"]
    caches = [TurboQuantCache(model.config, offloading=offloading) for offloading in (True, False)]
    with torch.no_grad():
        for cache in caches:
            model(ids[:, :80], past_key_values=cache)
        hook = model.model.layers[2].mlp.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("no luck")))
        for cache in caches:
            with pytest.raises(RuntimeError, match="no luck"):
                model(ids[:, 80:81], past_key_values=cache)
            assert [layer.get_seq_length() for layer in cache.layers] == [81, 81, 81, 80]
            cache.crop(80)
        hook.remove()
        ours, expected = (model(ids[:, 80:85], past_key_values=cache).logits for cache in caches)
    assert torch.equal(ours, expected)
