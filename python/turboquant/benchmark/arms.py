# SPDX-License-Identifier: Apache-2.0
"""The two sides of the comparison: one model, two caches, each with the attention that it would have in use."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel, StaticCache


@dataclasses.dataclass(frozen=True)
class Setting:
    """How TurboQuantCache is built."""

    k_bits: int = 4
    v_bits: int = 4
    fringe: tuple[int, int] = (4, 28)
    balance: bool | str = True  # or a file of balance vectors
    static: bool = False  # fixed capacity, for compiled steps; then the baseline is StaticCache

    def label(self) -> str:
        first, recent = self.fringe
        name = "TurboQuantStaticCache" if self.static else "TurboQuantCache"
        return f"{name} K{self.k_bits}/V{self.v_bits}, fringe {first}+{recent}" + (
            ", balance from a file" if isinstance(self.balance, str) else "" if self.balance else ", no balance"
        )


@dataclasses.dataclass(frozen=True)
class Arm:
    key: str  # "baseline" or "turboquant", as in the report
    label: str
    make_cache: Callable[[int], object]  # with room for so many tokens, where its capacity is fixed
    attention: Callable[[], contextlib.AbstractContextManager[None]]


def baseline_arm(model: PreTrainedModel, static: bool = False, attention: str = "default") -> Arm:
    """`attention`: "default" for torch's own choice of SDPA's backend, "flash" for that one."""
    name = "StaticCache" if static else "DynamicCache"

    def make_cache(capacity: int) -> object:
        return StaticCache(config=model.config, max_cache_len=capacity) if static else DynamicCache(config=model.config)

    if attention == "flash":
        return Arm("baseline", f"{name}, flash", make_cache, lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION))
    return Arm("baseline", name, make_cache, contextlib.nullcontext)


def turboquant_arm(model: PreTrainedModel, setting: Setting) -> Arm:
    import turboquant

    kind = turboquant.TurboQuantStaticCache if setting.static else turboquant.TurboQuantCache
    options = {"k_bits": setting.k_bits, "v_bits": setting.v_bits, "fringe": setting.fringe, "balance": setting.balance}

    def make_cache(capacity: int) -> object:
        return kind(model.config, **options, **({"max_tokens": capacity} if setting.static else {}))

    return Arm("turboquant", setting.label(), make_cache, lambda: _turboquant_attention(model))


@contextlib.contextmanager
def _turboquant_attention(model: PreTrainedModel) -> Iterator[None]:
    from turboquant import enable

    kept = [(config, config._attn_implementation) for config in _configs(model)]
    enable(model)
    try:
        yield
    finally:
        for config, implementation in kept:
            # The setter would hand the value on to the sub-configs.
            config._attn_implementation_internal = implementation


def _configs(model: PreTrainedModel) -> list:
    """The distinct configs of a model and its parts (text, vision, ...)."""
    configs = {id(model.config): model.config}
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            configs[id(module.config)] = module.config
    for config in list(configs.values()):
        for name in config.sub_configs:
            if (part := getattr(config, name, None)) is not None:
                configs[id(part)] = part
    return list(configs.values())


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
