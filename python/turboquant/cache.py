# SPDX-License-Identifier: Apache-2.0
"""TurboQuantCache: a transformers cache whose full-attention layers are compressed."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer, LinearAttentionLayer

from . import attention as _attention  # noqa: F401  registers the attention
from . import ops
from .calibration import Calibration, as_calibration
from .layers import TurboQuantLayer
from .settings import CacheSettings
from .offloading import OffloadedLayer
from .vectors import DTYPES

STOCK_LAYERS = (DynamicSlidingWindowLayer, LinearAttentionLayer)
HOLD = 64
REMEDY = "use transformers' DynamicCache for this model"


class TurboQuantCache(Cache):
    """Keys and values in 2 to 4 bits a number, attended where they lie.

    Each layer by its type: full attention is compressed, sliding windows and linear attention stay as
    transformers stores them; layers that share a compressed layer's KV read its pages.
    `fringe=(first, newest)` keeps that many tokens of each sequence in 16 bits beside the pages; `None`
    keeps none. `balance` takes per-channel weights from the first tokens' queries and keys; the path of a file (or a
    `Calibration`) that `python -m turboquant.calibrate` wrote takes them from there. `hold`: a cache of fewer tokens keeps them
    as the model gave them, and codes them all at once when there are that many, since a page wants its tokens' mean and a balance
    its queries; 0 codes each call at once. `metric` chooses codes of keys by what queries, of the first 2,048 tokens at most, make of their errors:
    `head_dim ** 2` bytes a KV head, five times as many while it grows, and a slower encode. `seed` draws
    the rotations: the same seed and calls give the same bytes. `max_tokens` allocates pages for that many
    tokens (padding included) of each sequence at the first call; without it they grow. `offloading` keeps
    the pages of layers that do not compute in host memory. What is not supported is refused here, with the
    reason.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        k_bits: int = 4,
        v_bits: int = 4,
        fringe: tuple[int, int] | None = (4, 28),
        balance: bool | str | Path | Calibration = True,
        seed: int = 0,
        max_tokens: int | None = None,
        offloading: bool = False,
        hold: int = HOLD,
        metric: bool = True,
    ) -> None:
        first, recent = _checked_fringe(fringe)
        if not 0 <= seed < 1 << 47:
            raise ValueError(f"seed={seed} is not in [0, 2**47)")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens={max_tokens} is not positive: pass None to let the cache grow")
        if hold < 0:
            raise ValueError(f"hold={hold} is negative: pass a count of tokens, or 0 to code each call at once")
        text = _checked_config(config)
        ops.page_bytes(64, k_bits, v_bits)  # refuses other bits
        calibration = as_calibration(balance)
        if calibration is not None:
            calibration.check_config(text)
        self.settings = CacheSettings(k_bits, v_bits, first, recent, bool(balance), seed, max_tokens, calibration, metric, hold)

        layers = _stock_layers(text)
        full = [i for i, layer in enumerate(layers) if type(layer) is DynamicLayer]
        self.settings.layers = len(layers)
        other = {type(layer).__name__ for layer in layers if type(layer) not in (DynamicLayer, *STOCK_LAYERS)}
        if other:
            raise NotImplementedError(f"layers of type {sorted(other)} are not supported: {REMEDY}")
        ring: list[OffloadedLayer] = []
        differ = hasattr(text, "per_layer_config") and text.is_heterogeneous
        for i in full:
            if differ or i == full[0]:
                _check_head_dim(text, i, k_bits, v_bits)
            readers = 1 + (sharing_layers(text) if i == full[-1] else 0)
            if offloading:
                layers[i] = OffloadedLayer(self.settings, i, readers, ring)
            else:
                layers[i] = TurboQuantLayer(self.settings, i, readers)
        if not full:
            warnings.warn(
                f"none of the {len(layers)} layers of this {type(text).__name__} is a full-attention layer, so nothing "
                "is compressed: their windows and states stay in 16 bits",
                UserWarning,
                stacklevel=2,
            )
        super().__init__(layers=layers)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args, **kwargs) -> tuple:
        """As transformers' own, without what it does for caches that grow by a layer or are offloaded by it."""
        return self.layers[layer_idx].update(key_states, value_states, *args, **kwargs)

    def reset(self) -> None:
        super().reset()
        for layer in self.layers:  # transformers only zeroes a window's tokens, and would go on behind them
            if isinstance(layer, DynamicSlidingWindowLayer):
                layer.is_initialized = False

    def memory(self) -> dict[str, int]:
        """Bytes of every tensor the cache holds: of compressed layers by use, of the others as "stock"."""
        uses = ("pages", "fringe", "tables", "signs", "workspace", "pending", "held", "host", "stock")
        total: dict[str, int] = dict.fromkeys(uses, 0)
        for layer in self.layers:
            if isinstance(layer, TurboQuantLayer):
                for name, count in layer.memory().items():
                    total[name] += count
            else:
                total["stock"] += sum(t.nbytes for t in vars(layer).values() if hasattr(t, "nbytes"))
        total["signs"] += sum(t.nbytes for t in self.settings.basis_tensors())
        total["tables"] += sum(t.nbytes for t in self.settings.cached_tensors())
        total["workspace"] = sum(t.nbytes for t in self.settings.workspaces())
        return total

    @property
    def nbytes(self) -> int:
        return sum(self.memory().values())

    @property
    def nbytes_16bit(self) -> int:
        """What a 16-bit cache of the same tokens takes."""
        compressed = [x for x in self.layers if isinstance(x, TurboQuantLayer) and x.is_initialized]
        return self.memory()["stock"] + sum(4 * x.batch * x.kv_heads * x.length * x.head_dim for x in compressed)


def _checked_fringe(fringe: tuple[int, int] | None) -> tuple[int, int]:
    if fringe is None:
        return 0, 0
    if not (isinstance(fringe, (tuple, list)) and len(fringe) == 2 and all(isinstance(n, int) and n >= 0 for n in fringe)):
        raise ValueError(f"fringe={fringe!r}: pass (first, newest), two counts of tokens, or None for no fringe")
    return fringe[0], fringe[1]


def _checked_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The text part of the config, or an error that names what the model has and we lack."""
    if not isinstance(config, PreTrainedConfig):
        raise TypeError(f"TurboQuantCache takes a model's config (model.config), not {type(config).__name__}")
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(f"{type(config).__name__} is an encoder-decoder model: not supported, {REMEDY}")
    text = config.get_text_config(decoder=True)
    name = type(text).__name__
    if getattr(text, "kv_lora_rank", None):
        raise NotImplementedError(f"{name} has latent attention (kv_lora_rank={text.kv_lora_rank}): not supported, {REMEDY}")
    if getattr(text, "cross_attention_layers", None) or getattr(text, "add_cross_attention", False):
        raise NotImplementedError(f"{name} has cross attention, which keeps keys of another input: not supported, {REMEDY}")
    if text.model_type == "minimax":
        raise NotImplementedError(f"{name}: its model takes no cache but its own: not supported, {REMEDY}")
    if not getattr(text, "num_attention_heads", None):
        raise NotImplementedError(f"{name} says nothing of attention heads (num_attention_heads): not supported, {REMEDY}")
    if isinstance(getattr(text, "dtype", None), torch.dtype) and text.dtype not in DTYPES:
        raise NotImplementedError(f"{name} has dtype {text.dtype}; pages are made of float32, bfloat16 or float16: {REMEDY}")
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()) or getattr(text, "attention_chunk_size", None):
        raise NotImplementedError(f"{name} has chunked attention: not supported, {REMEDY}")
    return text


def _stock_layers(text: PreTrainedConfig) -> list:
    """What transformers would store this model's keys and values in."""
    try:
        return list(DynamicCache(config=text).layers)
    except (AttributeError, KeyError) as error:  # a part of a model, or layers of its own that only its code knows
        raise NotImplementedError(f"transformers builds no cache from {type(text).__name__} alone ({error}): not supported") from error


def sharing_layers(text: PreTrainedConfig) -> int:
    """How many layers have no KV of their own and attend to that of the last full-attention layer that has
    (Gemma 3n, Gemma 4)."""
    shared = getattr(text, "num_kv_shared_layers", 0) or 0
    return list(text.layer_types[-shared:]).count("full_attention") if shared else 0


def _check_head_dim(text: PreTrainedConfig, layer: int, k_bits: int, v_bits: int) -> None:
    head_dim, v_head_dim = _head_dim(text, layer), getattr(text, "v_head_dim", None)
    if v_head_dim and head_dim and v_head_dim != head_dim:
        raise NotImplementedError(
            f"layer {layer} of {type(text).__name__}: key head_dim {head_dim} and value head_dim {v_head_dim} differ: "
            f"not supported, {REMEDY}"
        )
    try:
        if head_dim is not None:
            ops.page_bytes(head_dim, k_bits, v_bits)
            ops.hadamard_base(head_dim)
    except ValueError as error:
        raise NotImplementedError(f"layer {layer} of {type(text).__name__}: {error}; {REMEDY}") from error


def _head_dim(text: PreTrainedConfig, layer: int) -> int | None:
    """What the config says of a layer; its first call decides."""
    if hasattr(text, "per_layer_config"):  # transformers 5.12 on: models whose layers differ
        text = text.per_layer_config[layer]
    head_dim = getattr(text, "head_dim", None)
    if head_dim is None and getattr(text, "num_attention_heads", None):
        head_dim = text.hidden_size // text.num_attention_heads
    return head_dim if isinstance(head_dim, int) else None
