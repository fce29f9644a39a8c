# SPDX-License-Identifier: Apache-2.0
"""python -m turboquant.verify sees what codes do to each layer and head."""

import json

import pytest
import tiny_directory
import torch
from tiny_models import prompt, tiny_model

from turboquant import TurboQuantCache, enable
from turboquant.activations import observe
from turboquant.verify import verify
from turboquant.verify.cli import main

pytestmark = pytest.mark.usefixtures("one_thread")
LAYERS, HEADS = 4, 2


def small_model(seed=0):
    """Weights as small as a trained model's activations make them look: attention is not all on one token."""
    return tiny_model("llama", seed=seed, num_hidden_layers=LAYERS, initializer_range=0.08)


@pytest.fixture(scope="module")
def text():
    return prompt(tokens=200)["input_ids"][0]


@torch.no_grad()
def plant_bad_layer(model, layer, head):
    """Keys three hundred times as large make attention as much sharper: the same relative error now decides which token is seen."""
    projection = model.model.layers[layer].self_attn.k_proj
    projection.weight[head * 32 : (head + 1) * 32] *= 300.0
    return model


def test_every_layer_and_head_is_measured_once(text):
    found = verify(small_model(), [text, text])
    assert sorted((e.layer, e.head) for e in found) == [(i, h) for i in range(LAYERS) for h in range(HEADS)]
    assert all(0 < e.output < 1 and 0 < e.kl < 1 for e in found)
    assert [e.output for e in found] == sorted((e.output for e in found), reverse=True)


@torch.no_grad()
def test_the_numbers_are_those_of_whole_matrices(text):
    """The same from a cache that the model itself filled, with one softmax over all scores in float64."""
    model = small_model()
    seen, cache = {}, TurboQuantCache(model.config, fringe=None)
    observe(model, text, lambda a: seen.update({a.index: a}))
    enable(model)(text[None], past_key_values=cache)
    found = {(e.layer, e.head): e for e in verify(model, [text])}
    future = torch.ones(200, 200, dtype=torch.bool).triu(1)
    for (layer, head), e in found.items():
        a, coded = seen[layer], cache.layers[layer].dequantize(torch.float32)
        keys, values, coded_keys, coded_values = (x[head].double() for x in (a.keys, a.values, coded[0][0], coded[1][0]))
        query = a.query[2 * head : 2 * head + 2].double()
        scores = [query @ k.T * a.scale for k in (keys, coded_keys)]
        scores[1].diagonal(0, 1, 2).copy_(scores[0].diagonal(0, 1, 2))
        exact, other = (x.masked_fill(future, -torch.inf).softmax(-1) for x in scores)
        out = exact @ values
        error = other @ coded_values + other.diagonal(0, 1, 2)[..., None] * (values - coded_values) - out
        kl = torch.where(future, 0.0, exact * (exact / other).log()).nan_to_num().sum(-1).mean()
        expected = [float(x) for x in (
            (coded_keys - keys).norm() / keys.norm(), (coded_values - values).norm() / values.norm(), error.norm() / out.norm(), kl,
        )]  # fmt: skip
        assert [e.keys, e.values, e.output, e.kl] == pytest.approx(expected, rel=1e-4, abs=1e-6)  # fp32: log-weights of up to 10 are off by 2^-21


def test_fewer_bits_are_worse_in_every_head(text):
    by_bits = [{(e.layer, e.head): e for e in verify(small_model(), [text], bits, bits)} for bits in (4, 3, 2)]
    for better, worse in zip(by_bits, by_bits[1:]):
        for key in better:
            assert better[key].output < worse[key].output and better[key].kl < worse[key].kl


def test_a_planted_bad_head_comes_first(text):
    found = verify(plant_bad_layer(small_model(), layer=2, head=1), [text])
    assert (found[0].layer, found[0].head) == (2, 1)
    assert found[0].output > 2 * found[1].output


def test_layers_that_stay_in_16_bits_are_left_out(text):
    assert {e.layer for e in verify(tiny_model("gemma2"), [text])} == {1}


def test_layers_that_share_keys_and_values_count_once(text):
    assert {e.layer for e in verify(tiny_model("gemma4"), [text])} == {1}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    good = tiny_directory.save(root / "good", small_model())
    return good, tiny_directory.save(root / "bad", plant_bad_layer(small_model(), layer=1, head=0))


def test_the_command_passes_a_good_model_and_fails_a_bad_one(directories, tmp_path, capsys):
    report = tmp_path / "report.json"
    good = main(["--model", str(directories[0]), "--tokens", "100", "--threshold", "0.15"])
    assert "all below the threshold" in capsys.readouterr().out
    bad = main(["--model", str(directories[1]), "--tokens", "100", "--threshold", "0.15", "--json", str(report)])
    assert (good, bad) == (0, 1)
    assert "1 above the threshold" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert not found["passed"] and found["tokens"] == [100] * 4
    assert [found["heads"][0][key] for key in ("layer", "head")] == [1, 0]


def test_a_text_of_ones_own_is_read(directories, tmp_path, capsys):
    text = tmp_path / "own.txt"
    text.write_text("abcde " * 40)
    assert main(["--model", str(directories[0]), "--text", str(text), "--k-bits", "3"]) in (0, 1)
    assert "K3/V4, 240 tokens" in capsys.readouterr().out


def test_what_cannot_be_measured_is_said(directories, capsys):
    assert main(["--model", "nowhere"]) == 2
    assert main(["--model", str(directories[0]), "--text", "nowhere.txt"]) == 2
    assert "cannot read 'nowhere.txt'" in capsys.readouterr().err
