# SPDX-License-Identifier: Apache-2.0
"""Generated tokens are those of plain attention over what a query sees, in every family of models."""

import dense_oracle
import pytest
import torch
from dense_oracle import OracleCache
from tiny_models import CLEAR_PROMPTS, FAMILIES, generate, prompt, tiny_model
from turboquant import TurboQuantCache, enable
from turboquant.layers import TurboQuantLayer

pytestmark = pytest.mark.usefixtures("one_thread")


def assert_same_greedy_text(ours, oracle):
    """Equal tokens, and not by luck: the logits differ by less than half of what any token won by."""
    assert torch.equal(ours.sequences, oracle.sequences)
    ours_logits, oracle_logits = torch.stack(ours.logits), torch.stack(oracle.logits)
    top = oracle_logits.topk(2, dim=-1).values
    margin = (top[..., 0] - top[..., 1]).min()
    assert (ours_logits - oracle_logits).abs().max() < margin / 2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore:none of the 2 layers")
def test_greedy_text_is_that_of_plain_attention_over_what_a_query_sees(family):
    model, inputs = tiny_model(family), prompt(seed=CLEAR_PROMPTS[family])
    oracle = generate(model, dense_oracle.NAME, OracleCache(model.config), inputs)
    cache = TurboQuantCache(model.config)
    ours = generate(enable(model), "turboquant", cache, inputs)
    assert_same_greedy_text(ours, oracle)
    full = [layer for layer in cache.layers if isinstance(layer, TurboQuantLayer)]
    assert len(full) == dict(gemma2=1, gemma3=1, gemma3n=1, gemma4=1, gpt_oss=1, mistral=0, qwen3_next=1).get(family, 2)
    assert all(layer.length == 91 for layer in full)  # the last token is never fed back
