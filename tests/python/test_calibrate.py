# SPDX-License-Identifier: Apache-2.0
"""python -m turboquant.calibrate, the file it writes, and the caches that take it."""

import pytest
import tiny_directory
import torch
from tiny_models import generate, prompt, tiny_model
from safetensors.torch import save_file
from transformers import DynamicCache

from turboquant import CompressedDynamicCache, TurboQuantCache, TurboQuantStaticCache, enable, ops
from turboquant.activations import observe
from turboquant.benchmark import cli as benchmark
from turboquant.calibrate import calibrate
from turboquant.calibrate.cli import main
from turboquant.calibration import Calibration
from turboquant.metric import key_metric

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(scope="module")
def directory(model, tmp_path_factory):
    return tiny_directory.save(tmp_path_factory.mktemp("models") / "tiny", model)


@pytest.fixture(scope="module")
def text():
    return prompt(tokens=300)["input_ids"][0]


@pytest.fixture(scope="module")
def file(directory, tmp_path_factory):
    """What the command writes from its own texts."""
    path = tmp_path_factory.mktemp("out") / "balance.safetensors"
    assert main(["--model", str(directory), "--out", str(path), "--tokens", "256"]) == 0
    return path


def test_the_balance_is_the_operators_over_every_128_tokens(model, text):
    found = calibrate(model, [text])
    seen = {}
    observe(model, text, lambda a: seen.update({a.index: a}))
    for index, balance in found.balances.items():
        query, keys = (x[:, :256].transpose(0, 1).contiguous() for x in (seen[index].query, seen[index].keys))
        expected = ops.balance(query, keys, torch.tensor([0, 128, 256], dtype=torch.int32))
        assert torch.equal(balance, expected)
    assert sorted(found.balances) == [0, 1] and found.tokens == 256


def test_observing_leaves_the_models_attention_and_logits_as_they_were(model, text):
    model.set_attn_implementation("sdpa")
    before = model(text[None]).logits
    observe(model, text, lambda a: None)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(text[None]).logits, before)


def test_a_file_holds_what_was_measured(file, model):
    loaded = Calibration.load(file)
    assert loaded.tokens == 4 * 256 and loaded.name == "tiny" and sorted(loaded.balances) == [0, 1]
    loaded.check_model(model)
    for balance in loaded.balances.values():
        torch.testing.assert_close(balance.mean(-1), torch.ones(2))


@pytest.mark.parametrize("implementation", ["turboquant", "sdpa"])
def test_a_cache_takes_the_file_under_any_attention(file, model, implementation):
    cache = TurboQuantCache(model.config, balance=file)
    generate(model, implementation, cache, prompt(tokens=80), tokens=3)
    for index, balance in Calibration.load(file).balances.items():
        layer = cache.layers[index]
        assert torch.equal(layer.query_signs, layer.signs * balance) and torch.equal(layer.key_signs, layer.signs / balance)
        layer.reset()
        assert torch.equal(layer.query_signs, layer.signs * balance)


def metric_of(layer, *queries):
    return key_metric(torch.cat([x.float() for x in queries], 2), None, layer.query_signs, layer.base)


def test_the_queries_that_are_kept_are_spread_over_the_text(model, text):
    found, seen = calibrate(model, [text]), {}
    observe(model, text, lambda a: seen.update({a.index: a}))
    for index, queries in found.queries.items():
        assert torch.equal(queries, seen[index].query[:, 1:256:2].bfloat16())


def test_a_metric_begins_with_the_files_queries_and_goes_on_with_the_caches_own(file, model):
    queries = Calibration.load(file).queries[1][None]
    for implementation in ("sdpa", "turboquant"):  # under another attention a cache does not see its own
        cache, static = TurboQuantCache(model.config, balance=file), TurboQuantStaticCache(model.config, 200, balance=file)
        layer, seen = cache.layers[1], {}
        ids = prompt(tokens=80)["input_ids"]
        if implementation == "turboquant":
            observe(model, ids[0], lambda a: seen.update({a.index: a.query[None]}))
        generate(model, implementation, cache, {"input_ids": ids}, tokens=2)
        own = [seen[1]] if seen else []
        assert torch.equal(layer.key_metric, metric_of(layer, queries, *own))
        assert layer.growth.tokens == 208 if own else layer.growth is None  # whose queries are not seen will not grow
        layer.reset()
        assert torch.equal(layer.key_metric, metric_of(layer, queries)) and layer.growth.tokens == 128
        if implementation == "turboquant":
            with torch.no_grad():
                enable(model)(ids, past_key_values=static)
            assert torch.equal(static.layers[1].key_metric, metric_of(layer, queries, *own))


def test_few_tokens_of_a_first_call_are_seen_too(file, model):
    metrics = []
    for seed in (1, 2):
        cache = TurboQuantStaticCache(model.config, 200, balance=file)
        with torch.no_grad():
            enable(model)(prompt(tokens=40, seed=seed)["input_ids"], past_key_values=cache)
        metrics.append(cache.layers[1].key_metric.clone())
        cache.reset()
        assert torch.equal(cache.layers[1].key_metric, cache.layers[1].begun.metric)
    assert not torch.equal(*metrics)


def test_a_first_call_that_fails_leaves_the_files_queries_alone(file, model, monkeypatch):
    cache, ids = TurboQuantCache(model.config, balance=file), prompt(tokens=80)["input_ids"]
    with torch.no_grad(), monkeypatch.context() as patch:
        patch.setattr(ops, "encode", lambda *_: (_ for _ in ()).throw(RuntimeError("no such luck")))
        with pytest.raises(RuntimeError, match="no such luck"):
            enable(model)(ids, past_key_values=cache)
    assert cache.layers[0].growth.tokens == 128
    with torch.no_grad():
        model(ids, past_key_values=cache)
    assert cache.layers[0].growth.tokens == 208


def test_without_a_metric_the_files_queries_are_not_read(file, model):
    cache = TurboQuantCache(model.config, balance=file, metric=False)
    generate(model, "turboquant", cache, prompt(tokens=80), tokens=2)
    assert cache.layers[1].key_metric is None and cache.layers[1].growth is None


def test_files_of_the_first_format_have_no_queries(file, model, tmp_path):
    loaded, path = Calibration.load(file), tmp_path / "old.safetensors"
    metadata = {"format": "turboquant balance 1", "model": loaded.model, "weights": loaded.weights, "tokens": "256", "name": "tiny"}
    save_file({f"layers.{i}.balance": x for i, x in loaded.balances.items()}, str(path), metadata)
    cache = TurboQuantCache(model.config, balance=path)
    generate(model, "turboquant", cache, prompt(tokens=80), tokens=2)
    assert not Calibration.load(path).queries and cache.layers[1].growth.tokens == 81


def test_the_wrapper_of_a_dynamic_cache_takes_it_too(file, model):
    cache = DynamicCache(config=model.config)
    CompressedDynamicCache(cache, head_dim=32, balance=str(file), model_config=model.config)
    generate(model, "turboquant", cache, prompt(tokens=80), tokens=3)
    layer = cache.layers[1]
    assert torch.equal(layer.query_signs, layer.signs * Calibration.load(file).balances[1])


def test_the_benchmark_takes_it_and_refuses_that_of_other_weights(file, directory, tmp_path, capsys):
    options = ["--model", str(directory), "--random-prompt", "70", "--max-new-tokens", "2", "--repeats", "1", "--chunk", "0", "--balance", str(file)]
    assert benchmark.main(options) == 0
    other = tiny_directory.save(tmp_path / "other", tiny_model("llama", seed=1))
    options[1] = str(other)
    assert benchmark.main(options) == 2
    assert "other weights (tiny) of this shape" in capsys.readouterr().err


def test_a_cache_of_another_model_refuses_it(file):
    with pytest.raises(ValueError, match=r"another model \(tiny\)"):
        TurboQuantCache(tiny_model("llama", num_hidden_layers=3).config, balance=file)


def test_a_wrapper_that_does_not_know_its_model_refuses_other_shapes(file):
    other = tiny_model("llama", num_key_value_heads=1)
    cache = DynamicCache(config=other.config)
    CompressedDynamicCache(cache, head_dim=32, balance=str(file))
    with pytest.raises(ValueError, match="layer 0: the calibration has"):
        generate(other, "turboquant", cache, prompt(tokens=80), tokens=3)


def test_other_files_are_refused_by_name(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("not safetensors")
    with pytest.raises(ValueError, match="notes.txt.*holds no balance vectors"):
        Calibration.load(path)
    with pytest.raises(ValueError, match="nowhere"):
        Calibration.load(tmp_path / "nowhere")


def test_a_text_that_is_too_short_is_named(model):
    with pytest.raises(ValueError, match="a text of 100 tokens: calibration needs 128"):
        calibrate(model, [torch.ones(100, dtype=torch.long)])
