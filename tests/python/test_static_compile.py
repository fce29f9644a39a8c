# SPDX-License-Identifier: Apache-2.0
"""torch.compile over a TurboQuantStaticCache: one graph for all lengths and caches, and errors that only the device can see.

The backend here is aot_eager, which traces and functionalises as inductor does and compiles nothing.
"""

import pytest
import torch
from static_pair import StaticPair
from tiny_models import generate, prompt, tiny_model
from torch._dynamo.utils import counters
from transformers import CompileConfig, StaticCache
from turboquant import TurboQuantCache, TurboQuantStaticCache, enable

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def llama():
    return enable(tiny_model())


def compiled(model):
    return torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)


def graphs():
    return counters["stats"]["unique_graphs"]


def test_one_graph_serves_every_length_and_a_second_cache(llama):
    forward, pair = compiled(llama), StaticPair(llama, batch=1)
    pair.check(60)
    for _ in range(100):
        pair.check(1, forward)
    other = StaticPair(llama, batch=1, max_tokens=200)
    other.check(20)
    for _ in range(3):
        other.check(1, forward)
        pair.check(1, forward)
    assert graphs() == 1
    assert pair.static.length() == 163 and other.static.length() == 23


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])  # a layer that slides, softcap; sinks
def test_generate_compiles_by_itself(family):
    model, inputs = tiny_model(family), prompt(batch=2, padding=(0, 9), seed=4, tokens=40)
    if family == "gpt_oss":  # the loop over experts does not compile
        model.set_experts_implementation("grouped_mm")
    growing, static = TurboQuantCache(model.config, hold=0), TurboQuantStaticCache(model.config, max_tokens=64)
    config = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    config._compile_all_devices = True  # else on a GPU only
    expected = generate(model, "turboquant", growing, inputs, tokens=8)
    ours = generate(model, "turboquant", static, inputs, tokens=8, compile_config=config)
    assert graphs() == 1
    assert torch.equal(ours.sequences, expected.sequences)


def test_chunks_drafts_and_a_compiled_prompt(llama):
    forward, pair = compiled(llama), StaticPair(llama)
    pair.static.early_initialization(2, num_heads=2, head_dim=32, dtype=torch.float32, device=pair.device)
    pair.pad((0, 9), 70)
    for tokens in (70, 5, 1):
        pair.check(tokens, forward)
    assert pair.static.state.starts.tolist() == [0, 9]


def test_without_looking_at_guards_each_cache_runs_its_own_code(llama):
    """As the documentation advises for loops: after warming up, torch.compile looks only at what tells its versions apart."""
    forward, pair = compiled(llama), StaticPair(llama)
    static = StaticCache(config=llama.config, max_cache_len=100)
    ids = prompt(batch=2, tokens=8, seed=6)["input_ids"].to(pair.device)
    steps = [ids[:, i : i + 1] for i in range(8)]

    def dense(i, call):
        with torch.no_grad():
            return call(steps[i], past_key_values=static).logits

    pair.check(20)
    first = [dense(i, llama) for i in range(8)]
    static.reset()
    again = [dense(0, llama), dense(1, forward)]
    pair.check(1, forward)
    with torch.compiler.set_stance(skip_guard_eval_unsafe=True):
        for i in range(2, 8):
            pair.check(1, forward)
            again.append(dense(i, forward))
    assert graphs() == 2
    torch.testing.assert_close(again, first)


def test_a_first_call_that_is_compiled_says_what_to_do(llama):
    with torch.no_grad(), pytest.raises(torch._dynamo.exc.Unsupported, match=r"cache\.early_initialization"):
        compiled(llama)(torch.tensor([[1, 2]]), past_key_values=TurboQuantStaticCache(llama.config, 10))


def test_freezing_is_refused(llama):
    """It would bake one cache's signs, metric and page table into the code of all."""
    pair = StaticPair(llama)
    pair.check(20)
    with torch._inductor.config.patch(freezing=True), torch.no_grad(), pytest.raises(torch._dynamo.exc.TorchDynamoException, match="TORCHINDUCTOR_FREEZING"):
        compiled(llama)(pair.tokens(1), past_key_values=pair.static)


def test_surgery_between_compiled_steps(llama):
    forward, pair = compiled(llama), StaticPair(llama, batch=3)
    pair.check(70)
    for change in (("crop", -3), ("reorder_cache", torch.tensor([2, 2, 0])), ("crop", 65)):
        pair.check(1, forward)
        pair.check(1, forward)
        for cache in (pair.static, pair.growing):
            getattr(cache, change[0])(change[1])
    pair.check(1, forward)
    for cache in (pair.static, pair.growing):
        cache.reset()
    pair.check(30)
    pair.check(1, forward)
    assert graphs() == 1


@pytest.mark.parametrize("max_tokens", [40, 64])
def test_too_many_tokens_change_no_other_memory_and_are_an_error_afterwards(llama, max_tokens):
    forward, pair = compiled(llama), StaticPair(llama, max_tokens=max_tokens)
    pair.check(max_tokens - 2)
    for _ in range(2):
        pair.check(1, forward)
    before = [layer.pages.clone() for layer in pair.static.layers]
    per_sequence = -(-max_tokens // 64) * 64
    with torch.no_grad():
        for _ in range(70):
            forward(pair.tokens(1), past_key_values=pair.static)
    for old, layer in zip(before, pair.static.layers):
        if max_tokens == per_sequence:  # else the rest of the last page takes some
            assert torch.equal(old[:-1], layer.pages[:-1])
    for call in (pair.static.length, pair.static.memory, lambda: pair.static.crop(-1)):
        with pytest.raises(RuntimeError, match=f"more tokens than max_tokens={max_tokens}"):
            call()
    pair.static.reset()
    pair.growing.reset()
    pair.check(30)


def test_reset_raises_what_nothing_else_did(llama):
    forward, pair = compiled(llama), StaticPair(llama, max_tokens=33)
    pair.check(33)
    with torch.no_grad():
        forward(pair.tokens(1), past_key_values=pair.static)
    with pytest.raises(RuntimeError, match="more tokens than max_tokens=33"):
        pair.static.reset()
    assert pair.static.length() == 0
    pair.static.reset()


def test_a_changed_mask_is_found_in_a_compiled_step(llama):
    forward, pair = compiled(llama), StaticPair(llama)
    pair.pad((0, 5), 30)
    pair.check(30)
    pair.check(1, forward)
    mask = torch.cat([pair.mask, pair.mask.new_ones(2, 1)], dim=1)
    mask[1, 5] = 0
    with torch.no_grad():
        forward(pair.tokens(1), past_key_values=pair.static, attention_mask=mask)
    with pytest.raises(RuntimeError, match="attention_mask of a call did not go on"):
        pair.static.length()
