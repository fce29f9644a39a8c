# SPDX-License-Identifier: Apache-2.0
"""The two quantisers on tensors of a cache's shape: [batch, heads, tokens, head_dim]."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .quantizers import TurboQuantMSE, TurboQuantProd


@dataclass
class CompressedKeys:
    """What `TurboQuantCompressorV2.compress` returns; the four tensors are `TurboQuantProd.quantize`'s."""

    indices: torch.Tensor
    norms: torch.Tensor
    qjl_signs: torch.Tensor
    residual_norms: torch.Tensor
    original_dtype: torch.dtype = torch.float16


@dataclass
class CompressedValues:
    """What `TurboQuantCompressorMSE.compress` returns; the two tensors are `TurboQuantMSE.quantize`'s."""

    indices: torch.Tensor
    norms: torch.Tensor
    original_dtype: torch.dtype = torch.float16


class TurboQuantCompressorMSE:
    """`TurboQuantMSE` that remembers the dtype of what it compressed."""

    def __init__(self, head_dim: int, bits: int = 3, *, seed: int = 42) -> None:
        self.head_dim, self.bits = head_dim, bits
        self.quantizer = TurboQuantMSE(head_dim, bits, seed=seed)

    def compress(self, values: torch.Tensor) -> CompressedValues:
        return CompressedValues(*self.quantizer.quantize(values), values.dtype)

    def decompress(self, compressed: CompressedValues) -> torch.Tensor:
        return self.quantizer.dequantize(compressed.indices, compressed.norms).to(compressed.original_dtype)


class TurboQuantCompressorV2:
    """`TurboQuantProd` on keys, with attention scores straight from what it compressed."""

    def __init__(self, head_dim: int, bits: int = 3, *, seed: int = 42) -> None:
        self.head_dim, self.bits = head_dim, bits
        self.quantizer = TurboQuantProd(head_dim, bits, seed=seed)

    def compress(self, keys: torch.Tensor) -> CompressedKeys:
        return CompressedKeys(*self.quantizer.quantize(keys), keys.dtype)

    def decompress(self, compressed: CompressedKeys) -> torch.Tensor:
        return self._reconstruct(compressed).to(compressed.original_dtype)

    def asymmetric_attention_scores(self, query: torch.Tensor, compressed: CompressedKeys) -> torch.Tensor:
        """Unbiased q.k of query [batch, heads, q, head_dim] with every key: [batch, heads, q, tokens], unscaled."""
        return (query.float() @ self._reconstruct(compressed).mT).to(query.dtype)

    def _reconstruct(self, c: CompressedKeys) -> torch.Tensor:
        return self.quantizer.dequantize(c.indices, c.norms, c.qjl_signs, c.residual_norms)
