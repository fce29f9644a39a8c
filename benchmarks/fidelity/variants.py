# SPDX-License-Identifier: Apache-2.0
"""What is measured: one row a variant. A row's group says what it is for; the order is that of importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fidelity import codec, paper
from fidelity.attention import Exact, Study
from fidelity.ours import Recipe
from fidelity.peers import fp8, kivi, llama_cpp, turbo_attn
from fidelity.peers.int4_per_token_head import int4_per_token_head
from fidelity.peers.vllm_turboquant import PRESETS, skipped_layers, vllm_turboquant

FRINGE = Exact(first=4, recent=28)  # the product's default
NONE = Exact()


@dataclass(frozen=True)
class Context:
    """What a study may need to know of the model."""

    layers: int
    head_dim: int
    calibration: Callable[[], dict]  # see calibration.py; made when first asked for


@dataclass(frozen=True)
class Variant:
    name: str
    group: str  # ours, paper, peer, peer as run, sixteen, ablation
    build: Callable[[Context], Study]


_ROWS: dict[str, Variant] = {}


def _add(name: str, group: str, build: Callable[[Context], Study] | Study) -> None:
    assert name not in _ROWS, name
    _ROWS[name] = Variant(name, group, build if callable(build) else lambda context: build)


def _both(code: codec.Codec, kept: Exact = NONE) -> Study:
    return Study(code, kept, kept)


def variants() -> dict[str, Variant]:
    return dict(_ROWS)


def _label(kept: Exact) -> str:
    return f"{kept.first}+{kept.recent}"


# The targets' own rows come first: a sweep that is cut short has them.
for bits in (4, 3, 2):
    _add(f"recipe {bits}/{bits}", "ours", _both(Recipe(bits, bits)))
    _add(f"recipe {bits}/{bits} fringe {_label(FRINGE)}", "ours", _both(Recipe(bits, bits), FRINGE))
_add("paper MSE 4/4", "paper", _both(paper.mse(4, 4)))
_add("fp8 e4m3", "peer", _both(fp8.fp8()))
_add("KIVI-4, groups of 64 keys", "peer", _both(kivi.kivi(4, key_group=64)))
_add("KIVI-2 window 128", "peer as run", Study(kivi.kivi(2), kivi.KEYS_AS_RUN, kivi.VALUES_AS_RUN))
_add("recipe 4/4 append", "ours", _both(Recipe(4, 4, calls=(1,))))
_add("turbo-attn 4/4 ring 128", "peer as run", _both(turbo_attn.turbo_attn(4), Exact(recent=turbo_attn.RING)))
_add("fp16", "sixteen", _both(codec.cast(torch.float16)))
_add("bf16", "sixteen", _both(codec.cast(torch.bfloat16)))

for preset in PRESETS:
    _add(f"vLLM {preset}", "peer", _both(vllm_turboquant(preset)))
    _add(
        f"vLLM {preset} skips 2+2 layers", "peer as run",
        lambda context, preset=preset: Study(vllm_turboquant(preset), skip=skipped_layers(context.layers)),
    )  # fmt: skip
_add("vLLM int4_per_token_head", "peer", _both(int4_per_token_head()))
for bits in (4, 3, 2):
    _add(f"KIVI-{bits}", "peer", _both(kivi.kivi(bits)))
    if bits > 2:
        _add(f"KIVI-{bits} window 128", "peer as run", Study(kivi.kivi(bits), kivi.KEYS_AS_RUN, kivi.VALUES_AS_RUN))
for name, make in (("q8_0", llama_cpp.q8_0), ("q4_0", llama_cpp.q4_0)):
    _add(f"llama.cpp {name}", "peer", _both(make()))
    _add(f"llama.cpp {name} Hadamard", "peer", _both(make(hadamard=True)))
_add("turbo-attn 4/4", "peer", _both(turbo_attn.turbo_attn(4)))

for k_bits in (4, 3, 2):
    for v_bits in (4, 3, 2):
        if k_bits != v_bits:
            _add(f"recipe {k_bits}/{v_bits}", "ours", _both(Recipe(k_bits, v_bits)))
            _add(f"recipe {k_bits}/{v_bits} fringe {_label(FRINGE)}", "ours", _both(Recipe(k_bits, v_bits), FRINGE))
for bits in (3, 2):
    _add(f"paper MSE {bits}/{bits}", "paper", _both(paper.mse(bits, bits)))
_add("paper Prod 4/4", "paper", _both(paper.prod(4, 4)))
_add(f"paper MSE 4/4 fringe {_label(FRINGE)}", "paper", _both(paper.mse(4, 4), FRINGE))
