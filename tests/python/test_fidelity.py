# SPDX-License-Identifier: Apache-2.0
"""The first fidelity check: a real small model on a shipped text, everything quantised, by the harness of benchmarks/fidelity."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from fidelity import paper  # noqa: E402
from fidelity.attention import Exact, Study, logits  # noqa: E402
from fidelity.metrics import compare  # noqa: E402
from fidelity.ours import Recipe  # noqa: E402

from turboquant.benchmark.demo_model import demo_model  # noqa: E402
from turboquant.benchmark.inputs import shipped_text  # noqa: E402

TOKENS = 1024
TEXT = "workshop.md"
FRINGE = Exact(first=4, recent=28)


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
        "paper": Study(paper.mse(4, 4)),
        "recipe": Study(Recipe(4, 4)),
        "recipe with fringe": Study(Recipe(4, 4), FRINGE, FRINGE),
    }
    return {name: float(compare(exact, logits(model, tokens, study), tokens).kl.mean()) for name, study in studies.items()}


def test_without_a_fringe_the_recipe_has_at_most_three_tenths_of_the_papers_kl(mean_kl):
    assert 0 < mean_kl["recipe"] <= 0.3 * mean_kl["paper"], mean_kl


def test_with_the_default_fringe_the_kl_is_at_most_three_thousandths(mean_kl):
    assert 0 < mean_kl["recipe with fringe"] <= 0.003, mean_kl
