# SPDX-License-Identifier: Apache-2.0
"""TurboQuantStaticCache in CUDA graphs: those that torch.compile makes, and one captured by hand."""

import pytest
import torch
import torch._inductor.config
import where
from static_pair import StaticPair, assert_same_bytes
from tiny_models import SOFT_ROUTING, WIDE, generate, prompt, tiny_model
from torch._dynamo.utils import ReinplaceCounters, counters
from turboquant import TurboQuantCache, TurboQuantStaticCache, enable, join_projections


@pytest.fixture(autouse=True)
def device(monkeypatch):
    monkeypatch.setattr(where, "DEVICE", "cuda")
    torch._dynamo.reset()
    counters.clear()
    ReinplaceCounters.clear()
    yield
    torch._dynamo.reset()


def half_model(family):
    """With heads that the fast kernels take, in bfloat16."""
    model = tiny_model(family, **WIDE.get(family, dict(head_dim=64)), **SOFT_ROUTING.get(family, {})).to(torch.bfloat16)
    if family in SOFT_ROUTING:  # the loop over experts is no graph
        model.set_experts_implementation("batched_mm")
    return model


# gemma3n copies from the host as it runs, which no graph captures.
CAPTURED = ["llama", "qwen2", "qwen3", "phi3", "qwen3_next", "mistral_full", "gemma2", "gemma3", "gemma4", "gpt_oss"]
SLIDING = ["gemma2", "gemma3", "gemma4", "gpt_oss"]


class Captured:
    """One decoding step as a CUDA graph."""

    def __init__(self, model, cache, batch):
        self.ids = torch.zeros(batch, 1, dtype=torch.long, device="cuda")
        self.graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self.graph):
            self.out = model(self.ids, past_key_values=cache)

    def __call__(self, ids, past_key_values):
        self.ids.copy_(ids)
        self.graph.replay()
        return self.out


@pytest.mark.parametrize(
    ("family", "twin"),
    [(family, family in SLIDING) for family in CAPTURED],
)
def test_a_captured_step_replayed_writes_the_bytes_of_eager_ones(family, twin):
    """Those of the growing cache, and where layers slide, whose sums are in another order there, of a static one."""
    pair = StaticPair(half_model(family), max_tokens=150, twin=twin)
    pair.check(60)
    pair.check(1)
    step = Captured(pair.model, pair.static, batch=2)
    assert pair.static.length() == 61  # capturing runs nothing
    for _ in range(75):
        pair.check(1, step)
    assert pair.static.length() == 136


def test_surgery_between_replays():
    pair = StaticPair(half_model("llama"), batch=3)
    pair.check(70)
    step = Captured(pair.model, pair.static, batch=3)
    for change in (("crop", -3), ("reorder_cache", torch.tensor([2, 2, 0])), ("crop", 65)):
        pair.check(1, step)
        pair.check(1, step)
        for cache in (pair.static, pair.growing):
            getattr(cache, change[0])(change[1])
    for cache in (pair.static, pair.growing):
        cache.reset()
    for tokens in (30, 9):
        pair.check(tokens)
    pair.check(1, step)
    with pytest.raises(RuntimeError, match="3 sequences cannot become 1"):
        pair.static.batch_select_indices(torch.tensor([1]))


def test_replays_beyond_the_capacity_write_nowhere_else_and_are_an_error_afterwards():
    pair = StaticPair(half_model("llama"), max_tokens=128)
    pair.check(120)
    step = Captured(pair.model, pair.static, batch=2)
    for _ in range(8):
        pair.check(1, step)
    before = [layer.pages.clone() for layer in pair.static.layers]
    for _ in range(100):
        step(pair.tokens(1), past_key_values=pair.static)
    for old, layer in zip(before, pair.static.layers):
        assert torch.equal(old[:-1], layer.pages[:-1])
    with pytest.raises(RuntimeError, match="more tokens than max_tokens=128"):
        pair.static.length()
    pair.static.reset()
    pair.growing.reset()
    pair.check(30)
    pair.check(1, step)


def errors(model, forward, cache, text, exact):
    """L2 of the logits' differences from `exact`, over decoding steps of given tokens."""
    with torch.no_grad():
        model(text[:, :60], past_key_values=cache)
        logits = [forward(text[:, i : i + 1], past_key_values=cache).logits.float().clone() for i in range(60, text.shape[1])]
    return (torch.cat(logits, dim=1) - exact).norm().item()


@pytest.mark.parametrize(
    ("family", "joined"),
    [*((family, False) for family in ("llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma4", "gpt_oss")), ("llama", True), ("qwen2", True)],
)
def test_compiled_steps_are_one_cuda_graph_that_copies_no_page(family, joined):
    """And against a model without a cache, they lose no more than twice what eager ones do. Counters are of two caches."""
    check_compiled_steps(family, joined)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_compiled_steps_with_fewer_launches_that_overlap(family):
    """The switches of docs/transformers.md: small kernels of one launch, each of which may begin while the one before ends."""
    with torch._inductor.config.patch({"combo_kernels": True, "triton.enable_pdl": True}):
        check_compiled_steps(family, joined=True)


def check_compiled_steps(family, joined):
    model = half_model(family)
    text = prompt(batch=2, tokens=140, seed=3)["input_ids"]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        exact = model(text).logits[:, 60:].float()
    enable(model)
    eager = errors(model, model, TurboQuantCache(model.config, hold=0), text, exact)
    if joined:
        join_projections(model)
    forward = torch.compile(model, mode="reduce-overhead", fullgraph=True)
    for _ in range(2):  # the second records the same graph again, at its addresses
        cache = TurboQuantStaticCache(model.config, max_tokens=150)
        assert errors(model, forward, cache, text, exact) <= 2 * eager
        assert cache.length() == 140
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert counters["inductor"]["cudagraph_recorded_non_static_inputs"] > 0
    assert counters["stats"]["unique_graphs"] == 1
    assert ReinplaceCounters.get_total_missed() == 0


@pytest.mark.parametrize("joined", [False, True])
def test_generate_compiles_by_itself_and_writes_the_same_text(joined):
    model = half_model("llama")
    if joined:
        join_projections(model)
    inputs = prompt(batch=3, padding=(0, 7, 70), seed=4)
    eager, static = (TurboQuantStaticCache(model.config, max_tokens=120) for _ in range(2))
    expected = generate(model, "turboquant", eager, inputs, tokens=30, disable_compile=True)
    assert counters["stats"]["unique_graphs"] == 0
    ours = generate(model, "turboquant", static, inputs, tokens=30)
    assert counters["stats"]["unique_graphs"] == 1
    assert counters["inductor"]["cudagraph_skips"] == 0
    assert static.length() == eager.length() == 109
    assert torch.equal(ours.sequences[:, :81], expected.sequences[:, :81])


def test_generate_in_chunks_compiles_the_prompt_as_well():
    model = half_model("llama")
    inputs = prompt(batch=2, tokens=100, padding=(0, 40), seed=13)
    static = TurboQuantStaticCache(model.config, max_tokens=120)
    static.early_initialization(2, num_heads=2, head_dim=64, dtype=torch.bfloat16, device="cuda")
    generate(model, "turboquant", static, inputs, tokens=10, prefill_chunk_size=48)
    assert counters["stats"]["unique_graphs"] > 1 and static.length() == 109
    assert static.state.starts.tolist() == [0, 40]
