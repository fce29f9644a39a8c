# SPDX-License-Identifier: Apache-2.0
"""Formats of vLLM restated a second time, number by number in float64 from what they are documented to be (docs/fidelity.md, "Checked
against"), against benchmarks/fidelity/peers; and the peers that are packages, where these are installed."""

import math
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from fidelity.codec import Layer  # noqa: E402
from fidelity.peers import int4_per_token_head, vllm_turboquant  # noqa: E402
from fidelity.peers.int4_per_token_head import SEED  # noqa: E402
from fidelity.variants import Context, variants  # noqa: E402

from turboquant import ops  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")
DIM = 64
FP32 = 2.0**-24


def layer(tokens=40):
    generator = torch.Generator().manual_seed(11)
    query, keys, values = (torch.randn(heads, tokens, DIM, generator=generator) for heads in (6, 2, 2))
    return Layer(0, query, keys + 0.5 * torch.randn(2, 1, DIM, generator=generator), values, DIM**-0.5)


# The second statements: a vector, a list of floats, to what a cache reads back.


def hadamard(x):
    """Butterflies, over the square root of the length."""
    x, step = list(x), 1
    while step < len(x):
        for i in range(len(x)):
            if not i & step:
                x[i], x[i + step] = x[i] + x[i + step], x[i] - x[i + step]
        step *= 2
    return [v / math.sqrt(len(x)) for v in x]


def lloyd_max(bits):
    """Of N(0, 1/64): each level the mean of its cell in closed form, until none moves."""
    sigma = DIM**-0.5

    def density(x):
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi) if math.isfinite(x) else 0.0

    def below(x):
        return (1 + math.erf(x / math.sqrt(2))) / 2

    levels = [(i + 0.5) * 7 / 2**bits - 3.5 for i in range(2**bits)]
    for _ in range(3000):
        edges = [-math.inf, *((a + b) / 2 for a, b in zip(levels, levels[1:])), math.inf]
        moved = [(density(a) - density(b)) / (below(b) - below(a)) for a, b in zip(edges, edges[1:])]
        done, levels = max(abs(a - b) for a, b in zip(moved, levels)) < 1e-12, moved
        if done:
            break
    return [sigma * level for level in levels]


def norm_corrected(x, levels):
    """Indices of the rotated direction's levels, an fp16 length; the levels brought back to length 1."""
    length = math.sqrt(sum(v * v for v in x))
    unit = hadamard([v / (length + 1e-8) for v in x])
    near = min(abs(u - (a + b) / 2) for u in unit for a, b in zip(levels, levels[1:]))
    chosen = [min(levels, key=lambda level, u=u: abs(level - u)) for u in unit]
    inner = math.sqrt(sum(v * v for v in chosen))
    return [v / inner * float(np.float16(length)) for v in hadamard(chosen)], near


def uniform(x, bits):
    """Even levels between least and greatest, fp16 scale and least."""
    least, scale = min(x), max((max(x) - min(x)) / (2**bits - 1), 1e-8)
    places = [(v - least) / scale for v in x]
    near = min(abs(place - math.floor(place) - 0.5) for place in places)
    return [round(place) * float(np.float16(scale)) + float(np.float16(least)) for place in places], near


def e4m3(v):
    """Four bits of exponent, three of mantissa, subnormal below 2^-6, saturated at 448."""
    v = max(-448.0, min(448.0, v))
    step = 2.0 ** (max(math.floor(math.log2(abs(v))), -6) - 3) if v else 1.0
    return round(v / step) * step  # halves to even, as Python rounds


def int4(x, signs):
    """16 levels of the rotated vector; the scale's lowest four bits of mantissa are the zero point."""
    rotated = hadamard([v * s for v, s in zip(x, signs)])
    scale = max((max(rotated) - min(rotated)) / 15, 1e-6)
    zero = min(max(math.floor(-min(rotated) / scale + 0.5), 0), 15)
    places = [v / scale + zero for v in rotated]
    near = min(min(abs(place - math.floor(place) - 0.5) for place in places), abs(-min(rotated) / scale % 1 - 0.5))
    codes = [min(max(math.floor(place + 0.5), 0), 15) for place in places]
    (word,) = struct.unpack("<I", struct.pack("<f", scale))
    (kept,) = struct.unpack("<f", struct.pack("<I", word & ~15 | zero))
    return [v * s for v, s in zip(hadamard([(code - zero) * kept for code in codes]), signs)], near


def agrees(found, given, statement):
    """Every vector to one place of the fp16 in which its scale is kept (2^-10), which fp32's sums may round otherwise, but for those with a
    coordinate so near to the middle of two levels that fp32 may decide otherwise: at most one in ten."""
    near_ones = 0
    for back, x in zip(found.flatten(0, 1).double(), given.flatten(0, 1)):
        expected, near = statement([float(v) for v in x])
        if near < 64 * FP32:
            near_ones += 1
            continue
        assert np.allclose(back.numpy(), expected, rtol=0, atol=2.0**-10 * max(map(abs, expected))), (near, back, expected)
    assert near_ones <= found.shape[0] * found.shape[1] // 10


@pytest.mark.parametrize(("preset", "key_bits", "value_bits"), [("k8v4", 8, 4), ("4bit_nc", 4, 4), ("k3v4_nc", 3, 4), ("3bit_nc", 3, 3)])
def test_vllms_presets_are_what_a_second_statement_of_them_reads_back(preset, key_bits, value_bits):
    given = layer()
    back = vllm_turboquant.vllm_turboquant(preset)(given)
    if key_bits == 8:
        assert back.keys.flatten().tolist() == [e4m3(float(v)) for v in given.keys.flatten()]
    else:
        # Its own solver's levels; lloyd_max is how far they may be off.
        levels = [float(level) for level in vllm_turboquant.centroids(DIM, key_bits)]
        assert levels == pytest.approx(lloyd_max(key_bits), rel=2e-3)
        agrees(back.keys, given.keys, lambda x: norm_corrected(x, levels))
    agrees(back.values, given.values, lambda x: uniform(x, value_bits))
    slot = (DIM if key_bits == 8 else DIM * key_bits // 8 + 2) + DIM * value_bits // 8 + 4
    assert back.nbytes == 2 * 40 * (slot + slot % 2)


def test_int4_per_token_head_is_what_a_second_statement_of_it_reads_back():
    given = layer()
    back = int4_per_token_head.int4_per_token_head()(given)
    signs = ops.random_signs(DIM, SEED).tolist()
    agrees(back.keys, given.keys, lambda x: int4(x, signs))
    agrees(back.values, given.values, lambda x: int4(x, signs))
    assert back.nbytes == 2 * 40 * 2 * (DIM // 2 + 4)


@pytest.mark.parametrize(("package", "named"), [("tkv", "turbo-attn"), ("optimum.quanto", "QuantizedCache")])
def test_peers_that_are_packages_run_where_these_are_installed(package, named):
    pytest.importorskip(package, reason="requirements/peers.txt is not installed")
    given = layer(tokens=130)
    rows = [row for row in variants().values() if named in row.name and "calibrated" not in row.name]
    assert rows
    for row in rows:
        back = row.build(Context(4, DIM, dict)).codec(given)
        assert back.keys.shape == given.keys.shape and back.values.shape == given.values.shape and back.nbytes > 0, row.name
        assert float((back.keys - given.keys).norm() / given.keys.norm()) < 1, row.name
