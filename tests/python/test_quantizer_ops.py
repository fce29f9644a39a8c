# SPDX-License-Identifier: Apache-2.0
"""The paper's two algorithms as operators: what they promise about errors, and what they refuse."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from turboquant import ops

KINDS = [(128, False), (96, False), (100, True)]


def unit_vectors(n: int, dim: int) -> torch.Tensor:
    x = torch.randn(n, dim, generator=torch.Generator().manual_seed(1))
    return x / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("dim, haar", KINDS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_mean_squared_error_is_the_codebooks(dim, haar, bits):
    n = 2000
    x = unit_vectors(n, dim) * 3
    codes, norms = ops.mse_quantize(x, bits, 7, haar)
    assert codes.dtype == torch.uint8 and codes.shape == (n, math.ceil(dim * bits / 8))
    decoded = ops.mse_dequantize(codes, norms, dim, bits, 7, haar)
    errors = (decoded - x).double().square().sum(-1) / 9
    # The mean of n vectors' errors is within 5 standard errors of the expectation.
    expected = float(ops.lloyd_max(dim, bits)[2])
    assert abs(errors.mean() - expected) <= 5 * errors.std() / math.sqrt(n)


def test_norm_correction_keeps_norms():
    x = unit_vectors(50, 128) * 2
    codes, norms = ops.mse_quantize(x, 2, 7, norm_correct=True)
    decoded = ops.mse_dequantize(codes, norms, 128, 2, 7, norm_correct=True)
    # Roundings of 7 butterflies, of the 128 squares' sum and a few scales.
    assert (decoded.norm(dim=-1) - 2).abs().max() <= 2 * (7 + 128 + 8) * 2.0**-24


@pytest.mark.parametrize("dim, haar", KINDS)
def test_inner_products_are_estimated_as_by_decoding_and_without_bias(dim, haar):
    n, seeds = 64, 40
    x, queries = unit_vectors(n, dim), unit_vectors(3, dim)
    errors = []
    for seed in range(seeds):
        prod = ops.prod_quantize(x, 3, seed, haar)
        estimates = ops.prod_inner_product(queries, *prod, 3, seed, haar)
        assert estimates.shape == (3, n)
        decoded = ops.prod_dequantize(*prod, dim, 3, seed, haar)
        # Two fp32 sums over dim terms, each of at most |q| |decoded|.
        size = float(decoded.norm(dim=-1).max())
        assert (estimates - queries @ decoded.T).abs().max() <= 4 * dim * 2.0**-24 * size
        errors.append((estimates - queries @ x.T).double().mean())
    errors = torch.stack(errors)
    assert abs(errors.mean()) <= 5 * errors.std() / math.sqrt(seeds)


def test_lloyd_max_is_symmetric_and_its_boundaries_are_midpoints():
    centroids, boundaries, mse = ops.lloyd_max(128, 4)
    assert centroids.dtype == boundaries.dtype == mse.dtype == torch.float64
    assert centroids.shape == (16,) and boundaries.shape == (15,) and mse.shape == ()
    assert torch.equal(centroids, -centroids.flip(0))
    assert torch.allclose(boundaries, (centroids[1:] + centroids[:-1]) / 2, rtol=1e-12, atol=1e-15)


def test_one_seed_gives_the_same_codes_from_many_threads_and_another_seed_others():
    x = unit_vectors(10, 128)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda seed: ops.mse_quantize(x, 4, seed)[0], [1, 2, 1, 2, 1, 2] * 20))
    assert all(torch.equal(result, results[i % 2]) for i, result in enumerate(results))
    assert not torch.equal(results[0], results[1])


def test_unusual_vectors_stay_among_themselves():
    x = unit_vectors(4, 128)
    alone = ops.mse_quantize(x, 4, 1)
    x = torch.cat([x, torch.zeros(1, 128), torch.full((1, 128), math.nan), torch.full((1, 128), math.inf)])
    codes, norms = ops.mse_quantize(x, 4, 1)
    assert torch.equal(codes[:4], alone[0]) and torch.equal(norms[:4], alone[1])
    decoded = ops.mse_dequantize(codes, norms, 128, 4, 1)
    assert (decoded[4] == 0).all() and decoded[5:].isnan().all() and decoded[:4].isfinite().all()


def test_no_vectors_are_allowed():
    prod = ops.prod_quantize(torch.zeros(0, 64), 3, 0)
    assert ops.prod_dequantize(*prod, 64, 3, 0).shape == (0, 64)
    assert ops.prod_inner_product(torch.zeros(2, 64), *prod, 3, 0).shape == (2, 0)
    assert ops.mse_dequantize(*ops.mse_quantize(torch.zeros(0, 64), 4, 0), 64, 4, 0).shape == (0, 64)


def test_bad_input_is_named_with_the_remedy():
    x = unit_vectors(3, 64)
    codes, norms = ops.mse_quantize(x, 4, 0)
    prod = ops.prod_quantize(x, 3, 0)
    for call, message in [
        (lambda: ops.mse_quantize(x[0], 4, 0), r"x has shape \[64\]; pass \[n, dim\]"),
        (lambda: ops.mse_quantize(x.double(), 4, 0), r"x is float64, not float32; pass x.to\(torch.float32\)"),
        (lambda: ops.mse_quantize(x.T.contiguous().T, 4, 0), r"x of shape .* pass x.contiguous\(\)"),
        (lambda: ops.mse_quantize(x, 9, 0), "bits=9"),
        (lambda: ops.prod_quantize(x, 0, 0), "bits=0"),
        (lambda: ops.lloyd_max(1, 4), "=1"),
        (lambda: ops.mse_dequantize(codes[:, :5].contiguous(), norms, 64, 4, 0), r"codes has shape \[3, 5\]; pass \[n, bytes=32\]"),
        (lambda: ops.mse_dequantize(codes, norms[:2], 64, 4, 0), r"norms has shape \[2\]; pass \[n=3\]"),
        (lambda: ops.prod_dequantize(*prod[:3], prod[3][:1], 64, 3, 0), r"residual_norms has shape \[1\]; pass \[n=3\]"),
        (lambda: ops.prod_inner_product(x[:, :32].contiguous(), *prod, 3, 0), r"codes has shape \[3, 16\]; pass \[n, bytes=8\]"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            call()


def test_a_dim_without_a_hadamard_rotation_is_unsupported_without_haar():
    with pytest.raises(NotImplementedError, match="head_dim=100"):
        ops.mse_quantize(unit_vectors(2, 100), 4, 0)
