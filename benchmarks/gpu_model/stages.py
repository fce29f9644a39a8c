# SPDX-License-Identifier: Apache-2.0
"""The host's time in a step, by who takes it: the cache's update, attention, the mask, and the model's own code."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .steps import ATTENTIONS, Decoder, attention, summary, synchronize


class Clock:
    """Nanoseconds in functions that it wraps. A wrapped call costs about 0.3 us more."""

    def __init__(self) -> None:
        self.spent: dict[str, int] = {}

    def wrap(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        spent, now = self.spent, time.perf_counter_ns

        def timed(*args: Any, **kwargs: Any) -> Any:
            begin = now()
            result = function(*args, **kwargs)
            spent[name] = spent.get(name, 0) + now() - begin
            return result

        return timed


@contextlib.contextmanager
def watched(decoder: Decoder, clock: Clock) -> Iterator[None]:
    """The decoder's steps with a clock around what a cache brings."""
    name, text = ATTENTIONS[decoder.arm], sys.modules[type(decoder.model.get_decoder()).__module__]
    attend, mask = ALL_ATTENTION_FUNCTIONS[name], text.create_causal_mask
    ALL_ATTENTION_FUNCTIONS[name] = clock.wrap("attention", attend)
    text.create_causal_mask = clock.wrap("mask", mask)
    decoder.cache.update = clock.wrap("update", decoder.cache.update)
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS[name] = attend
        text.create_causal_mask = mask
        del decoder.cache.update


def stages(decoders: dict[str, Decoder], count: int) -> dict[str, dict[str, dict]]:
    """Milliseconds of `count` steps of each arm, a step of each in turn. "step" ends with the device, "host" with the last launch."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in decoders}
    for turn in range(-2, count):
        for name, decoder in decoders.items():
            for what, value in _step(decoder).items():
                if turn >= 0:
                    found[name].setdefault(what, []).append(value)
    return {name: {what: summary(values) for what, values in parts.items()} for name, parts in found.items()}


def text(found: dict[str, dict[str, dict]]) -> str:
    lines = []
    for arm, parts in found.items():
        shown = ", ".join(f"{what} {ms['median']:.3f} ({ms['p10']:.3f} to {ms['p90']:.3f})" for what, ms in parts.items())
        lines.append(f"{arm:<12} ms: {shown}")
    return "\n".join(lines)


def _step(decoder: Decoder) -> dict[str, float]:
    clock, device = Clock(), decoder.model.device
    with attention(decoder.model, decoder.arm), watched(decoder, clock):
        synchronize(device)
        begin = time.perf_counter_ns()
        decoder.step()
        submitted = time.perf_counter_ns() - begin
        synchronize(device)
        whole = time.perf_counter_ns() - begin
    parts = {"step": whole, "host": submitted, **clock.spent, "model": submitted - sum(clock.spent.values())}
    return {name: value / 1e6 for name, value in parts.items()}
