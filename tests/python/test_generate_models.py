# SPDX-License-Identifier: Apache-2.0
"""256 greedy tokens of every family are those of plain attention over what each query saw (seen.py).

The bound is the house's: the same maths done by PyTorch at the same dtype. Two references get the text of ours, one in
double precision, one at the model's dtype. Ours is at most twice as far from the first as the second is, in the mean
square and at the worst, so two candidates further apart than twice that distance cannot change places: there the
token must be the first reference's. Nearer ones are ties: hardly any in fp32, up to half of all in bf16.
"""

import copy
import warnings

import pytest
import seen
import torch
import where
from tiny_models import FAMILIES, SOFT_ROUTING, WIDE, generate, prompt, tiny_model
from tiny_vision import VISION, tiny_vision
from turboquant import TurboQuantCache, enable
from turboquant.layers import TurboQuantLayer

pytestmark = pytest.mark.usefixtures("one_thread")
TOKENS = 256
COMPRESSED = dict(gemma2=1, gemma3=1, gemma3n=1, gemma4=1, gpt_oss=1, mistral=0, qwen3_next=1)  # layers; others: 2


def assert_same_greedy_text(ours, oracle):
    """Equal tokens, and not by luck: the logits differ by less than half of what any token won by."""
    assert torch.equal(ours.sequences, oracle.sequences)
    ours_logits, oracle_logits = torch.stack(ours.logits), torch.stack(oracle.logits)
    top = oracle_logits.topk(2, dim=-1).values
    margin = (top[..., 0] - top[..., 1]).min()
    assert (ours_logits - oracle_logits).abs().max() < margin / 2


def check(model, inputs, tokens=TOKENS, **options):
    """One text of ours, generated with `options`, against both references. Returns its cache."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "none of the 2 layers")
        cache = TurboQuantCache(model.config)
    with seen.recorded() as calls:
        ours = generate(model, "turboquant", cache, inputs, tokens, **options)
    logits = []
    for reference in (copy.deepcopy(model).double(), model):
        enable(reference, seen.NAME)
        text = inputs | dict(input_ids=ours.sequences[:, :-1])
        for name in {"mm_token_type_ids", "token_type_ids"} & set(inputs):  # what is generated is text
            text[name] = torch.nn.functional.pad(inputs[name], (0, tokens - 1))
        if "attention_mask" in inputs:
            text["attention_mask"] = mask = torch.nn.functional.pad(inputs["attention_mask"], (0, tokens - 1), value=1)
            text["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            out = reference(**text, past_key_values=seen.seen_cache(cache, calls, reference.config), use_cache=True)
        logits.append(out.logits[:, -tokens:].double())
    exact, plain = logits
    error, allowed = torch.stack(ours.logits, 1).double() - exact, plain - exact
    assert error.square().mean().sqrt() <= 2 * allowed.square().mean().sqrt()
    worst = 2 * allowed.abs().max()
    assert error.abs().max() <= worst

    best = exact.topk(2, dim=-1)
    tie = best.values[..., 0] - best.values[..., 1] <= 2 * worst
    same = best.indices[..., 0] == ours.sequences[:, -tokens:]
    assert (same | tie).all(), f"{(~(same | tie)).nonzero().tolist()[:5]}: (sequence, token) that won clearly and was not taken"
    assert model.dtype != torch.float32 or tie.float().mean() <= 0.01
    return cache


@pytest.mark.parametrize("family", FAMILIES)
def test_256_greedy_tokens_are_those_of_plain_attention_over_what_each_query_saw(family):
    # Linear attention steps otherwise than it reads a text at once: by chance by more than the bound, which is ours, leaves.
    inputs = dict(input_ids=prompt(batch=2, seed=5 if family == "qwen3_next" else 3)["input_ids"])
    cache = check(tiny_model(family), inputs)
    full = [layer for layer in cache.layers if isinstance(layer, TurboQuantLayer)]
    assert len(full) == COMPRESSED.get(family, 2)
    assert all(layer.length == 80 + TOKENS - 1 for layer in full)  # the last token is never fed back


@pytest.mark.parametrize("family", FAMILIES)
def test_a_text_of_every_family_begins_with_few_tokens(family):
    cache = check(tiny_model(family), dict(input_ids=prompt(batch=2, tokens=3, seed=3)["input_ids"]), tokens=90)
    assert all(layer.held is None and layer.length == 92 for layer in cache.layers if isinstance(layer, TurboQuantLayer))


@pytest.mark.parametrize("family", VISION)
def test_256_tokens_about_images(family):
    check(*tiny_vision(family))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES if where.DEVICE == "cuda" else ["llama", "gemma4", "gpt_oss"])
def test_models_of_16_bits_whose_heads_the_fast_kernels_take(family, dtype):
    model = tiny_model(family, **WIDE.get(family, dict(head_dim=64)), **SOFT_ROUTING.get(family, {})).to(dtype)
    inputs = dict(input_ids=prompt(batch=2, tokens=300, seed=3)["input_ids"])
    check(model, inputs, tokens=100 if where.DEVICE == "cuda" and dtype == torch.bfloat16 else 40)
