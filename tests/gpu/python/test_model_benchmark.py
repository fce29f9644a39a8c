# SPDX-License-Identifier: Apache-2.0
"""The whole-model benchmark's measurements on the device, on a model of a few layers with a large model's heads."""

import contextlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import DynamicCache, LlamaConfig

import turboquant
from turboquant.benchmark import longest

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))

from gpu_model import eager, memory, subject  # noqa: E402
from gpu_model import rows as table  # noqa: E402
from gpu_model.run import Run  # noqa: E402

ROWS = {row.name: row for row in table.rows()}
QUICK = Run(quick=True)


@pytest.fixture(scope="module")
def model():
    config = LlamaConfig(
        hidden_size=1024, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, head_dim=128,
        vocab_size=4096, max_position_embeddings=1 << 20, bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    return turboquant.enable(subject.random_model(config, "cuda"))


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("batch, tokens", [(1, 2048), (8, 1000)])
def test_a_step_with_our_cache_is_as_close_to_torchs_backends_as_they_are_to_each_other(model, batch, tokens):
    found = eager.measure(model, replace(ROWS["eager step, 1 x 2,048"], batch=batch, tokens=tokens), QUICK)
    assert found["right"], found
    assert found["ms"]["turboquant"]["median"] > 0


def test_a_cache_holds_what_it_says_by_the_allocator_and_never_a_second_copy(model):
    found = memory.measure(model, replace(ROWS["bytes, 8 x 8,192"], tokens=4096), QUICK)
    assert found["nbytes_off"] == 0, found
    assert found["resident_share"] <= 0.28, found
    assert found["extra_share"] < 1 <= found["baseline_extra_share"], found  # a 16-bit copy alone would be 1


CACHES = {
    # A DynamicCache takes all in one call: in many it would copy itself each time.
    "DynamicCache": (lambda config, _: DynamicCache(config=config), 1 << 40),
    "TurboQuantCache": (lambda config, room: turboquant.TurboQuantCache(config, max_tokens=room), 4096),
}


@pytest.mark.parametrize("name", CACHES)
def test_a_context_fits_or_runs_out_of_memory_and_leaves_none_behind(model, name):
    make, chunk = CACHES[name]
    shapes = longest.layer_shapes(model)
    longest.settle()
    before = torch.cuda.memory_allocated()
    for tokens, expected in ((10_000, True), (1 << 30, False), (10_000, True)):
        assert longest.fits(model, lambda: make(model.config, tokens + 2), contextlib.nullcontext, shapes, tokens, chunk) is expected
        longest.settle()
    assert torch.cuda.memory_allocated() == before
