# SPDX-License-Identifier: Apache-2.0
"""What is measured: one row a variant. A row's group says what it is for; the order is that of importance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fidelity import codec, paper
from fidelity.attended import attended_balances
from fidelity.attention import Exact, Study
from fidelity.dense_balance import DenseBalance, matrix
from fidelity.ours import Recipe
from fidelity.peers import fp8, kivi, llama_cpp, turbo_attn
from fidelity.peers.int4_per_token_head import int4_per_token_head
from fidelity.peers.quantized_cache import AS_RUN, quantized_cache
from fidelity.peers.vllm_turboquant import PRESETS, skipped_layers, vllm_turboquant
from fidelity.recipe import Sketch
from turboquant.cache import HOLD

FRINGE = Exact(first=4, recent=28)  # the product's default
NONE = Exact()
APPEND = Exact(hold=HOLD)  # token by token from nothing
FRINGES = tuple((first, recent) for first in (0, 1, 4, 16, 64, 128) for recent in (0, 4, 8, 16, 28, 60, 128))
HOLDS = (0, 8, 16, 32, 64, 128)  # tokens that a cache may wait for before it codes any
SEEDS = (1, 2, 3)
SPLITS = ((0, 32), (1, 31), (2, 30), (8, 24))  # of the default's 32 slots


@dataclass(frozen=True)
class Context:
    """What a study may need to know of the model."""

    layers: int
    head_dim: int
    calibration: Callable[[], dict]  # see calibration.py; made when first asked for


@dataclass(frozen=True)
class Variant:
    name: str
    group: str  # ours, paper, peer, peer as run, sixteen, ablation, fringe
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


def _calibrated_rows(name: str, group: str, make: Callable[[dict], codec.Codec], kept: Exact = NONE) -> None:
    _add(f"{name} calibrated", group, lambda context: _both(make(context.calibration()), kept))


def _calibrated(made: dict) -> dict:
    return {"balance": "calibrated", "balances": made["balances"], "queries": made["queries"]}


# The targets' own rows come first: a sweep that is cut short has them.
for bits in (4, 3, 2):
    _add(f"recipe {bits}/{bits}", "ours", _both(Recipe(bits, bits)))
    _add(f"recipe {bits}/{bits} fringe {_label(FRINGE)}", "ours", _both(Recipe(bits, bits), FRINGE))
_add("paper MSE 4/4", "paper", _both(paper.mse(4, 4)))
_add("fp8 e4m3", "peer", _both(fp8.fp8()))
_add("KIVI-4, groups of 64 keys", "peer", _both(kivi.kivi(4, key_group=64)))
_add("KIVI-2 window 128", "peer as run", Study(kivi.kivi(2), kivi.KEYS_AS_RUN, kivi.VALUES_AS_RUN))
_add("recipe 4/4 append", "ours", _both(Recipe(4, 4, calls=(1,), hold=HOLD), APPEND))
_calibrated_rows(
    "turbo-attn 4/4 ring 128", "peer as run", lambda made: turbo_attn.turbo_attn(4, made["layers"]), Exact(recent=turbo_attn.RING)
)
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
for bits in (4, 3):
    _add(f"turbo-attn {bits}/{bits}", "peer", _both(turbo_attn.turbo_attn(bits)))
    _calibrated_rows(f"turbo-attn {bits}/{bits}", "peer", lambda made, bits=bits: turbo_attn.turbo_attn(bits, made["layers"]))
_add("recipe 4/4 fringe 4+108", "ours", _both(Recipe(4, 4), Exact(4, 108)))  # as many bytes as turbo-attn with its ring, at 2,048 tokens

for bits in (4, 2):
    _add(f"QuantizedCache {bits} bits", "peer", _both(quantized_cache(bits)))
    _add(f"QuantizedCache {bits} bits window 128", "peer as run", _both(quantized_cache(bits), AS_RUN))

for k_bits in (4, 3, 2):
    for v_bits in (4, 3, 2):
        if k_bits != v_bits:
            _add(f"recipe {k_bits}/{v_bits}", "ours", _both(Recipe(k_bits, v_bits)))
            _add(f"recipe {k_bits}/{v_bits} fringe {_label(FRINGE)}", "ours", _both(Recipe(k_bits, v_bits), FRINGE))
for bits in (4, 3, 2):
    if bits < 4:
        _add(f"paper MSE {bits}/{bits}", "paper", _both(paper.mse(bits, bits)))
    _add(f"paper Prod {bits}/{bits}", "paper", _both(paper.prod(bits, bits)))
_add(f"paper MSE 4/4 fringe {_label(FRINGE)}", "paper", _both(paper.mse(4, 4), FRINGE))

for bits in (4, 3, 2):
    _add(f"recipe {bits}/{bits} no metric", "ablation", _both(Recipe(bits, bits, metric=False)))
    _add(f"recipe {bits}/{bits} fringe {_label(FRINGE)} no metric", "ablation", _both(Recipe(bits, bits, metric=False), FRINGE))
_add("recipe 4/4 append no metric", "ablation", _both(Recipe(4, 4, calls=(1,), hold=HOLD, metric=False), APPEND))

# Ablations. What the product can do is the product's; the rest is the sketch of the recipe (recipe.py), "sketch: as the product"
# among them. All at 4/4 bits, everything coded, but where a fringe is named.
_add("recipe 4/4 balance off", "ablation", _both(Recipe(4, 4, balance="off")))
_calibrated_rows("recipe 4/4", "ablation", lambda made: Recipe(4, 4, **_calibrated(made)))
_calibrated_rows(
    f"recipe 4/4 fringe {_label(FRINGE)}", "ablation", lambda made: Recipe(4, 4, **_calibrated(made)), FRINGE
)
_calibrated_rows("recipe 4/4 append", "ablation", lambda made: Recipe(4, 4, (1,), hold=HOLD, **_calibrated(made)), APPEND)
_add(f"recipe 4/4 append fringe {_label(FRINGE)}", "ablation", _both(Recipe(4, 4, calls=(1,), hold=HOLD), replace(FRINGE, hold=HOLD)))
_calibrated_rows("recipe 4/4 append, 0 held", "ablation", lambda made: Recipe(4, 4, (1,), **_calibrated(made)))
for hold in HOLDS:
    if hold:
        _add(f"recipe 4/4 prefill {hold}, then append", "ablation", _both(Recipe(4, 4, calls=(hold, 1))))
        _add(f"recipe 4/4 prefill {hold}, then append, fringe {_label(FRINGE)}", "ablation", _both(Recipe(4, 4, calls=(hold, 1)), FRINGE))
    if hold != HOLD:
        for name, kept in (("", NONE), (f", fringe {_label(FRINGE)}", FRINGE)):
            _add(f"recipe 4/4 append, {hold} held{name}", "ablation", _both(Recipe(4, 4, calls=(1,), hold=hold), replace(kept, hold=hold)))
_add("recipe 4/4 prefill in calls of 16", "ablation", _both(Recipe(4, 4, calls=(128, 16))))
for seed in SEEDS:  # of the signs: how far a figure moves by chance
    _add(f"recipe 4/4 seed {seed}", "ablation", _both(Recipe(4, 4, seed=seed)))
    for bits in (4, 3, 2):
        _add(f"recipe {bits}/{bits} fringe {_label(FRINGE)} seed {seed}", "ablation", _both(Recipe(bits, bits, seed=seed), FRINGE))
for first, recent in FRINGES + SPLITS:
    if (first, recent) not in ((0, 0), (FRINGE.first, FRINGE.recent)):
        _add(f"recipe 4/4 fringe {first}+{recent}", "fringe", _both(Recipe(4, 4), Exact(first, recent)))
for bits in (4, 3, 2):
    name = f"recipe {bits}/{bits} fringe {_label(FRINGE)}"
    for what, seen in (("the first 128 tokens", 128), ("the first 256 tokens", 256), ("the first half", 1024), ("the whole text", 0)):
        _add(f"{name}, attended balance of {what}", "ablation", _both(Recipe(bits, bits, balance="attended", attended=seen), FRINGE))
    _calibrated_rows(
        f"{name}, attended balance", "ablation",
        lambda made, bits=bits: Recipe(bits, bits, balance="calibrated", balances=attended_balances(made["layers"], 512)), FRINGE,
    )  # fmt: skip
for name, sketch in {
    "as the product": Sketch(),
    "no centre": Sketch(centre="none"),
    "centre of the sequence": Sketch(centre="sequence"),
    "centre of the previous page": Sketch(centre="previous"),
    "no choice of the reference": Sketch(choice=False),
    "dense rotation": Sketch(rotation="dense"),
    "no scale search": Sketch(search=False),
    "plain scale": Sketch(scale="plain"),
    "least-squares scale": Sketch(scale="least squares"),
    "unbiased scale": Sketch(scale="unbiased"),
    "balance of the whole text": Sketch(balance="whole text"),
    "pages of 32": Sketch(page=32),
    "value centre": Sketch(value_centre=True),
    "value centre without choice": Sketch(value_centre=True, value_choice=False),
    "value balance": Sketch(value_balance=True),
    "centre of the previous page, half its own centre": Sketch(centre="previous", previous_share=0.5),
    "median for the centre": Sketch(median=True),
    "focus from the first 128 tokens": Sketch(focus="first 128"),
    "focus from the whole text": Sketch(focus="whole text"),
    "feedback from the first 128 tokens": Sketch(feedback="first 128"),
    "feedback from the whole text": Sketch(feedback="whole text"),
    "plain TurboQuant, norm-correct": Sketch(centre="none", balance="off", search=False),
}.items():
    _add(f"sketch: {name}", "ablation", _both(sketch))
_add("dense balance of the whole text", "ablation", _both(DenseBalance()))
_add("dense balance of the first 128 tokens", "ablation", _both(DenseBalance(seen=128, shrink=0.6)))
_add(
    "dense balance calibrated", "ablation",
    lambda context: _both(DenseBalance(matrices={x.index: matrix(x, None, 0.2) for x in context.calibration()["layers"]})),
)  # fmt: skip
for name, sketch in {
    "as the product": {}, "value centre": {"value_centre": True}, "feedback from the first 128 tokens": {"feedback": "first 128"},
    "focus from the first 128 tokens": {"focus": "first 128"}, "focus from the whole text": {"focus": "whole text"},
}.items():  # fmt: skip
    for bits in (4, 3, 2):
        if bits == 4 or name == "as the product" or "focus" in name:
            _add(f"sketch: {name}, {bits}/{bits} fringe {_label(FRINGE)}", "ablation", _both(Sketch(bits, bits, **sketch), FRINGE))
for bits in (4, 3, 2):
    _calibrated_rows(
        f"sketch: focus, {bits}/{bits} fringe {_label(FRINGE)}", "ablation",
        lambda made, bits=bits: Sketch(bits, bits, focus="calibrated", calibration=made["layers"]), FRINGE,
    )  # fmt: skip
for seed in SEEDS:
    _add(f"sketch: as the product, 4/4 fringe {_label(FRINGE)} seed {seed}", "ablation", _both(Sketch(seed=seed), FRINGE))
    _add(f"sketch: focus from the first 128 tokens, 4/4 fringe {_label(FRINGE)} seed {seed}", "ablation", _both(Sketch(focus="first 128", seed=seed), FRINGE))
    _calibrated_rows(
        f"sketch: focus, 4/4 fringe {_label(FRINGE)} seed {seed}", "ablation",
        lambda made, seed=seed: Sketch(focus="calibrated", calibration=made["layers"], seed=seed), FRINGE,
    )  # fmt: skip
