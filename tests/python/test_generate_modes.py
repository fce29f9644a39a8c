# SPDX-License-Identifier: Apache-2.0
"""Every way that generate uses a cache, against the oracle; and caches used side by side."""

import copy
import re
from pathlib import Path

import dense_oracle
import pytest
import torch
import transformers
import where
from dense_oracle import OracleCache
from test_generate_models import assert_same_greedy_text, check
from tiny_models import ALTERNATING, SHAPE, VOCABULARY, generate, prompt, tiny_model
from turboquant import TurboQuantCache, enable
from turboquant.layers import TurboQuantLayer

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def llama():
    return tiny_model()


def both(model, inputs, tokens=12, **options):
    """The oracle's text and ours, each with its cache."""
    results = []
    for implementation, kind in ((dense_oracle.NAME, OracleCache), ("turboquant", TurboQuantCache)):
        torch.manual_seed(5)  # of sampling
        cache = kind(model.config)
        results.append(generate(model, implementation, cache, inputs, tokens, **options))
    return results


def test_sampling_with_a_seed(llama):
    oracle, ours = both(llama, prompt(batch=2), do_sample=True, top_k=20, temperature=1.3, num_return_sequences=3)
    assert torch.equal(ours.sequences, oracle.sequences)
    greedy = generate(llama, "turboquant", TurboQuantCache(llama.config), prompt(batch=2))
    assert not torch.equal(ours.sequences[::3], greedy.sequences)  # it did sample


@pytest.mark.parametrize("padding", [(), (0, 21)], ids=["no padding", "left padding"])
def test_beam_search(llama, padding):
    oracle, ours = both(llama, prompt(batch=2, padding=padding), num_beams=3, num_return_sequences=2)
    assert torch.equal(ours.sequences, oracle.sequences)
    torch.testing.assert_close(ours.sequences_scores, oracle.sequences_scores, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("family", "seed"), [("llama", 14), ("gemma2", 5)])
def test_assisted_decoding(family, seed, monkeypatch):
    model, assistant = tiny_model(family), tiny_model(family)
    torch.manual_seed(0)
    for parameter in assistant.parameters():  # nearly the model: some drafts are taken, some cropped away
        parameter.data += 0.01 * torch.randn(parameter.shape).to(parameter.device)
    # Where scikit-learn is, the drafts' lengths are fitted to what was taken, and transformers 5.17 fails on sliding windows
    # of an assistant all of whose draft is taken.
    monkeypatch.setattr("transformers.generation.candidate_generator.is_sklearn_available", lambda: False)
    removed = []
    crop = TurboQuantLayer.crop
    monkeypatch.setattr(TurboQuantLayer, "crop", lambda layer, n: (removed.append(-n), crop(layer, n))[1])
    oracle, ours = both(model, prompt(seed=seed), tokens=16, assistant_model=assistant)
    assert_same_greedy_text(ours, oracle)
    assert any(removed) and not all(removed)


def test_drafts_looked_up_in_the_prompt(llama):
    inputs = prompt(tokens=30, seed=6)
    inputs = {name: x.repeat(1, 3) for name, x in inputs.items()}
    oracle, ours = both(llama, inputs, prompt_lookup_num_tokens=5)
    assert_same_greedy_text(ours, oracle)


@pytest.mark.parametrize(("family", "seed"), [("llama", 9), ("gpt_oss", 9), ("gemma2", 7)])
def test_left_padded_batches(family, seed):
    check(tiny_model(family), prompt(batch=3, padding=(0, 7, 70), seed=seed), tokens=8)


@pytest.mark.parametrize(
    "options",
    [{}, dict(num_beams=3), dict(do_sample=True, top_k=20, num_return_sequences=2), dict(prompt_lookup_num_tokens=5), dict(prefill_chunk_size=4)],
    ids=str,
)
def test_every_way_may_begin_with_few_tokens(llama, options):
    """80 more than 9: the first 64 are held, then coded."""
    inputs = prompt(batch=1 if "prompt_lookup_num_tokens" in options else 2, tokens=9, seed=4)
    if "prompt_lookup_num_tokens" not in options:
        inputs["input_ids"][0, :5], inputs["attention_mask"][0, :5] = 0, 0
    oracle, ours = both(llama, inputs, tokens=80, **options)
    if "num_beams" in options:  # over so many tokens beams come within rounding of each other, and either may win
        torch.testing.assert_close(ours.sequences_scores, oracle.sequences_scores, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(ours.sequences, oracle.sequences)


def test_assisted_decoding_may_begin_with_few_tokens(llama):
    assistant = tiny_model()
    torch.manual_seed(0)
    for parameter in assistant.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape).to(parameter.device)
    oracle, ours = both(llama, prompt(tokens=9, seed=4), tokens=80, assistant_model=assistant)
    assert torch.equal(ours.sequences, oracle.sequences)


@pytest.mark.parametrize("padding", [(), (0, 40)], ids=["no padding", "left padding"])
def test_chunked_prefill(llama, padding):
    check(llama, prompt(batch=2, tokens=100, padding=padding, seed=13), tokens=10, prefill_chunk_size=33)


def test_a_conversation_goes_on_in_one_cache(llama):
    texts = []
    for implementation, kind in ((dense_oracle.NAME, OracleCache), ("turboquant", TurboQuantCache)):
        cache, inputs, outputs = kind(llama.config), prompt(seed=11), []
        for turn in range(3):
            outputs.append(generate(llama, implementation, cache, inputs, tokens=6))
            said = torch.cat([outputs[-1].sequences, prompt(tokens=20, seed=1100 + turn)["input_ids"]], dim=1)
            inputs = dict(input_ids=said, attention_mask=torch.ones_like(said))
        texts.append(outputs)
    for oracle, ours in zip(*texts):
        assert_same_greedy_text(ours, oracle)


def test_two_caches_of_one_model_take_turns(llama):
    enable(llama)
    prompts = [prompt(seed=1)["input_ids"], prompt(batch=3, seed=2, tokens=50)["input_ids"]]
    alone = [generate(llama, "turboquant", TurboQuantCache(llama.config), dict(input_ids=ids)) for ids in prompts]
    caches = [TurboQuantCache(llama.config) for _ in prompts]
    texts = [ids for ids in prompts]
    with torch.no_grad():
        for _ in range(12):
            for i, cache in enumerate(caches):
                logits = llama(texts[i][:, cache.get_seq_length() :], past_key_values=cache).logits[:, -1]
                texts[i] = torch.cat([texts[i], logits.argmax(-1, keepdim=True)], dim=1)
    for text, expected in zip(texts, alone):
        assert torch.equal(text, expected.sequences)


def test_a_copied_cache_serves_a_common_beginning(llama):
    enable(llama)
    beginning = prompt(tokens=70)["input_ids"]
    shared = TurboQuantCache(llama.config)
    with torch.no_grad():
        llama(beginning, past_key_values=shared)
    for seed in (3, 4):
        question = torch.cat([beginning, prompt(tokens=9, seed=seed)["input_ids"]], dim=1)
        ours = generate(llama, "turboquant", copy.deepcopy(shared), dict(input_ids=question))
        own = TurboQuantCache(llama.config)
        with torch.no_grad():
            llama(beginning, past_key_values=own)
        expected = generate(llama, "turboquant", own, dict(input_ids=question))
        assert torch.equal(ours.sequences, expected.sequences)
    assert shared.get_seq_length() == 70


def test_another_attention_gets_tensors_and_the_user_a_warning(llama):
    oracle = generate(llama, dense_oracle.NAME, OracleCache(llama.config, balance=False, metric=False), prompt(seed=9))
    for implementation in ("sdpa", "eager"):
        cache = TurboQuantCache(llama.config)
        with pytest.warns(UserWarning, match=r"turboquant\.enable\(model\)") as warned:
            ours = generate(llama, implementation, cache, prompt(seed=9))
        assert sum("turboquant.enable" in str(w.message) for w in warned) == 1
        assert_same_greedy_text(ours, oracle)


def test_enabled_models_without_our_cache_compute_what_eager_does():
    for family in ("llama", "gemma2", "gpt_oss"):
        model = tiny_model(family)
        inputs = prompt(batch=2, padding=(0, 9))
        eager = generate(model, "eager", None, inputs)
        assert_same_greedy_text(generate(enable(model), "turboquant", None, inputs), eager)


def test_enable_touches_the_text_part_only():
    text = transformers.Gemma3TextConfig(**SHAPE, **ALTERNATING)
    vision = transformers.SiglipVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, image_size=28, patch_size=14
    )
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    model = transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval().to(where.DEVICE)
    assert enable(model) is model
    assert model.config.text_config._attn_implementation == "turboquant"
    assert model.config.vision_config._attn_implementation == "sdpa"
    ids = torch.randint(1, VOCABULARY, (1, 70), device=where.DEVICE)
    cache = TurboQuantCache(model.config)
    with torch.no_grad():
        model(input_ids=ids, past_key_values=cache)
        model(input_ids=ids[:, :1], past_key_values=cache)
    assert cache.get_seq_length() == 71
    assert not cache.settings.warned


def test_the_example_of_the_document_runs(llama, capsys):
    document = Path(__file__).parents[2] / "docs" / "transformers.md"
    code, *_ = re.findall(r"```python\n(.*?)```", document.read_text(), re.DOTALL)
    names = dict(model=llama, inputs=prompt())
    exec(code, names)
    assert names["output"].shape == (1, 80 + 64)
    assert "'pages'" in capsys.readouterr().out
