# SPDX-License-Identifier: Apache-2.0
"""What a TurboQuantCache takes and refuses, what it holds, and what an error leaves behind."""

import gc
import warnings

import pytest
import torch
import transformers
import where
from dense_oracle import oracle_attention
from layer_pair import LayerPair
from tiny_models import SHAPE, prompt, tiny_model
from transformers.cache_utils import DynamicSlidingWindowLayer
from turboquant import TurboQuantCache, enable, ops
from turboquant.attention import turboquant_attention
from turboquant.layers import TurboQuantLayer
from turboquant.pages import PagePool

pytestmark = pytest.mark.usefixtures("one_thread")


def llama_config(**changes):
    return transformers.LlamaConfig(**{**SHAPE, **changes})


def test_each_layer_is_stored_by_its_type():
    model = tiny_model("gemma2")
    cache = TurboQuantCache(model.config)
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, TurboQuantLayer]
    assert cache.is_sliding == [True, False]
    assert cache.is_croppable and not cache.is_compileable
    assert cache.get_max_length(1) == -1
    assert cache.get_seq_length(1) == 0 and cache.get_mask_sizes(7, 1) == (7, 0)


def test_linear_attention_stays_as_it_is():
    layers = ["linear_attention", "full_attention"]
    config = transformers.Qwen3NextConfig(**SHAPE, layer_types=layers, num_experts=2, num_experts_per_tok=1)
    kinds = [type(layer).__name__ for layer in TurboQuantCache(config).layers]
    assert kinds == ["LinearAttentionLayer", "TurboQuantLayer"]


def test_nothing_to_compress_is_said():
    with pytest.warns(UserWarning, match="none of the 2 layers of this MistralConfig is a full-attention layer"):
        TurboQuantCache(transformers.MistralConfig(**SHAPE, sliding_window=8))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (llama_config(head_dim=40), "layer 0 of LlamaConfig: .*head_dim=40"),
        (llama_config(head_dim=16), "layer 0 of LlamaConfig: .*head_dim=16"),
        (llama_config(head_dim=528), "layer 0 of LlamaConfig: .*head_dim=528"),
        (transformers.DeepseekV3Config(num_hidden_layers=2), r"latent attention \(kv_lora_rank=512\)"),
        (transformers.T5Config(), "T5Config is an encoder-decoder model"),
        (transformers.Llama4TextConfig(num_hidden_layers=4), "chunked attention"),
        (transformers.MiMoV2FlashConfig(num_hidden_layers=2), "head_dim .* differ"),
        (transformers.MllamaTextConfig(), "MllamaTextConfig has cross attention"),
        (transformers.GPT2Config(add_cross_attention=True), "GPT2Config has cross attention"),
        (transformers.RwkvConfig(), "RwkvConfig says nothing of attention heads"),
        (transformers.MiniMaxConfig(num_hidden_layers=2), "MiniMaxConfig: its model takes no cache but its own"),
        (transformers.FalconH1Config(num_hidden_layers=2), "LinearAttentionAndFullAttentionLayer"),
        (llama_config(dtype=torch.float64), "LlamaConfig has dtype torch.float64"),
    ],
    ids=["head_dim 40", "head_dim 16", "head_dim 528", "latent", "encoder-decoder", "chunked", "v_head_dim", "images' keys"]
    + ["cross attention", "no attention", "a cache of its own", "hybrid layers", "float64"],
)
def test_what_is_not_supported_is_refused_when_the_cache_is_built(config, message):
    with pytest.raises(NotImplementedError, match=f"{message}.*DynamicCache"):
        TurboQuantCache(config)


def test_a_config_that_transformers_builds_no_cache_from_is_refused():
    with pytest.raises(NotImplementedError, match="transformers builds no cache from DeepseekV4Config alone"):
        TurboQuantCache(transformers.DeepseekV4Config())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(k_bits=5), "k_bits=5"),
        (dict(v_bits=1), "v_bits=1"),
        (dict(fringe=(4,)), r"fringe=\(4,\)"),
        (dict(fringe=(-1, 8)), "fringe="),
        (dict(fringe=8), "fringe=8"),
        (dict(seed=-1), "seed=-1"),
        (dict(seed=1 << 47), "seed="),
        (dict(max_tokens=0), "max_tokens=0"),
    ],
    ids=str,
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        TurboQuantCache(llama_config(), **options)


def test_a_model_instead_of_its_config_is_named():
    with pytest.raises(TypeError, match=r"takes a model's config \(model.config\), not LlamaForCausalLM"):
        TurboQuantCache(tiny_model())


def test_a_model_without_the_attention_interface_is_refused():
    config = transformers.BloomConfig(hidden_size=64, n_layer=1, n_head=2, vocab_size=64)
    with pytest.raises(NotImplementedError, match="BloomForCausalLM does not take its attention from"):
        enable(transformers.BloomForCausalLM(config))


def test_the_same_seed_and_calls_give_the_same_bytes_and_another_seed_others():
    def run(seed):
        pair = LayerPair(seed=seed)
        pair.call(80)
        return pair.layer

    one, same, other = run(0), run(0), run(1)
    assert torch.equal(one.pages.pool.data, same.pages.pool.data) and torch.equal(one.fringe, same.fringe)
    assert not torch.equal(one.value_signs, other.value_signs)
    assert not torch.equal(one.signs, one.value_signs)


def test_memory_counts_every_tensor_that_is_held():
    model = enable(tiny_model("gemma2"))
    cache = TurboQuantCache(model.config)
    with torch.no_grad():
        model(**prompt(batch=2, tokens=80, padding=(0, 5)), past_key_values=cache)
    memory = cache.memory()
    assert memory["pages"] == 2 * 2 * 2 * ops.page_bytes(32, 4, 4)  # sequences, pages, heads
    assert memory["fringe"] == 2 * 2 * 32 * 2 * 32 * 2
    assert memory["stock"] >= 2 * 2 * 2 * 23 * 32 * 4
    assert memory["pending"] == 0
    assert cache.nbytes == sum(memory.values()) == sum(reachable_tensors(cache))
    assert cache.nbytes_16bit == memory["stock"] + 2 * 2 * 2 * 80 * 32 * 2


def reachable_tensors(root):
    """Bytes of each tensor that the object reaches, found by the garbage collector; of parts of one tensor the largest."""
    seen, queue, found = {id(root)}, [root], {}
    while queue:
        item = queue.pop()
        if isinstance(item, torch.Tensor):
            storage = item.untyped_storage().data_ptr()
            found[storage] = max(found.get(storage, 0), item.nbytes)
            continue
        for other in gc.get_referents(item):
            if id(other) not in seen and not isinstance(other, (type, torch.dtype)) and not callable(other):
                seen.add(id(other))
                queue.append(other)
    return list(found.values())


@pytest.mark.parametrize("broken", ["attend_encode", "encode", "balance"])
def test_an_error_leaves_the_layer_as_it_was_before_the_call(broken, monkeypatch):
    pair = LayerPair(hold=0)
    if broken == "attend_encode":  # the others are of the first call
        pair.check(60)
        before = pair.layer.dequantize()
    length = pair.layer.length
    query, keys, values = pair.vectors(70)
    with monkeypatch.context() as patch:
        patch.setattr(ops, broken, lambda *args: (_ for _ in ()).throw(RuntimeError("no such luck")))
        with pytest.raises(RuntimeError, match="no such luck"):
            turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    assert pair.layer.get_seq_length() == length
    assert len(pair.layer.pages.rows[0]) == (length + 63) // 64
    if length:
        after = pair.layer.dequantize()
        assert torch.equal(before[0], after[0]) and torch.equal(before[1], after[1])
    if broken == "attend_encode":
        pair.oracle.seen.append((query, None))  # for the metric, what was seen stays seen
    for tokens in (70, 1):
        pair.check(tokens)


def test_memory_that_runs_out_while_pages_grow_leaves_the_layer_as_it_was(monkeypatch):
    pair = LayerPair(batch=2)
    pair.check(64)
    before = pair.layer.dequantize()
    query, keys, values = pair.vectors(1)
    with monkeypatch.context() as patch:
        patch.setattr(PagePool, "reserve", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
        with pytest.raises(torch.OutOfMemoryError, match="full"):
            turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None)
    assert all(torch.equal(a, b) for a, b in zip(before, pair.layer.dequantize()))
    for tokens in (1, 70, 1):
        pair.check(tokens)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        (dict(output_attentions=True), NotImplementedError, "never holds the attention weights"),
        (dict(position_bias=torch.zeros(1)), NotImplementedError, "position_bias is not supported"),
        (dict(cu_seq_lens_q=torch.zeros(1)), NotImplementedError, "cu_seq_lens_q is not supported"),
    ],
    ids=lambda value: "" if not isinstance(value, dict) else next(iter(value)),
)
def test_arguments_that_cannot_be_honoured_are_refused_and_nothing_is_stored(kwargs, error, message):
    pair = LayerPair()
    pair.check(60)
    query, keys, values = pair.vectors(1)
    with pytest.raises(error, match=message):
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None, **kwargs)
    assert pair.layer.get_seq_length() == 60


def test_training_is_refused():
    pair = LayerPair()
    pair.module.training = True
    query, keys, values = pair.vectors(1)
    with pytest.raises(NotImplementedError, match=r"for inference: call model.eval\(\)"):
        turboquant_attention(pair.module, query, *pair.layer.update(keys, values), None, dropout=0.1)


def test_a_model_called_without_no_grad_answers_the_same_and_carries_no_gradient_through_the_cache():
    model = enable(tiny_model())
    ids = prompt(tokens=70)["input_ids"]
    with torch.no_grad():
        expected = [model(x, past_key_values=cache).logits for cache in [TurboQuantCache(model.config)] for x in (ids, ids[:, :1])]
    model.requires_grad_(True)
    cache = TurboQuantCache(model.config)
    for x, logits in zip((ids, ids[:, :1]), expected):
        assert torch.equal(model(x, past_key_values=cache).logits, logits)
    assert not any(t.requires_grad for t in cache.layers[0].dequantize())


def test_generate_with_output_attentions_is_refused():
    model = enable(tiny_model())
    with pytest.raises(NotImplementedError, match="output_attentions"):
        model(**prompt(), past_key_values=TurboQuantCache(model.config), output_attentions=True)


def test_padding_without_its_mask_is_refused():
    pair = LayerPair(batch=2)
    pair.call(60, pair.mask(60, (0, 9)))
    with pytest.raises(ValueError, match=r"first real positions: \[0, 9\]\): pass attention_mask with every call"):
        pair.call(1)
    with pytest.raises(ValueError, match="shows positions that were left padding"):
        pair.call(1, torch.ones(2, 1, 1, 61, device=where.DEVICE).bool())


def test_a_mask_of_the_wrong_length_is_named():
    pair = LayerPair()
    pair.check(60)
    with pytest.raises(ValueError, match=r"shape \(1, 1, 1, 1\), but .* 61 keys \(60 of them cached\)"):
        pair.call(1, torch.ones(1, 1, 1, 1, device=where.DEVICE).bool())


@pytest.mark.parametrize("change", ["batch", "heads", "head_dim", "dtype of values", "integers", "value head_dim", "rank"])
def test_vectors_that_do_not_belong_are_named_before_anything_is_written(change):
    pair = LayerPair(batch=2)
    pair.check(60)
    _, keys, values = pair.vectors(1)
    if change == "batch":
        keys, values = keys[:1], values[:1]
    elif change == "heads":
        keys, values = keys.repeat(1, 2, 1, 1), values.repeat(1, 2, 1, 1)
    elif change == "head_dim":
        keys, values = keys.repeat(1, 1, 1, 2), values.repeat(1, 1, 1, 2)
    elif change == "dtype of values":
        values = values.half()
    elif change == "integers":
        keys, values = keys.int(), values.int()
    elif change == "value head_dim":
        values = values[..., :16]
    else:
        keys, values = keys[0], values[0]
    with pytest.raises((ValueError, NotImplementedError), match="layer 0: "):
        pair.layer.update(keys, values)
    assert pair.layer.get_seq_length() == 60 and pair.layer.pending is None
    pair.check(1)


def test_keys_and_values_that_nothing_attends_to_are_kept():
    pair = LayerPair(balance=False, metric=False)
    _, keys, values = pair.vectors(70)
    pair.layer.update(keys, values)
    pair.oracle.update(keys, values)
    pair.oracle.append(keys, keys, values)
    assert pair.layer.get_seq_length() == 70
    pair.check(1)


def test_a_carrier_becomes_the_tensor_it_stands_for_when_touched():
    pair = LayerPair(balance=False, metric=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for tokens in (70, 1):
            query, keys, values = pair.vectors(tokens)
            key, value = pair.layer.update(keys, values)
            old_keys, old_values = pair.oracle.history() if pair.oracle.is_initialized else (keys[:, :, :0],) * 2
            pair.oracle.update(keys, values)
            pair.oracle.append(query, keys, values)
            expected = torch.cat([old_keys, keys], 2)
            assert key.shape == expected.shape and key.dtype == expected.dtype and key.device == expected.device
            assert key.size(2) == key.shape[-2] == expected.shape[2] and key.dim() == key.ndim == 4
            assert torch.equal(key[..., :3], expected[..., :3])
            assert torch.equal(query @ key.transpose(2, 3).repeat(1, 2, 1, 1), query @ expected.mT.repeat(1, 2, 1, 1))
            assert torch.equal(torch.cat([value, value]), torch.cat([torch.cat([old_values, values], 2)] * 2))
            assert torch.equal(2 * key + 1, 2 * expected + 1)
    pair.check(1)


def test_a_model_that_looks_at_keys_or_values_before_it_attends_gets_what_it_looked_at():
    pair = LayerPair(balance=False, metric=False)
    for tokens in (70, 1, 5):
        query, keys, values = pair.vectors(tokens)
        key, value = pair.layer.update(keys, values)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value.transpose(1, 2)
        ours, _ = turboquant_attention(pair.module, query, key, value, pair.mask(tokens, (0,)))
        bound = pair.bound(query, keys, values)
        exact, _ = oracle_attention(pair.module, query, *pair.oracle.update(keys, values), None)
        assert (ours - exact).abs().max() <= bound
        assert pair.layer.get_seq_length() == pair.oracle.length


def test_layers_that_share_kv_see_the_same_history_and_the_last_one_stores():
    pair = LayerPair(readers=3)
    for tokens in (70, 1, 5):
        query, keys, values = pair.vectors(tokens)
        carriers, handles = pair.layer.update(keys, values), pair.oracle.update(keys, values)
        for _ in range(3):
            assert not carriers[0].step.stored
            ours, _ = turboquant_attention(pair.module, query, *(x.to(keys.device) for x in carriers), None)
            exact, _ = oracle_attention(pair.module, query, *handles, None)
            assert (ours - exact).abs().max() <= pair.bound(query, keys, values)
            query = query + 1
        with pytest.raises(RuntimeError, match="they can be attended to 3 times"):
            turboquant_attention(pair.module, query, *carriers, None)
    assert not pair.layer.settings.warned


def test_early_initialization_allocates_before_the_first_call():
    cache = TurboQuantCache(llama_config(), max_tokens=128)
    cache.early_initialization(batch_size=2, num_heads=2, head_dim=32, dtype=torch.float32, device=where.DEVICE)
    assert cache.is_initialized and cache.get_seq_length() == 0
    assert cache.memory()["pages"] == 2 * 2 * 2 * 2 * ops.page_bytes(32, 4, 4)  # layers, sequences, pages, heads



def test_a_layer_that_was_not_built_to_leave_its_device_says_so():
    with pytest.raises(NotImplementedError, match="offloading=True"):
        TurboQuantCache(llama_config()).layers[0].offload()
