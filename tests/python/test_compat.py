# SPDX-License-Identifier: Apache-2.0
"""The names of turboquant-vllm, used as its users use them."""

import copy
import warnings

import pytest
import torch
from tiny_models import generate, prompt, tiny_model
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import turboquant
from turboquant import CompressedDynamicCache, TurboQuantKVCache, ops

HEAD_DIM = 64


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=128, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=HEAD_DIM, max_position_embeddings=1024,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(params=["sdpa", "turboquant"])
def attending(request, model):
    """The model under an attention of transformers', and under ours."""
    model.set_attn_implementation(request.param)
    yield model
    model.set_attn_implementation("sdpa")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The model does not attend with 'turboquant'")
        yield


PROMPT = torch.arange(150).remainder(96)[None] + 1  # without the padding token


@pytest.mark.parametrize(
    "name",
    [
        "CompressedDynamicCache", "LloydMaxCodebook", "TurboQuantCompressorMSE", "TurboQuantCompressorV2",
        "TurboQuantKVCache", "TurboQuantMSE", "TurboQuantProd", "solve_lloyd_max",
    ],
)  # fmt: skip
def test_every_public_name_of_the_original_is_a_name_here(name):
    assert name in turboquant.__all__ and name in dir(turboquant)
    assert getattr(turboquant, name).__name__ == name


def answer(model, cache, tokens: int = 12, prompt: torch.Tensor = PROMPT) -> torch.Tensor:
    return model.generate(prompt, past_key_values=cache, max_new_tokens=tokens, do_sample=False, pad_token_id=0)


def test_the_dynamic_cache_goes_on_to_the_model_and_holds_compressed_layers(attending):
    cache = DynamicCache()
    compressed = CompressedDynamicCache(cache, head_dim=HEAD_DIM, bits=4)
    answer(attending, cache)
    assert cache.get_seq_length() == compressed.get_seq_length() == 150 + 11  # the last token is never fed back
    assert len(cache) == len(compressed) == 3
    assert not any(isinstance(getattr(layer, "keys", None), torch.Tensor) for layer in cache.layers)


def test_the_wrapper_may_be_passed_instead_and_gives_the_same_tokens(attending):
    cache = DynamicCache()
    CompressedDynamicCache(cache, head_dim=HEAD_DIM, bits=4)
    wrapper = CompressedDynamicCache(DynamicCache(config=attending.config), head_dim=HEAD_DIM, bits=4)
    assert torch.equal(answer(attending, cache), answer(attending, wrapper))


def test_an_empty_cache_counts_nothing():
    compressed = CompressedDynamicCache(DynamicCache(), head_dim=HEAD_DIM)
    assert compressed.vram_bytes() == compressed.baseline_vram_bytes() == 0
    assert compressed.compression_stats() == {}
    with pytest.raises(ValueError, match="layer 0 has no compressed data"):
        compressed.get_compressed(0)


def filled(tokens: int = 1024, batch: int = 1, dtype: torch.dtype = torch.bfloat16, **options):
    """(cache, wrapper, keys, values) of two layers with random tokens."""
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, batch, 2, tokens, HEAD_DIM, generator=generator).to(dtype)
    cache = DynamicCache()
    wrapper = CompressedDynamicCache(cache, head_dim=HEAD_DIM, **options)
    for layer in range(2):
        cache.update(keys, values, layer)
        cache.layers[layer].flush()
    return cache, wrapper, keys, values


@pytest.mark.parametrize(("bits", "bytes_a_token"), [(4, 70), (3, 54), (2, 38)])
def test_memory_is_really_saved(bits, bytes_a_token):
    _, wrapper, _, _ = filled(tokens=4096, bits=bits, fringe=None)
    assert wrapper.baseline_vram_bytes() == 2 * 2 * 4096 * 4 * HEAD_DIM  # layers, heads, tokens, K and V of 2 bytes
    pages = 2 * 2 * 4096 * bytes_a_token
    # Beside the pages: page table, lengths, two sign vectors a layer.
    assert pages <= wrapper.vram_bytes() <= pages + 2 * (4 * 64 * 2 + 4 * HEAD_DIM * 2 * 2 + 64)
    assert wrapper.compression_stats()["compression_ratio"] == pytest.approx(256 / bytes_a_token, rel=0.01)


def test_the_statistics_have_the_names_that_reports_read():
    _, wrapper, _, _ = filled(batch=2, k_bits=4, v_bits=3)
    stats = wrapper.compression_stats()
    assert {key: stats[key] for key in ("num_layers", "seq_len", "batch_size", "num_heads", "head_dim")} == {
        "num_layers": 2, "seq_len": 1024, "batch_size": 2, "num_heads": 2, "head_dim": HEAD_DIM,
    }  # fmt: skip
    assert (stats["k_bits"], stats["v_bits"]) == (4, 3)
    assert (stats["k_nibble_packed"], stats["v_nibble_packed"]) == (True, False)
    assert stats["baseline_mib"] - stats["compressed_mib"] == pytest.approx(stats["savings_mib"])
    assert stats["vram_estimate"][4096] == round(2 * 2 * 62 * 4096 / 2**20, 2)  # 4/3 bits: 3,968 bytes a page


def test_restore_leaves_a_stock_cache_with_dequantised_content(attending):
    cache = DynamicCache()
    with CompressedDynamicCache(cache, head_dim=HEAD_DIM, bits=4) as compressed:
        answer(attending, cache)
        decoded = [layer.dequantize() for layer in cache.layers]
        assert compressed.enabled
    assert [type(layer).__name__ for layer in cache.layers] == ["DynamicLayer"] * 3
    for layer, (keys, values) in zip(cache.layers, decoded, strict=True):
        assert torch.equal(layer.keys, keys) and torch.equal(layer.values, values)
    assert answer(attending, cache, prompt=torch.cat([PROMPT, PROMPT, PROMPT], dim=1)).shape == (1, 462)


def test_disable_stores_densely_and_enable_codes_again():
    cache, wrapper, keys, values = filled(tokens=100)
    wrapper.disable()
    assert wrapper.vram_bytes() == 0 and not wrapper.enabled
    before = cache.layers[0].keys.clone()
    cache.update(keys[:, :, :1], values[:, :, :1], 0)
    cache.update(keys, values, 2)  # a layer that is new while disabled
    assert torch.equal(cache.layers[0].keys[:, :, :100], before)
    assert torch.equal(cache.layers[0].keys[:, :, 100:], keys[:, :, :1])
    wrapper.enable()
    assert [layer.get_seq_length() for layer in cache.layers] == [101, 100, 100]
    assert wrapper.vram_bytes() > 0
    for layer in cache.layers:
        assert not isinstance(layer.keys, torch.Tensor)


def test_tokens_stored_before_wrapping_are_compressed_too():
    cache = DynamicCache()
    keys = torch.randn(1, 2, 70, HEAD_DIM)
    cache.update(keys, keys, 0)
    CompressedDynamicCache(cache, head_dim=HEAD_DIM, bits=4)
    decoded, _ = cache.layers[0].dequantize()
    # D_4 of the unit vector is 0.0091 at d = 64; a mean over 140 keys strays less than a tenth from it.
    assert ((decoded - keys).norm() / keys.norm()) ** 2 < 0.011


@pytest.mark.parametrize(("k_bits", "v_bits"), [(4, 4), (3, 3), (2, 2), (4, 3), (2, 4)])
def test_get_compressed_gives_what_dequantising_gives(k_bits, v_bits):
    cache, wrapper, _, _ = filled(tokens=130, batch=2, dtype=torch.float32, k_bits=k_bits, v_bits=v_bits, fringe=None)
    k_packed, k_norms, v_packed, v_norms = wrapper.get_compressed(1)
    assert k_packed.dtype == v_packed.dtype == torch.uint8
    assert k_packed.shape == (2, 2, 130, HEAD_DIM // 2 if k_bits == 4 else HEAD_DIM)
    assert k_norms.shape == v_norms.shape == (2, 2, 130, 1)

    def rotated(x, signs):
        rows = x.transpose(1, 2).reshape(-1, 2, HEAD_DIM)
        return ops.rotate(rows, signs).view(2, 130, 2, HEAD_DIM).transpose(1, 2)

    layer = cache.layers[1]
    keys, values = layer.dequantize()
    k = wrapper.key_centres(1) + k_norms * wrapper.k_centroids[unpacked(k_packed, k_bits)]
    v = v_norms * wrapper.v_centroids[unpacked(v_packed, v_bits)]
    # fp32 rounding of one transform and back: 2 log2(64) additions deep.
    torch.testing.assert_close(k, rotated(keys, layer.key_signs), rtol=0, atol=1e-5)
    torch.testing.assert_close(v, rotated(values, layer.value_signs), rtol=0, atol=1e-5)


def unpacked(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """A byte of two indices: the first in the high nibble, as in the original."""
    return torch.stack([packed >> 4, packed & 15], dim=-1).flatten(-2).long() if bits == 4 else packed.long()


def test_sliding_window_layers_stay_as_transformers_stores_them():
    from transformers import Gemma3TextConfig

    config = Gemma3TextConfig(num_hidden_layers=2, layer_types=["sliding_attention", "full_attention"], sliding_window=8)
    cache = DynamicCache(config=config)
    wrapper = CompressedDynamicCache(cache, head_dim=HEAD_DIM, model_config=config)
    assert [type(layer).__name__ for layer in cache.layers] == ["DynamicSlidingWindowLayer", "TurboQuantLayer"]
    with pytest.raises(ValueError, match="layer 0 has no compressed data"):
        wrapper.get_compressed(0)
    with pytest.warns(UserWarning, match="config=model.config"):
        CompressedDynamicCache(DynamicCache(), head_dim=HEAD_DIM, model_config=config)


def test_wrapping_twice_warns_and_wrapping_after_restore_does_not():
    cache = DynamicCache()
    first = CompressedDynamicCache(cache, head_dim=HEAD_DIM)
    with pytest.warns(UserWarning, match="already wrapped"):
        TurboQuantKVCache(cache, head_dim=HEAD_DIM)
    first.restore()
    cache = DynamicCache()
    CompressedDynamicCache(cache, head_dim=HEAD_DIM).restore()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CompressedDynamicCache(cache, head_dim=HEAD_DIM)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 64, "bits": None}, "no bit width"),
        ({"head_dim": 64, "bits": None, "k_bits": 4}, "no bit width"),
        ({"head_dim": 64, "bits": 5}, "bits"),
        ({"head_dim": 100}, "head_dim"),
    ],
)
def test_what_no_page_can_hold_is_refused_before_the_cache_is_touched(options, message):
    cache = DynamicCache()
    with pytest.raises(ValueError, match=message):
        CompressedDynamicCache(cache, **options)
    assert cache.layer_class_to_replicate().__class__.__name__ == "DynamicLayer"


@pytest.mark.parametrize("implementation", ["sdpa", "turboquant"])
def test_layers_that_share_kv_read_one_compressed_layer(implementation):
    model = tiny_model("gemma3n")
    cache = DynamicCache(config=model.config)
    head_dim = model.config.get_text_config().head_dim
    wrapper = CompressedDynamicCache(cache, head_dim=head_dim, model_config=model.config)
    native = turboquant.TurboQuantCache(model.config, seed=42)
    inputs = prompt()
    tokens = generate(model, implementation, cache, inputs).sequences
    assert wrapper.vram_bytes() > 0
    assert torch.equal(tokens, generate(model, implementation, native, inputs).sequences)


def test_a_deep_copy_goes_its_own_way():
    cache, _, keys, values = filled(tokens=70)
    copied = copy.deepcopy(cache)
    cache.update(keys, values, 0)
    copied.update(keys, values, 2)
    assert [layer.get_seq_length() for layer in cache.layers] == [140, 70]
    assert [layer.get_seq_length() for layer in copied.layers] == [70, 70, 70]
    assert copied.layers[2].index == 2
