# SPDX-License-Identifier: Apache-2.0
"""TurboQuantStaticCache: a compressed cache of fixed capacity, for torch.compile and CUDA graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer, LinearAttentionCacheLayerMixin

from .cache import TurboQuantCache
from .calibration import Calibration
from .layers import TurboQuantLayer
from .static_layer import TurboQuantStaticLayer
from .static_state import StaticState, fixed
from .static_window import StaticWindowLayer


class TurboQuantStaticCache(Cache):
    """A `TurboQuantCache` whose tensors are allocated once, for `max_tokens` of each sequence, and whose lengths lie on the device.

    So a decoding step can be compiled (`torch.compile(model, mode="reduce-overhead", fullgraph=True)`; `generate` does by itself) or
    captured in a CUDA graph. The first call must not be; or call `early_initialization` before. The options are those of
    `TurboQuantCache` but for `hold`: each call is coded at once, so the first should bring 64 tokens or more. Its metric is made of the
    first call's queries and does not grow. The same calls give the same bytes as a `TurboQuantCache(hold=0)` whose metric does not
    grow either, since its first call brought 1,024 tokens or more, say (beside layers that slide: but for the order of their sums).

    What goes wrong inside a compiled or captured call (more tokens than fit, a mask that changes) cannot be an error there. The next
    call that goes through the host raises it: `length`, `check`, `crop`, `reset`, `memory`, a reordering.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        max_tokens: int,
        k_bits: int = 4,
        v_bits: int = 4,
        fringe: tuple[int, int] | None = (4, 28),
        balance: bool | str | Path | Calibration = True,
        seed: int = 0,
        metric: bool = True,
    ) -> None:
        if max_tokens is None:
            raise ValueError("max_tokens=None: a static cache is of a fixed size; TurboQuantCache grows")
        growing = TurboQuantCache(config, k_bits, v_bits, fringe, balance, seed, max_tokens, hold=0, metric=metric)  # its checks are ours
        text = config.get_text_config(decoder=True)
        self.settings = growing.settings
        self.settings.metric_grows = False
        layers = list(growing.layers)
        readers = {i: layer.readers for i, layer in enumerate(layers) if isinstance(layer, TurboQuantLayer)}
        self.state = StaticState(max_tokens, self.settings, readers, others=len(readers) < len(layers))
        for i, layer in enumerate(layers):
            if i in readers:
                layers[i] = TurboQuantStaticLayer(self.settings, self.state, i, _q_heads(text, i))
            elif isinstance(layer, DynamicSlidingWindowLayer):
                layers[i] = StaticWindowLayer(layer.sliding_window, max_tokens)
        super().__init__(layers=layers)
        self.compressed = [layers[i] for i in readers]

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple:
        layer = self.layers[layer_idx]
        if isinstance(layer, TurboQuantStaticLayer):
            return layer.begin_step(layer_idx, self.state, key_states, value_states)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    def length(self) -> int:
        """Tokens of each sequence, padding included. Waits for the device; RuntimeError where a call went wrong there."""
        return self.state.length() if self.compressed else int(super().get_seq_length())

    check = length

    def reset(self) -> None:
        """Forgets all tokens, and balance and metric of the first call. What went wrong before and was not raised is raised then."""
        failure = None
        try:
            failed_before = self.state.reported
            self.state.length()
        except RuntimeError as error:
            failure = None if failed_before else error
        super().reset()
        if self.state.batch:
            self.state.clear()
        if failure is not None:
            raise failure

    def crop(self, tokens_to_remove: int) -> None:
        """n <= 0 forgets the newest |n| tokens; n > 0 keeps the first n."""
        length = self.length()
        kept = min(tokens_to_remove, length) if tokens_to_remove > 0 else max(length + tokens_to_remove, 0)
        stock = [layer for layer in self.layers if not isinstance(layer, TurboQuantStaticLayer)]
        fixed_layers = {type(layer).__name__ for layer in stock if not layer.is_croppable}
        if kept != length and fixed_layers:
            raise NotImplementedError(
                f"layers of type {sorted(fixed_layers)} do not keep what a crop would bring back: reset the cache and give it the "
                "kept tokens again, or use TurboQuantCache"
            )
        for layer in stock:
            if layer.is_croppable:
                layer.crop(kept - length)
        if kept != length:
            self.state.set_length(length, kept)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx.tolist())

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._select([i for i in range(self._batch()) for _ in range(repeats)])

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._select(torch.arange(self._batch())[indices.cpu() if isinstance(indices, torch.Tensor) else indices].tolist())

    def memory(self) -> dict[str, int]:
        """Bytes of every tensor the cache holds: of compressed layers by use, of the others as "stock"."""
        self.state.length()
        total = dict.fromkeys(("pages", "fringe", "tables", "signs", "workspace", "stock"), 0)
        for layer in self.layers:
            if isinstance(layer, TurboQuantStaticLayer):
                for name, count in layer.memory().items():
                    total[name] += count
            else:
                total["stock"] += sum(t.nbytes for t in _tensors(layer))
        if self.state.batch:
            total["tables"] = sum(t.nbytes for t in self.state.tensors())
            total["workspace"] = self.state.workspace.nbytes
        return total

    @property
    def nbytes(self) -> int:
        return sum(self.memory().values())

    @property
    def nbytes_16bit(self) -> int:
        """What a 16-bit cache of the same tokens takes."""
        length = self.state.length()
        ours = [x for x in self.compressed if x.is_initialized]
        return self.memory()["stock"] + sum(4 * x.batch * x.kv_heads * length * x.head_dim for x in ours)

    def _batch(self) -> int:
        stock = (x.shape[0] for layer in self.layers for x in _tensors(layer) if x.dim() > 1)
        return self.state.batch or next(stock, 0)

    def _select(self, sources: list[int]) -> None:
        """Sequence i becomes a copy of what sequence sources[i] was."""
        state, batch = self.state, self._batch()
        if batch == 0:
            return
        if len(sources) != batch and state.captured:
            raise RuntimeError(f"{batch} sequences cannot become {len(sources)}: a captured CUDA graph has the addresses of {batch}")
        length = state.length()
        index = torch.tensor(sources, dtype=torch.int64)
        if state.batch:
            index = index.to(state.device)
            state.select(index)
        for layer in self.layers:
            if isinstance(layer, TurboQuantStaticLayer):
                if layer.is_initialized:
                    layer.select(sources, batch, length)
            else:
                _select_stock(layer, index, same=len(sources) == batch)


def _select_stock(layer: StaticWindowLayer | LinearAttentionCacheLayerMixin, index: torch.Tensor, same: bool) -> None:
    """In place, where the number of sequences stays: compiled functions know the addresses."""
    for holder, name, tensor in list(_held(layer)):
        if tensor.dim() == 0:
            continue
        chosen = tensor.index_select(0, index.to(tensor.device))
        if same:
            tensor.copy_(chosen)
        else:
            holder[name] = fixed(chosen)


def _held(layer: object):
    for name, value in vars(layer).items():
        if isinstance(value, torch.Tensor):
            yield vars(layer), name, value
        elif isinstance(value, dict):
            yield from ((value, key, x) for key, x in value.items() if isinstance(x, torch.Tensor))


def _tensors(layer: object) -> list[torch.Tensor]:
    return [tensor for _, _, tensor in _held(layer)]


def _q_heads(text: PreTrainedConfig, layer: int) -> int:
    if hasattr(text, "per_layer_config"):  # transformers 5.12 on: models whose layers differ
        text = text.per_layer_config[layer]
    return text.num_attention_heads
