# SPDX-License-Identifier: Apache-2.0
"""Tensors on a second GPU while the first is the current one: every operator and a cache work where their tensors are."""

import pytest
import torch
from moved import to_cuda
from paged import Paged
from tiny_models import generate, prompt, tiny_model

from turboquant import TurboQuantCache, ops

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
SECOND = torch.device("cuda:1")


@pytest.fixture(autouse=True)
def first_is_current():
    assert torch.cuda.current_device() == 0
    yield
    assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("own", [(1, 1, 1), (40, 40, 40)], ids=str)
def test_operators_give_the_bits_that_they_give_on_the_first(own):
    paged = Paged(own=own, head_dim=128, first=4, recent=28)
    results = []
    for device in ("cuda:0", SECOND):
        there = to_cuda(paged, device)
        a = there.arguments
        rotated = ops.rotate(a["keys"], a["value_signs"])
        results.append([*there.attend(), there.attend_encode(), *there.decode(), there.balance(), rotated, a["pages"], a["fringe"]])
        assert all(x.device == a["pages"].device for x in results[-1])
    for first, second in zip(*results):
        assert torch.equal(first, second.to(first.device))


def test_a_model_on_the_second_writes_what_it_writes_on_the_first():
    model, inputs = tiny_model(), prompt(batch=2)
    expected = generate(model, "turboquant", TurboQuantCache(model.config), inputs, 40)
    there = generate(model.to(SECOND), "turboquant", TurboQuantCache(model.config), {k: v.to(SECOND) for k, v in inputs.items()}, 40)
    assert torch.equal(there.sequences.to("cuda:0"), expected.sequences)


def test_layers_may_be_on_two_gpus():
    """As a device_map places them: each layer's inputs are brought to its device."""
    model, inputs = tiny_model(), prompt(batch=2)
    expected = generate(model, "turboquant", TurboQuantCache(model.config), inputs, 40)

    def bring(device):
        def moved(x):
            if isinstance(x, torch.Tensor):
                return x.to(device)
            return type(x)(map(moved, x)) if isinstance(x, (tuple, list)) else x

        return lambda module, args, kwargs: (moved(args), {name: moved(x) for name, x in kwargs.items()})

    model.model.layers[1].to(SECOND).register_forward_pre_hook(bring(SECOND), with_kwargs=True)
    model.model.norm.register_forward_pre_hook(bring("cuda:0"), with_kwargs=True)
    cache = TurboQuantCache(model.config)
    spread = generate(model, "turboquant", cache, inputs, 40)
    assert torch.equal(spread.sequences, expected.sequences)
    assert [layer.pages.pool.data.device for layer in cache.layers] == [torch.device("cuda:0"), SECOND]
