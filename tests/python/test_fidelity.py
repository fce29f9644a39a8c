# SPDX-License-Identifier: Apache-2.0
"""The first fidelity check: a real small model on a shipped text, everything quantised (see quantised_attention.py)."""

import numpy as np
import pytest
import torch
from quantised_attention import Study, attend, haar_rotation, lloyd_max, logits, paper, recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from turboquant.benchmark.demo_model import demo_model
from turboquant.benchmark.inputs import shipped_text
from turboquant.benchmark.metrics import kl_divergence

TOKENS = 1024
TEXT = "workshop.md"


@pytest.fixture(scope="module")
def smollm2():
    directory = demo_model()
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def mean_kl(smollm2):
    """Mean KL(exact || quantised) over the text's next-token distributions, of each way to quantise."""
    model, tokenizer = smollm2
    tokens = tokenizer(shipped_text(TEXT), return_tensors="pt")["input_ids"][0, :TOKENS]
    assert len(tokens) == TOKENS
    exact = logits(model, tokens, None)
    studies = {
        "paper": Study(paper(4, 4)),
        "recipe": Study(recipe(4, 4)),
        "recipe with fringe": Study(recipe(4, 4), first=4, recent=28),
    }
    return {name: float(kl_divergence(exact, logits(model, tokens, study)).mean()) for name, study in studies.items()}


def test_without_a_fringe_the_recipe_has_at_most_three_tenths_of_the_papers_kl(mean_kl):
    assert 0 < mean_kl["recipe"] <= 0.3 * mean_kl["paper"], mean_kl


def test_with_the_default_fringe_the_kl_is_at_most_three_thousandths(mean_kl):
    assert 0 < mean_kl["recipe with fringe"] <= 0.003, mean_kl


def test_a_fringe_that_holds_all_makes_the_check_itself_exact():
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(heads, 100, 64, generator=generator) for heads in (4, 2, 2))
    study = Study(lambda layer, q, k, v: (torch.full_like(k, 7.0), torch.full_like(v, 7.0)), first=100)
    out = attend(study, 0, query, keys, values, 0.125)
    expected = torch.nn.functional.scaled_dot_product_attention(query[None], keys[None], values[None], is_causal=True, enable_gqa=True)[0]
    torch.testing.assert_close(out, expected)


def test_the_papers_codebook_has_the_known_error():
    """0.00913151760356 at d = 64 and 4 bits: E x^2 = 1/d minus the mean square of the centroids."""
    dim, centroids = 64, lloyd_max(64, 4)
    units = np.random.default_rng(0).standard_normal((200_000, dim))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    codes = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, units)
    errors = ((units - centroids[codes]) ** 2).sum(1)
    assert abs(errors.mean() - 0.00913151760356) < 5 * errors.std() / np.sqrt(len(units))


def test_the_papers_rotation_is_orthogonal():
    rotation = haar_rotation(64, seed=3).double()
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(64, dtype=torch.float64), atol=1e-6, rtol=0)
