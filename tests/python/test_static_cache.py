# SPDX-License-Identifier: Apache-2.0
"""TurboQuantStaticCache without a compiler: the same bytes as TurboQuantCache after the same calls, and what does not fit."""

import pytest
import torch
from static_pair import StaticPair, assert_same_bytes, slides
from tiny_models import FAMILIES, generate, prompt, tiny_model
from transformers import LlamaConfig, masking_utils
from turboquant import TurboQuantCache, TurboQuantStaticCache, enable
from turboquant.static_layer import TurboQuantStaticLayer
from turboquant.static_mask import turboquant_mask

pytestmark = pytest.mark.usefixtures("one_thread")
# Of its model, transformers 5.17's generate makes masks for each type of layer, and its forward takes one.
GENERATES = [family for family in FAMILIES if family not in ("mistral", "mistral_full")]


@pytest.fixture(scope="module")
def llama():
    return enable(tiny_model())


@pytest.mark.parametrize("family", GENERATES)
@pytest.mark.parametrize("padding", [(), (0, 70)], ids=["no padding", "left padding"])
def test_text_and_bytes_are_those_of_the_growing_cache(family, padding):
    model = tiny_model(family)
    inputs = prompt(batch=2, padding=padding, seed=4)
    growing, static = TurboQuantCache(model.config, hold=0), TurboQuantStaticCache(model.config, max_tokens=100)
    expected = generate(model, "turboquant", growing, inputs, tokens=20)
    ours = generate(model, "turboquant", static, inputs, tokens=20)
    assert torch.equal(ours.sequences, expected.sequences)
    torch.testing.assert_close(torch.stack(ours.logits), torch.stack(expected.logits), rtol=1e-3, atol=1e-3)
    if not slides(static):
        assert_same_bytes(static, growing)
    assert static.length() == growing.get_seq_length(1 if family == "qwen3_next" else len(growing.layers) - 1) == 99


def test_every_call_is_that_of_the_growing_cache(llama):
    pair = StaticPair(llama)
    for tokens in (70, 1, 1, 5, 64, 1, 40):  # a prompt, decoding, a draft, a chunk, and on
        pair.check(tokens)


@pytest.mark.parametrize("prompt_tokens", [3, 20, 24, 25, 60])  # the window is 24
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_layers_that_slide_before_and_after_their_window_is_full(family, prompt_tokens):
    pair = StaticPair(tiny_model(family))
    pair.pad((0, 2), prompt_tokens)
    pair.check(prompt_tokens)
    for tokens in (1, 1, 5, 1, 30, 1):
        pair.check(tokens)


def test_a_call_that_fails_beside_layers_that_slide_needs_a_reset(monkeypatch):
    pair = StaticPair(tiny_model("gemma2"))
    pair.check(30)

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, torch.no_grad(), pytest.raises(KeyboardInterrupt):
        patch.setattr(TurboQuantStaticLayer, "attention", fail)
        pair.model(pair.tokens(1), past_key_values=pair.static)
    with torch.no_grad(), pytest.raises(RuntimeError, match="a call failed between layers"):
        pair.model(pair.tokens(1), past_key_values=pair.static)
    for cache in (pair.static, pair.growing):
        cache.reset()
    pair.check(30)
    pair.check(1)


def test_a_full_layer_with_a_window():
    pair = StaticPair(tiny_model("mistral_full"))
    for tokens in (70, 1, 5, 1):
        pair.check(tokens)


@pytest.mark.parametrize("options", [dict(fringe=None), dict(balance=False, k_bits=3), dict(v_bits=2, seed=3)], ids=str)
def test_options_are_those_of_the_growing_cache(llama, options):
    pair = StaticPair(llama, **options)
    for tokens in (70, 1, 5):
        pair.check(tokens)


def test_a_prompt_in_chunks_with_padding_longer_than_the_first(llama):
    pair = StaticPair(llama)
    pair.mask = torch.tensor([[1] * 30, [0] * 30])
    pair.check(30)
    ids = pair.tokens(30)
    pair.mask = torch.cat([pair.mask, torch.tensor([[1] * 30, [0] * 10 + [1] * 20])], dim=1)
    with torch.no_grad():
        for cache in (pair.static, pair.growing):
            llama(ids, past_key_values=cache, attention_mask=pair.mask)
    assert pair.static.state.starts.tolist() == [0, 40]
    pair.check(1)


@pytest.mark.parametrize("options", [dict(num_beams=3), dict(prompt_lookup_num_tokens=5), dict(prefill_chunk_size=33)], ids=str)
def test_ways_of_generating(llama, options):
    inputs = prompt(tokens=30, seed=6)
    inputs = {name: x.repeat(1, 3) for name, x in inputs.items()}
    expected = generate(llama, "turboquant", TurboQuantCache(llama.config, hold=0), inputs, **options)
    ours = generate(llama, "turboquant", TurboQuantStaticCache(llama.config, max_tokens=110), inputs, **options)
    assert torch.equal(ours.sequences, expected.sequences)


def test_a_conversation_goes_on_and_another_begins_in_the_same_memory(llama):
    cache = TurboQuantStaticCache(llama.config, max_tokens=150)
    texts = []
    for _ in range(2):
        inputs = prompt(seed=11)
        for turn in range(2):
            said = generate(llama, "turboquant", cache, inputs, tokens=6).sequences
            said = torch.cat([said, prompt(tokens=20, seed=1100 + turn)["input_ids"]], dim=1)
            inputs = dict(input_ids=said, attention_mask=torch.ones_like(said))
        texts.append(said)
        address = cache.layers[0].pages.data_ptr()
        cache.reset()
        assert cache.get_seq_length() == 0
    assert torch.equal(*texts)
    assert cache.layers[0].pages.data_ptr() == address


def test_memory_is_what_the_tensors_take(llama):
    pair = StaticPair(llama, max_tokens=130, batch=2)
    assert pair.static.nbytes == 0
    pair.check(70)
    layer, memory = pair.static.layers[0], pair.static.memory()
    assert layer.pages.shape[:2] == (2 * 3 + 1, 2)  # three pages a sequence, and the one that nothing reads
    assert memory["pages"] == 2 * layer.pages.nbytes and memory["fringe"] == 2 * layer.fringe.nbytes
    assert memory["workspace"] == pair.static.state.workspace.nbytes
    assert pair.static.nbytes == sum(memory.values())
    assert pair.static.nbytes_16bit == pair.growing.nbytes_16bit


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(max_tokens=None), "max_tokens=None"),
        (dict(max_tokens=0), "max_tokens=0"),
        (dict(max_tokens=9, k_bits=5), "k_bits"),
        (dict(max_tokens=9, fringe=4), "fringe=4"),
    ],
)
def test_refused_as_in_the_growing_cache(arguments, message):
    with pytest.raises(ValueError, match=message):
        TurboQuantStaticCache(LlamaConfig(num_hidden_layers=1), **arguments)


def test_tokens_that_do_not_fit_are_refused_before_anything_is_written(llama):
    pair = StaticPair(llama, max_tokens=72)
    with torch.no_grad(), pytest.raises(ValueError, match="73 tokens do not fit into max_tokens=72"):
        llama(pair.tokens(73), past_key_values=pair.static)
    pair.check(70)
    with torch.no_grad(), pytest.raises(ValueError, match="73 tokens do not fit into max_tokens=72"):
        llama(pair.tokens(3), past_key_values=pair.static)
    pair.check(2)
    with torch.no_grad(), pytest.raises(ValueError, match="73 tokens do not fit into max_tokens=72"):
        llama(pair.tokens(1), past_key_values=pair.static)
    assert_same_bytes(pair.static, pair.growing)
    with pytest.raises(ValueError, match="attention_mask has 73 positions.*max_tokens=72"):
        generate(llama, "turboquant", TurboQuantStaticCache(llama.config, 72), prompt(tokens=70), tokens=5)


@pytest.mark.parametrize("tokens", [1, 5, 40])
def test_a_call_that_fails_between_layers_leaves_the_cache_as_it_was(llama, tokens, monkeypatch):
    pair = StaticPair(llama)
    pair.check(70)

    def fail(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, torch.no_grad(), pytest.raises(KeyboardInterrupt):
        patch.setattr(llama.model.layers[1], "forward", fail)
        llama(pair.tokens(tokens), past_key_values=pair.static)
    assert pair.static.length() == 70
    pair.growing.layers[0].recent_starts.fill_(70 + tokens - 28)  # the ring's older entries are gone; the codes are not
    pair.growing.layers[1].recent_starts.fill_(70 + tokens - 28)
    pair.generator.manual_seed(8)
    for count in (1, 5, 1):
        ids = pair.tokens(count)
        with torch.no_grad():
            logits = [llama(ids, past_key_values=cache).logits for cache in (pair.static, pair.growing)]
        torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_another_batch_needs_another_cache(llama):
    pair = StaticPair(llama)
    pair.check(5)
    pair.static.reset()
    with torch.no_grad(), pytest.raises(ValueError, match=r"holds .*= \(2, 2, 32.*this call brings \(3, 2, 32.*: use a new cache"):
        llama(torch.ones(3, 5, dtype=torch.long), past_key_values=pair.static)
    pair.growing.reset()
    pair.check(5)


def test_another_attention_is_refused_by_name(llama):
    for implementation in ("sdpa", "eager"):
        with pytest.raises(NotImplementedError, match=r"call turboquant\.enable\(model\)"):
            generate(llama, implementation, TurboQuantStaticCache(llama.config, 100), prompt())
    enable(llama)


def test_a_mask_that_the_device_finds_wrong_is_an_error_of_the_next_call_through_the_host(llama):
    for wrong, masked in (([[0, 1, 1, 1]], False), ([[1, 0, 1, 1]], True), ([[0, 1, 0, 1]], True)):
        cache = TurboQuantStaticCache(llama.config, 100)
        first = torch.tensor([[0, 1, 1]]) if masked else None
        ids = torch.tensor([[3, 4, 5]])
        with torch.no_grad():
            llama(ids, past_key_values=cache, attention_mask=first)
            llama(ids[:, :1], past_key_values=cache, attention_mask=torch.tensor(wrong))
        for call in (cache.length, cache.memory, lambda: cache.crop(-1)):
            with pytest.raises(RuntimeError, match="attention_mask of a call did not go on"):
                call()
        cache.reset()
        assert cache.length() == 0
    with torch.no_grad():
        llama(ids, past_key_values=cache, attention_mask=torch.tensor([[0, 1, 1]]))
        with pytest.raises(ValueError, match="the cached sequences begin with padding"):
            llama(ids[:, :1], past_key_values=cache)
        with pytest.raises(NotImplementedError, match=r"\[batch, positions\], not \(1, 1, 1, 4\)"):
            llama(ids[:, :1], past_key_values=cache, attention_mask=torch.ones(1, 1, 1, 4))


def test_a_mask_that_is_more_than_causal_is_refused_after_the_first_call():
    options = dict(batch_size=1, q_length=1, kv_length=9, q_offset=5, kv_offset=torch.tensor([5], dtype=torch.int32))
    blocks = masking_utils.blockwise_overlay(torch.zeros(1, 9, dtype=torch.long))
    sliding = masking_utils.sliding_window_causal_mask_function(3)
    plain = [dict(mask_function=masking_utils.causal_mask_function), dict(mask_function=sliding, local_size=3)]
    for more in plain:
        assert turboquant_mask(**options, **more) is None
        summary = turboquant_mask(**options, **more, attention_mask=torch.tensor([[False, True, True, True, True, True]]))
        assert summary.tolist() == [[[[1, 1]]]]
        with pytest.raises(NotImplementedError, match="image blocks, packed sequences"):
            turboquant_mask(**options, **more | dict(mask_function=masking_utils.or_masks(more["mask_function"], blocks)))
