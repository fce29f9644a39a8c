# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
import torch

from turboquant.benchmark.metrics import (
    WARMUP_STEPS,
    Fidelity,
    StepTimes,
    first_difference,
    kl_divergence,
    percentile,
    speed,
    top1_agreement,
)


def test_equal_distributions_have_a_kl_of_zero():
    logits = torch.randn(70, 1000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(kl_divergence(logits, logits), torch.zeros(70, dtype=torch.float64))


def test_a_constant_added_to_all_logits_changes_nothing():
    logits = torch.randn(3, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert kl_divergence(logits, logits + 7.0).max() < 1e-14


def test_the_kl_of_two_coins_is_the_textbook_one():
    p, q = 0.75, 0.5
    expected = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    coins = [torch.tensor([[math.log(x), math.log(1 - x)]], dtype=torch.float64) for x in (p, q)]
    assert kl_divergence(*coins).item() == pytest.approx(expected, rel=1e-14)
    assert kl_divergence(*coins[::-1]).item() != pytest.approx(expected)  # the baseline comes first


def test_tokens_that_both_forbid_count_nothing():
    logits = torch.tensor([[0.0, 1.0, float("-inf")]])
    assert kl_divergence(logits, logits).item() == 0.0


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\[2, 3\] and \[2, 4\]"):
        kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4))


def test_top1_agreement_looks_at_the_most_likely_token_alone():
    one = torch.tensor([[0.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    other = torch.tensor([[1.0, 0.0, 9.0], [0.0, 0.1, 0.0]])
    assert top1_agreement(one, other).tolist() == [True, False]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("count", [1, 2, 10, 1001])
def test_percentiles_are_those_of_numpy(share, count):
    values = torch.randn(count, dtype=torch.float64, generator=torch.Generator().manual_seed(count))
    assert percentile(values, share) == pytest.approx(np.quantile(values.numpy(), share), rel=1e-12)


def test_a_summary_has_mean_and_tail():
    kl = torch.arange(1001, dtype=torch.float64)
    fidelity = Fidelity(torch.arange(1001), kl, kl < 900)
    assert fidelity.kl_summary() == {"mean": 500.0, "median": 500.0, "p99": 990.0, "p999": 999.0, "max": 1000.0}
    assert fidelity.top1() == pytest.approx(900 / 1001)


def test_nothing_measured_is_none_and_not_zero():
    nothing = Fidelity.joined([])
    assert set(nothing.kl_summary().values()) == {None} and nothing.top1() is None


def test_parts_join_in_order():
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    parts = [Fidelity.of_logits(10, logits, logits), Fidelity.of_logits(14, logits, -logits)]
    joined = Fidelity.joined(parts)
    assert joined.positions.tolist() == list(range(10, 18))
    assert joined.kl[:4].sum() == 0 and joined.kl[4:].min() > 0


@pytest.mark.parametrize(
    "one, other, expected",
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [], None), ([], [4], 0)],
)
def test_the_first_differing_token(one, other, expected):
    assert first_difference(one, other) == expected


def test_speed_is_the_median_after_the_warm_up():
    slow_start = [9.0] * WARMUP_STEPS
    runs = [StepTimes(2.0, slow_start + [0.1, 0.1, 0.3]), StepTimes(4.0, slow_start + [0.1, 0.2])]
    found = speed(runs)
    assert found["time_per_token_s"] == pytest.approx(0.1) and found["tokens_per_s"] == pytest.approx(10.0)
    assert found["time_to_first_token_s"] == pytest.approx(3.0) and found["steps"] == 5


def test_too_few_steps_give_no_speed():
    assert speed([StepTimes(1.0, [0.1] * WARMUP_STEPS)])["tokens_per_s"] is None
