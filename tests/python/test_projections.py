# SPDX-License-Identifier: Apache-2.0
"""Projections of one input as one matrix product: the same numbers, parameters and memory, and fewer products in a compiled step."""

import copy

import pytest
import torch
from tiny_models import tiny_model
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from transformers import DynamicCache
from turboquant import TurboQuantStaticCache, enable, join_projections
from turboquant.projections import Joint

pytestmark = pytest.mark.usefixtures("one_thread")

IDS = torch.arange(1, 71).remainder(97)[None].repeat(2, 1)


def joints(model):
    return [module for module in model.modules() if isinstance(module, Joint)]


def storages(model):
    return {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in (*model.parameters(), *model.buffers())}


def steps(model, forward, cache):
    with torch.no_grad():
        model(IDS[:, :64], past_key_values=cache)
        return torch.cat([forward(IDS[:, i : i + 1], past_key_values=cache).logits for i in range(64, 70)], dim=1)


# Gemma 3n: three of five layers have no keys of their own. Phi-3 has one matrix as it is; Qwen3-Next's MLPs are experts and a shared one.
@pytest.mark.parametrize(("family", "count"), [("llama", 4), ("qwen2", 4), ("gemma3n", 7), ("phi3", 0), ("gpt_oss", 2), ("qwen3_next", 3)])
def test_a_joined_model_computes_the_same_and_has_the_same_parameters_and_memory(family, count):
    model = tiny_model(family)
    with torch.no_grad():
        expected, names, held = model(IDS).logits, list(model.state_dict()), sum(storages(model).values())
        assert join_projections(model) is model
        torch.testing.assert_close(model(IDS).logits, expected)
    assert len(joints(model)) == count and list(model.state_dict()) == names
    assert sum(storages(model).values()) == held
    join_projections(model)
    assert len(joints(model)) == count


def test_a_compiled_step_has_two_products_a_layer_less_for_attention_and_one_for_the_mlp():
    model, products = enable(tiny_model()), []

    def counted(graph, _):
        products.append(sum(node.target is torch.ops.aten.mm.default for node in graph.graph.nodes))
        return graph.forward

    for _ in range(2):
        torch._dynamo.reset()
        forward = torch.compile(model, backend=aot_autograd(fw_compiler=counted), fullgraph=True, dynamic=False)
        expected = steps(model, model, TurboQuantStaticCache(model.config, max_tokens=80))
        for _ in range(2):  # a second cache runs the same code
            torch.testing.assert_close(steps(model, forward, TurboQuantStaticCache(model.config, max_tokens=80)), expected)
        join_projections(model)
    assert products == [2 * 7 + 1, 2 * 4 + 1]
    assert all(joint.last is None for joint in joints(model))


def test_weights_that_are_cast_loaded_or_copied_are_those_of_the_joint_product():
    model, other = join_projections(tiny_model()), tiny_model(seed=1)
    with torch.no_grad():
        copied = copy.deepcopy(model)
        copied.load_state_dict(other.state_dict())
        torch.testing.assert_close(copied(IDS).logits, other(IDS).logits)
        model.load_state_dict(other.state_dict(), assign=True)
        torch.testing.assert_close(model(IDS).logits, other(IDS).logits)
        torch.testing.assert_close(model.double()(IDS).logits, other.double()(IDS).logits)
    assert sum(storages(model).values()) == sum(storages(other).values())


def test_gradients_flow_as_without():
    model, other = join_projections(tiny_model()).requires_grad_(True), tiny_model().requires_grad_(True)
    for each in (model, other):
        each(IDS, labels=IDS).loss.backward()
    for (name, one), (_, two) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, msg=name)


def test_a_call_that_failed_half_way_leaves_nothing_for_the_next():
    model = join_projections(tiny_model())
    layer = model.model.layers[1].self_attn
    with torch.no_grad():
        expected = model(IDS, past_key_values=DynamicCache(config=model.config)).logits
        x = torch.randn(1, 3, 64)
        layer.q_proj(x)
        assert layer.q_proj(x.zero_()).eq(0).all()
        torch.testing.assert_close(model(IDS, past_key_values=DynamicCache(config=model.config)).logits, expected)


def test_layers_that_are_no_plain_linear_ones_are_left_alone():
    class Mine(nn.Linear):
        pass

    model = tiny_model()
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    attention.k_proj = Mine(64, 64, bias=False)
    mlp.up_proj = nn.Linear(64, 64, bias=False, dtype=torch.bfloat16)
    join_projections(model)
    assert len(joints(model)) == 2 and type(attention.q_proj) is nn.Linear and type(mlp.gate_proj) is nn.Linear
