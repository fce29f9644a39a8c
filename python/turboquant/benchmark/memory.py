# SPDX-License-Identifier: Apache-2.0
"""How many bytes a cache really holds.

Counted: the storage of every tensor that can be reached from the cache object, each storage once and in full, so room
allocated ahead and small tables count too. Checked by a second, cruder measure: what the process (or the GPU's allocator)
gives back when the cache is dropped.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import torch

BASELINE_ELEMENT_BYTES = 2  # the ratio is against a 16-bit cache, also where the model runs in fp32


def held_tensors(root: object) -> Iterator[torch.Tensor]:
    """Every tensor reachable through attributes and containers; models, configs and functions are not entered."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            yield item
            continue
        if isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting.extend(item)
        elif _is_part_of_a_cache(item):
            waiting.extend(vars(item).values() if hasattr(item, "__dict__") else ())
            for kind in type(item).__mro__:
                slots = kind.__dict__.get("__slots__", ())
                waiting.extend(getattr(item, name) for name in ([slots] if isinstance(slots, str) else slots) if hasattr(item, name))


def _is_part_of_a_cache(item: object) -> bool:
    module = type(item).__module__
    if isinstance(item, (torch.nn.Module, type)) or callable(item):
        return False
    return module.startswith("turboquant") or module == "transformers.cache_utils"


def held_bytes(root: object, element_bytes: int | None = None) -> int:
    """Bytes of all storages held. With element_bytes, of the same floating-point elements at that width."""
    storages: dict[int, int] = {}
    for tensor in held_tensors(root):
        storage = tensor.untyped_storage()
        size = storage.nbytes()
        if size == 0:
            continue
        if element_bytes is not None and tensor.is_floating_point():
            size = size // tensor.element_size() * element_bytes
        storages[storage.data_ptr()] = size
    return sum(storages.values())


def baseline_bytes(cache: object) -> int:
    return held_bytes(cache, BASELINE_ELEMENT_BYTES)


def released_bytes(release: Callable[[], None], device: torch.device) -> int | None:
    """What the process's resident memory (or the GPU's allocated memory) shrinks by when `release` drops the last reference.

    On a CPU it is exact to some hundred KB of allocator slack at best; None where the C library cannot be made to trim."""
    before = _in_use(device)
    release()
    after = _in_use(device)
    return None if before is None or after is None else before - after


class Peak:
    """The most memory held since it was made, beyond what was held then: the GPU's allocator's, or the process's resident memory
    where the system lets its high-water mark be set back (Linux)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.before = _in_use(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif self.before is not None:
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError:
                self.before = None

    def bytes(self) -> int | None:
        if self.before is None:
            return None
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device) - self.before
        lines = Path("/proc/self/status").read_text().splitlines()
        most = next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)
        return None if most is None else max(0, most - self.before)


def _in_use(device: torch.device) -> int | None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return torch.cuda.memory_allocated(device)
    try:
        # glibc keeps freed blocks; without this the resident size would not shrink.
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return None
    return psutil.Process().memory_info().rss
