# SPDX-License-Identifier: Apache-2.0
"""Caches made of a DynamicCache of yours: they change what it stores, not who holds it.

Pass the DynamicCache on to the model, or the wrapper: both are views of the same layers.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from transformers.cache_utils import Cache, DynamicLayer

from .. import attention as _attention  # noqa: F401  registers the attention "turboquant"
from .. import ops
from ..cache import sharing_layers
from ..calibration import Calibration, as_calibration
from ..layers import TurboQuantLayer
from ..settings import CacheSettings
from . import codes
from .compressors import TurboQuantCompressorMSE

_MIB = 1 << 20


class _Wrapper(Cache):
    """A second view of a cache's layers, that can be switched off and taken away."""

    def __init__(self, cache: Cache) -> None:
        if not isinstance(cache, Cache) or cache.offloading:
            raise NotImplementedError(f"wraps a DynamicCache that does not offload, not {type(cache).__name__}")
        if getattr(cache, "_turboquant_wrapper", None) is not None:
            warnings.warn("the cache is already wrapped: call restore() on that wrapper first", stacklevel=3)
        super().__init__(layers=cache.layers)  # the same list: what one view appends, both hold
        self.layer_class_to_replicate = cache.layer_class_to_replicate
        self.cache = cache
        self.enabled = False
        cache._turboquant_wrapper = self

    def enable(self) -> None:
        """Compress, as after construction."""
        self.enabled = True

    def disable(self) -> None:
        """Store what comes next as transformers does."""
        self.enabled = False

    def restore(self) -> None:
        """Take the wrapper away: the cache is transformers' own again and keeps its tokens."""
        self.disable()
        self.cache._turboquant_wrapper = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> bool:
        self.restore()
        return False


class TurboQuantKVCache(_Wrapper):
    """Stores what would survive quantisation, in the model's own dtype: for studies of accuracy, saves no memory.

    Every layer's keys and values pass through `TurboQuantMSE`, the paper's plain codec, and back; new tokens are
    seen quantised too. Tokens stored while disabled stay as they were.
    """

    def __init__(
        self,
        cache: Cache,
        head_dim: int,
        bits: int = 3,
        *,
        seed: int = 42,
        compress_keys: bool = True,
        compress_values: bool = True,
    ) -> None:
        self.key_compressor = TurboQuantCompressorMSE(head_dim, bits, seed=seed)
        self.value_compressor = TurboQuantCompressorMSE(head_dim, bits, seed=seed)
        super().__init__(cache)
        self.head_dim, self.bits = head_dim, bits
        self.compress_keys, self.compress_values = compress_keys, compress_values
        self._stock_update = cache.update
        cache.update = self.update
        self.enable()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.enabled and self.compress_keys:
            key_states = self.key_compressor.decompress(self.key_compressor.compress(key_states))
        if self.enabled and self.compress_values:
            value_states = self.value_compressor.decompress(self.value_compressor.compress(value_states))
        return self._stock_update(key_states, value_states, layer_idx, *args, **kwargs)

    def restore(self) -> None:
        super().restore()
        self.cache.update = self._stock_update


class CompressedTensors(NamedTuple):
    """One layer's codes, token by token. In the rotated domain a value is `norm * centroid[index]`, and a key
    the same plus its row of `CompressedDynamicCache.key_centres`."""

    k_packed: torch.Tensor  # uint8 [batch, kv_heads, tokens, head_dim // 2] at 4 bits: the even index above the odd
    k_norms: torch.Tensor  # float32 [batch, kv_heads, tokens, 1]
    v_packed: torch.Tensor  # at 2 and 3 bits uint8 [batch, kv_heads, tokens, head_dim], an index a byte
    v_norms: torch.Tensor


class CompressedDynamicCache(_Wrapper):
    """Turns the full-attention layers of a DynamicCache into compressed ones; sliding windows stay as they are.

    No 16-bit copy is kept: `vram_bytes` counts everything that is held. A model that attends with "turboquant"
    (`turboquant.enable(model)`) reads the codes; under any other attention each step dequantises its layer's history for
    that step. `disable` and `restore` replace the codes by dense tensors of what they say; `enable` codes those again.
    """

    def __init__(
        self,
        cache: Cache,
        head_dim: int,
        bits: int | None = 4,
        *,
        k_bits: int | None = None,
        v_bits: int | None = None,
        seed: int = 42,
        model_config: Any = None,
        fringe: tuple[int, int] | None = (4, 28),
        balance: bool | str | Path | Calibration = True,
    ) -> None:
        k_bits, v_bits = (bits if b is None else b for b in (k_bits, v_bits))
        if k_bits is None or v_bits is None:
            raise ValueError("no bit width: pass bits, or both k_bits and v_bits")
        ops.page_bytes(head_dim, k_bits, v_bits)  # refuses what no page can hold
        super().__init__(cache)
        self.head_dim, self.bits, self.k_bits, self.v_bits = head_dim, bits, k_bits, v_bits
        self._stock_class = cache.layer_class_to_replicate
        self._sharing = sharing_layers(model_config.get_text_config(decoder=True)) if model_config is not None else 0
        first, recent = fringe or (0, 0)
        calibration = as_calibration(balance)
        if calibration is not None and model_config is not None:
            calibration.check_config(model_config)
        self._settings = CacheSettings(k_bits, v_bits, first, recent, bool(balance), seed, None, calibration, metric=True)
        if "sliding_attention" in (getattr(model_config, "layer_types", None) or ()) and not any(self.is_sliding):
            warnings.warn(
                "the model has sliding-window layers but this cache has none: build it with DynamicCache(config=model.config)",
                stacklevel=2,
            )
        self.enable()

    def enable(self) -> None:
        """Code the full-attention layers, and those that the cache adds from now on."""
        if self.enabled:
            return
        super().enable()
        full = [i for i, layer in enumerate(self.layers) if type(layer) is DynamicLayer]
        for i in full:
            readers = 1 + (self._sharing if i == full[-1] else 0)
            self.layers[i] = _compressed(self.layers[i], TurboQuantLayer(self._settings, i, readers))
        if self._stock_class is DynamicLayer:
            self._set_layer_class(self._new_layer)

    def disable(self) -> None:
        """Dense tensors of what the codes say, and transformers' own layers from now on."""
        if not self.enabled:
            return
        super().disable()
        for i, layer in enumerate(self.layers):
            if isinstance(layer, TurboQuantLayer):
                self.layers[i] = _dense(layer)
        self._set_layer_class(self._stock_class)

    def vram_bytes(self) -> int:
        """Bytes of every tensor that the compressed layers hold: pages, fringe, tables, signs."""
        held = sum(sum(layer.memory().values()) for layer in self._compressed_layers())
        shared = (*self._settings.cached_tensors(), *self._settings.basis_tensors())
        return held + sum(tensor.nbytes for tensor in shared) if held else 0

    def baseline_vram_bytes(self) -> int:
        """What the same tokens take in 16 bits."""
        return sum(4 * x.batch * x.kv_heads * x.get_seq_length() * x.head_dim for x in self._compressed_layers())

    def compression_stats(self) -> dict[str, Any]:
        """Sizes now and, per sequence, at three context lengths; empty before the first token."""
        layers = self._compressed_layers()
        if not layers:
            return {}
        held, baseline, first = self.vram_bytes(), self.baseline_vram_bytes(), layers[0]
        token = sum(x.kv_heads * ops.page_bytes(x.head_dim, self.k_bits, self.v_bits) / 64 for x in layers)
        return {
            "num_layers": len(layers),
            "seq_len": first.get_seq_length(),
            "batch_size": first.batch,
            "num_heads": first.kv_heads,
            "head_dim": first.head_dim,
            "bits": self.bits,
            "k_bits": self.k_bits,
            "v_bits": self.v_bits,
            "k_nibble_packed": self.k_bits == 4,
            "v_nibble_packed": self.v_bits == 4,
            "compressed_mib": held / _MIB,
            "baseline_mib": baseline / _MIB,
            "compression_ratio": round(baseline / held, 2),
            "savings_mib": (baseline - held) / _MIB,
            "vram_estimate": {length: round(token * length / _MIB, 2) for length in (4096, 16384, 32768)},
        }

    def get_compressed(self, layer_idx: int) -> CompressedTensors:
        """The layer's codes and scales out of its pages, for inspection."""
        layer, pages = self._pages(layer_idx)
        d, value_offset = layer.head_dim, 8 * layer.head_dim * self.k_bits
        scale_offset = value_offset + 8 * d * self.v_bits
        k = codes.indices(pages, d, self.k_bits, keys=True, offset=0)
        v = codes.indices(pages, d, self.v_bits, keys=False, offset=value_offset)
        if self.k_bits == 4:
            k = _nibbles(k)
        if self.v_bits == 4:
            v = _nibbles(v)
        k_norms = codes.scales(pages, scale_offset).abs()[..., None]
        v_norms = codes.scales(pages, scale_offset + 128)[..., None]
        k, k_norms, v, v_norms = (x.flatten(2, 3)[:, :, : layer.length] for x in (k, k_norms, v, v_norms))
        return CompressedTensors(k, k_norms, v, v_norms)

    def key_centres(self, layer_idx: int) -> torch.Tensor:
        """float32 [batch, kv_heads, tokens, head_dim]: what each key's codes are added to, rotated; 0 for many."""
        layer, pages = self._pages(layer_idx)
        scale_offset = 8 * layer.head_dim * (self.k_bits + self.v_bits)
        centre = codes.centre(pages, layer.head_dim, scale_offset + 256)[..., None, :]
        uses_centre = ~torch.signbit(codes.scales(pages, scale_offset))[..., None]
        return torch.where(uses_centre, centre, 0.0).flatten(2, 3)[:, :, : layer.length]

    @property
    def k_centroids(self) -> torch.Tensor:
        """float32 [2^k_bits], ascending."""
        return codes.centroids(self.k_bits, keys=True)

    @property
    def v_centroids(self) -> torch.Tensor:
        """float32 [2^v_bits], ascending."""
        return codes.centroids(self.v_bits, keys=False)

    def _compressed_layers(self) -> list[TurboQuantLayer]:
        return [x for x in self.layers if isinstance(x, TurboQuantLayer) and x.get_seq_length()]

    def _new_layer(self) -> TurboQuantLayer:
        return TurboQuantLayer(self._settings, len(self.layers))

    def _set_layer_class(self, layer_class: Any) -> None:
        self.layer_class_to_replicate = self.cache.layer_class_to_replicate = layer_class

    def _pages(self, layer_idx: int) -> tuple[TurboQuantLayer, torch.Tensor]:
        """A layer and its pages [batch, kv_heads, pages, page_bytes]."""
        layer = self.layers[layer_idx] if layer_idx < len(self.layers) else None
        if not isinstance(layer, TurboQuantLayer) or not layer.get_seq_length():
            kind = "it has no tokens yet" if layer is None or isinstance(layer, TurboQuantLayer) else type(layer).__name__
            raise ValueError(f"layer {layer_idx} has no compressed data ({kind})")
        layer.flush()
        used = -(-layer.length // codes.PAGE_TOKENS)
        return layer, layer.pages.pool.data[layer.pages.table[:, :used].long()].transpose(1, 2)


def _compressed(layer: DynamicLayer, compressed: TurboQuantLayer) -> TurboQuantLayer:
    if layer.get_seq_length():
        compressed.update(layer.keys, layer.values)
        compressed.flush()
    return compressed


def _dense(layer: TurboQuantLayer) -> DynamicLayer:
    layer.flush()
    dense = DynamicLayer()
    if layer.length:
        dense.update(*layer.dequantize())
    return dense


def _nibbles(indices: torch.Tensor) -> torch.Tensor:
    return indices[..., 0::2] << 4 | indices[..., 1::2]
