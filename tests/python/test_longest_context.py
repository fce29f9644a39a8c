# SPDX-License-Identifier: Apache-2.0
"""The search for the longest context that fits, without a GPU: what is tried, and how the search ends."""

import contextlib

import pytest
import torch
from tiny_models import tiny_model
from transformers import DynamicCache

import turboquant
from turboquant.benchmark import longest


def test_a_context_is_filled_in_calls_and_then_decoded(one_thread):
    model = turboquant.enable(tiny_model("llama"))
    made = []

    def make():
        made.append(turboquant.TurboQuantCache(model.config, max_tokens=252))
        return made[-1]

    shapes = longest.layer_shapes(model)
    assert shapes == {0: (2, 32, 32), 1: (2, 32, 32)} and longest.bytes_a_token(shapes, 2) == 2 * 2 * 64 * 2
    assert longest.fits(model, make, contextlib.nullcontext, shapes, 250, chunk=100)
    assert made[0].get_seq_length() == 250 + longest.DECODED


@pytest.mark.parametrize("family", ["gemma3", "gemma3n", "qwen3_next"])
def test_windows_shared_and_linear_layers_are_filled_as_the_model_has_them(family, one_thread):
    model = tiny_model(family)
    shapes = longest.layer_shapes(model)
    assert 0 < len(shapes) <= model.config.num_hidden_layers
    assert longest.fits(model, lambda: DynamicCache(config=model.config), contextlib.nullcontext, shapes, 200)
    turboquant.enable(model)
    assert longest.fits(model, lambda: turboquant.TurboQuantCache(model.config), contextlib.nullcontext, shapes, 200, chunk=64)


def test_memory_that_runs_out_is_a_context_that_does_not_fit():
    def fail():
        raise torch.cuda.OutOfMemoryError("no more")

    assert not longest.fits(None, fail, contextlib.nullcontext, {}, 250)


@pytest.mark.parametrize("limit", [0, 63, 64, 500, 640, 1000, 5000])
def test_halving_finds_the_largest_that_suffices(limit):
    tried = []

    def suffices(tokens):
        tried.append(tokens)
        return tokens <= limit

    assert longest.largest(suffices, 500, 1100, 64) == min(limit, 1024) // 64 * 64
    assert len(tried) <= 6
