# SPDX-License-Identifier: Apache-2.0
"""One decoding step as generate runs it, and the clock around it."""

from __future__ import annotations

import contextlib
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


class Decoder:
    """Greedy decoding with one arm: each call feeds the token that the last one chose."""

    def __init__(self, model: PreTrainedModel, cache: Cache | None, arm: str, batch: int, forward: Callable | None = None):
        self.model, self.cache, self.arm, self.forward = model, cache, arm, forward or model
        self.tokens = torch.full((batch, 1), 17, device=model.device)

    def logits(self) -> torch.Tensor:
        """[batch, vocabulary] of the next token; the cache grows by one."""
        out = self.forward(input_ids=self.tokens, past_key_values=self.cache, use_cache=self.cache is not None, logits_to_keep=1)
        return out.logits[:, -1]

    def step(self) -> None:
        self.tokens = self.logits().argmax(-1, keepdim=True)

    def timed(self) -> float:
        """Milliseconds of one step, device included: generate looks at each token before it goes on."""
        with attention(self.model, self.arm):
            return timed(self.step, self.model.device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], object], device: torch.device) -> float:
    synchronize(device)
    begin = time.perf_counter()
    call()
    synchronize(device)
    return 1e3 * (time.perf_counter() - begin)


def in_turn(arms: dict[str, Callable[[], float]], warm: int, count: int, in_a_row: int = 1) -> dict[str, list[float]]:
    """`count` times `in_a_row` values of each arm in turn: what a machine does meanwhile, it does to all. Where they are several in
    a row, one more comes before them, which is not counted: caches hold what the other arm left."""
    times: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(warm + count):
        for name, run in arms.items():
            values = [run() for _ in range(in_a_row + (in_a_row > 1))]
            if turn >= warm:
                times[name] += values[-in_a_row:]
    return times


def summary(values: list[float], digits: int = 3) -> dict[str, float | int]:
    """Median, the value that nine in ten exceed, the one that one in ten exceeds."""
    ordered = sorted(values)

    def at(share: float) -> float:
        position = share * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return round(ordered[low] + (position - low) * (ordered[high] - ordered[low]), digits)

    return {"median": at(0.5), "p10": at(0.1), "p90": at(0.9), "count": len(ordered)}
