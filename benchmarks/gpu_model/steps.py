# SPDX-License-Identifier: Apache-2.0
"""Decoding steps, one as generate runs it or many as a loop does, and the clock around them."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

ATTENTIONS = {"default": "sdpa", "flash": "sdpa", "quantized": "sdpa", "static": "sdpa", "turboquant": "turboquant"}


@contextlib.contextmanager
def attention(model: PreTrainedModel, arm: str) -> Iterator[None]:
    """The model attends as the arm does: with torch's SDPA of its own choice or with the flash backend, or with ours."""
    # As turboquant.enable() leaves it, without its walk over the modules.
    model.config.get_text_config()._attn_implementation_internal = ATTENTIONS[arm]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION) if arm in ("flash", "quantized") else contextlib.nullcontext():
        yield


def argmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(-1, keepdim=True)


def next_token(
    model: PreTrainedModel, tokens: torch.Tensor, cache: Cache | None, choose: Callable[[torch.Tensor], torch.Tensor] = argmax,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [batch, vocabulary] and the token [batch, 1] that `choose` takes after `tokens` [batch, 1]."""
    logits = model(input_ids=tokens, past_key_values=cache, use_cache=cache is not None, logits_to_keep=1).logits[:, -1]
    return logits, choose(logits)


class Decoder:
    """Greedy decoding with one arm: each call feeds the token that the last one chose."""

    def __init__(self, model: PreTrainedModel, cache: Cache | None, arm: str, batch: int, choose: Callable | None = None):
        """`choose`: a compiled next_token."""
        self.model, self.cache, self.arm, self.choose = model, cache, arm, choose or next_token
        self.tokens = torch.full((batch, 1), 17, device=model.device)

    def logits(self) -> torch.Tensor:
        """[batch, vocabulary] of the next token; the cache grows by one."""
        return self.choose(self.model, self.tokens, self.cache)[0]

    def step(self) -> None:
        self.tokens = self.choose(self.model, self.tokens, self.cache)[1].clone()  # a graph's output is overwritten by its next replay

    def timed(self) -> float:
        """Milliseconds of one step, device included: generate looks at each token before it goes on."""
        with attention(self.model, self.arm):
            return timed(self.step, self.model.device)

    def loop(self, steps: int) -> float:
        """Milliseconds a step of so many: the clock sees the first begin on an idle device and the last one end. In between each step
        takes the token of the one before on the device, and the host waits for none."""

        def run() -> None:
            for _ in range(steps):
                self.step()

        with attention(self.model, self.arm):
            return timed(run, self.model.device) / steps


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def in_turn(arms: dict[str, Callable[[], float]], warm: int, count: int) -> dict[str, list[float]]:
    """`count` values of each arm in turn, after `warm` that are dropped: what a machine does meanwhile, it does to all."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warm + count):
        for name, run in arms.items():
            value = run()
            if turn >= warm:
                times[name].append(value)
    return times


def in_blocks(arms: dict[str, Callable[[], float]], blocks: int, count: int = 1, lead: int = 0) -> dict[str, list[list[float]]]:
    """`blocks` times `count` values of an arm in a row, after `lead` that are dropped: caches hold what the other arm left. The arms
    take turns, each second time the other way round: what gets slower slows both."""
    times: dict[str, list[list[float]]] = {name: [] for name in arms}
    for block in range(blocks):
        for name in list(arms)[:: -1 if block % 2 else 1]:
            values = [arms[name]() for _ in range(lead + count)]
            times[name].append(values[lead:])
    return times


def of_all(blocks: list[list[float]]) -> dict[str, float | int]:
    return summary([value for block in blocks for value in block])


def ratio(theirs: list[list[float]], ours: list[list[float]]) -> dict[str, float | int]:
    """How many times as long theirs take: of the medians of blocks that ran one after the other. A host that is busy for longer than
    that slows both, and the ratio stays."""
    return summary([statistics.median(a) / statistics.median(b) for a, b in zip(theirs, ours, strict=True)])


def summary(values: list[float], digits: int = 3) -> dict[str, float | int]:
    """Median, the value that nine in ten exceed, the one that one in ten exceeds."""
    ordered = sorted(values)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return round(ordered[low] + (position - low) * (ordered[high] - ordered[low]), digits)

    return {"median": at(0.5), "p10": at(0.1), "p90": at(0.9), "count": len(ordered)}
