# SPDX-License-Identifier: Apache-2.0
"""The quantisers of turboquant-vllm by their own names: shapes as its users know them, errors as the paper derives them."""

import math
import subprocess
import sys

import pytest
import torch
from transformers import DynamicCache

from turboquant import (
    LloydMaxCodebook,
    TurboQuantCompressorMSE,
    TurboQuantCompressorV2,
    TurboQuantKVCache,
    TurboQuantMSE,
    TurboQuantProd,
    solve_lloyd_max,
)
from turboquant.compat.quantizers import pack_codes, unpack_codes

# E |x - x^|^2 of a unit vector, and the standard deviation of |x - x^|^2 from vector to vector, at d = 128.
MSE = {1: 0.360888593687, 2: 0.116000070275, 3: 0.0339659257939, 4: 0.0093147879538, 5: 0.00245146015525}
DEVIATION = {1: 0.030, 2: 0.015, 3: 0.0063, 4: 0.0023, 5: 0.00079}


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_solve_lloyd_max_returns_centroids_and_the_boundaries_between_them():
    centroids, boundaries = solve_lloyd_max(d=128, bits=3)
    assert centroids.shape == (8,) and boundaries.shape == (7,) and centroids.dtype == torch.float32
    torch.testing.assert_close(boundaries, (centroids[1:] + centroids[:-1]) / 2)
    torch.testing.assert_close(centroids, -centroids.flip(0))


def test_one_bit_is_the_mean_absolute_coordinate():
    centroids, _ = solve_lloyd_max(64, 1)
    mean = math.exp(math.lgamma(32) - math.lgamma(32.5)) / math.sqrt(math.pi)
    assert centroids[1].item() == pytest.approx(mean, rel=1e-6)


def test_a_codebook_maps_values_to_the_nearest_centroid_and_back():
    codebook = LloydMaxCodebook(*solve_lloyd_max(d=128, bits=4), bits=4, dim=128)
    x = torch.linspace(-0.5, 0.5, 1001)
    indices = codebook.quantize(x)
    nearest = (x[:, None] - codebook.centroids).abs().argmin(dim=1)
    assert (codebook.dequantize(indices) - x).abs().sum() == pytest.approx((codebook.centroids[nearest] - x).abs().sum())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("count", [1, 7, 64, 100])
def test_packing_is_undone_by_unpacking(bits, count):
    indices = torch.randint(0, 1 << bits, (3, count), generator=torch.Generator().manual_seed(bits))
    packed = pack_codes(indices, bits)
    assert packed.shape == (3, -(-bits * count // 8)) and packed.dtype == torch.uint8
    assert torch.equal(unpack_codes(packed, bits, count), indices)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
def test_mse_quantisation_loses_what_the_codebook_says(bits):
    quantizer = TurboQuantMSE(dim=128, bits=bits)
    x = vectors(4, 250, 128)
    indices, norms = quantizer.quantize(x)
    assert indices.shape == x.shape and indices.dtype == torch.int64 and indices.max() < 1 << bits
    assert norms.shape == (4, 250, 1)
    torch.testing.assert_close(norms, x.norm(dim=-1, keepdim=True))
    loss = ((quantizer.dequantize(indices, norms) - x).norm(dim=-1) / x.norm(dim=-1)) ** 2
    assert loss.mean().item() == pytest.approx(MSE[bits], abs=5 * DEVIATION[bits] / math.sqrt(1000))


def test_a_seed_gives_the_same_codes_and_another_seed_others():
    x = vectors(8, 64)
    first, again, other = (TurboQuantMSE(dim=64, bits=4, seed=seed).quantize(x)[0] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dim", [12, 64, 80, 100, 128, 512])
def test_any_head_size_comes_back(dim):
    quantizer = TurboQuantMSE(dim=dim, bits=8)
    x = vectors(5, dim)
    # 8 bits: D_8 < sqrt(3) pi / 2 4^-8 = 4.2e-5 of the squared norm on average; ten times that for single vectors.
    loss = ((quantizer.dequantize(*quantizer.quantize(x)) - x).norm(dim=-1) / x.norm(dim=-1)) ** 2
    assert loss.max() < 4.2e-4


def test_a_zero_vector_comes_back_as_zero_and_nan_stays_in_its_own_vector():
    x = vectors(3, 64)
    x[0], x[1, 5] = 0, math.nan
    quantizer = TurboQuantMSE(dim=64, bits=4)
    back = quantizer.dequantize(*quantizer.quantize(x))
    assert torch.equal(back[0], torch.zeros(64))
    assert back[1].isnan().all() and back[2].isfinite().all()


def test_a_wrong_last_dimension_is_named():
    with pytest.raises(ValueError, match="the last dimension is 32, this quantizer's is 64"):
        TurboQuantMSE(dim=64, bits=4).quantize(vectors(2, 32))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_prod_estimates_have_the_paper_s_variance_and_no_bias(bits):
    quantizer = TurboQuantProd(dim=128, bits=bits)
    n = 4000
    x, y = (torch.nn.functional.normalize(vectors(n, 128, seed=seed), dim=-1) for seed in (1, 2))
    estimate = quantizer.estimate_inner_product(y, *quantizer.quantize(x))
    assert estimate.shape == (n, 1)
    errors = estimate.squeeze(-1) - (x * y).sum(dim=-1)
    variance = (math.pi / 2 - 1 / 128) * MSE[bits - 1] / 128
    # Errors of independent vectors are near normal: a mean of n strays 5 sd / sqrt(n), a mean of n squares 5 sd^2 sqrt(2 / n).
    assert abs(errors.mean().item()) < 5 * math.sqrt(variance / n)
    assert errors.square().mean().item() == pytest.approx(variance, rel=5 * math.sqrt(2 / n))


def test_prod_returns_signs_and_residual_norms_of_the_vectors_themselves():
    quantizer = TurboQuantProd(dim=64, bits=4)
    x = 7 * vectors(2, 5, 64)
    indices, norms, signs, residual_norms = quantizer.quantize(x)
    assert indices.shape == signs.shape == x.shape and norms.shape == residual_norms.shape == (2, 5, 1)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    kept = quantizer.mse_quantizer.dequantize(indices, norms)
    torch.testing.assert_close(residual_norms, (x - kept).norm(dim=-1, keepdim=True), rtol=1e-4, atol=0)


def test_prod_needs_two_bits():
    with pytest.raises(ValueError, match="bits=1"):
        TurboQuantProd(dim=64, bits=1)


def test_compressors_remember_the_dtype_and_scores_need_no_reconstruction_by_the_caller():
    keys = vectors(1, 2, 9, 64).to(torch.bfloat16)
    values = TurboQuantCompressorMSE(head_dim=64, bits=4)
    assert values.decompress(values.compress(keys)).dtype == torch.bfloat16
    compressor = TurboQuantCompressorV2(head_dim=64, bits=4)
    compressed = compressor.compress(keys)
    query = vectors(1, 2, 3, 64, seed=3)
    scores = compressor.asymmetric_attention_scores(query, compressed)
    expanded = compressor.quantizer.estimate_inner_product(
        query[:, :, :, None],
        *(x[:, :, None] for x in (compressed.indices, compressed.norms, compressed.qjl_signs, compressed.residual_norms)),
    ).squeeze(-1)
    torch.testing.assert_close(scores, expanded, rtol=1e-4, atol=1e-4)


def test_the_accuracy_only_cache_stores_what_survives_quantisation():
    cache = DynamicCache()
    keys, values = vectors(1, 2, 5, 64), vectors(1, 2, 5, 64, seed=1)
    with TurboQuantKVCache(cache, head_dim=64, bits=3) as studied:
        seen_keys, seen_values = cache.update(keys, values, 0)
        compressor = studied.key_compressor
        assert torch.equal(seen_keys, compressor.decompress(compressor.compress(keys)))
        assert torch.equal(cache.layers[0].values, seen_values) and not torch.equal(seen_values, values)
        studied.disable()
        cache.update(keys, values, 0)
        assert torch.equal(cache.layers[0].keys[:, :, 5:], keys)
        studied.enable()
        studied.compress_keys = False
        studied.update(keys, values, 0)  # the wrapper is a cache too
        assert torch.equal(cache.layers[0].keys[:, :, 10:], keys)
    cache.update(keys, values, 0)
    assert torch.equal(cache.layers[0].values[:, :, 15:], values)


@pytest.mark.parametrize("dim", [64, 80])
def test_the_rotation_is_orthogonal_and_the_one_that_codes_are_of(dim):
    quantizer = TurboQuantMSE(dim=dim, bits=4)
    torch.testing.assert_close(quantizer.rotation @ quantizer.rotation.T, torch.eye(dim), rtol=0, atol=1e-5)
    x = vectors(50, dim)
    indices, norms = quantizer.quantize(x)
    expected = quantizer.codebook.quantize((x / norms) @ quantizer.rotation.T)
    # Two orders of fp32 sums may part a coordinate that lies within their rounding of a boundary.
    assert (indices - expected).abs().max() <= 1 and (indices == expected).float().mean() > 0.999


def test_quantisers_need_no_transformers():
    program = "import sys; sys.modules['transformers'] = None; import turboquant; turboquant.TurboQuantMSE(dim=64, bits=2)"
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
