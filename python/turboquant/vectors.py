# SPDX-License-Identifier: Apache-2.0
"""What the layers of every cache ask of a call's keys and values, and the balance that a file has for them."""

from __future__ import annotations

import torch

from .calibration import Calibration

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_vectors(
    index: int,
    keys: torch.Tensor,
    values: torch.Tensor,
    have: tuple | None,
    remedy: str = "call reset() first, or use a new cache",
) -> None:
    """`have`: (batch, kv_heads, head_dim, device) of layer `index`, where it holds any."""
    where = f"layer {index}: "
    if keys.dim() != 4 or keys.shape[:3] != values.shape[:3]:
        raise ValueError(f"{where}keys {tuple(keys.shape)} and values {tuple(values.shape)} do not match")
    if keys.shape[3] != values.shape[3]:
        raise NotImplementedError(
            f"{where}key head_dim {keys.shape[3]} and value head_dim {values.shape[3]} differ (latent attention): "
            "not supported, use transformers' DynamicCache"
        )
    if keys.dtype not in DTYPES or values.dtype != keys.dtype:
        raise ValueError(f"{where}keys are {keys.dtype} and values {values.dtype}: both must be one of float32, bfloat16, float16")
    new = (keys.shape[0], keys.shape[1], keys.shape[3], keys.device)
    if have is not None and have != new:
        raise ValueError(
            f"{where}the cache holds (batch, kv_heads, head_dim, device) = {have}, this call brings {new}: {remedy}"
        )


def balance_from(calibration: Calibration, index: int, signs: torch.Tensor) -> torch.Tensor:
    """Layer `index`'s balance, where it fits `signs` [kv_heads, head_dim]."""
    balance = calibration.balances.get(index)
    if balance is None or balance.shape != signs.shape:
        found = "nothing" if balance is None else f"[kv_heads, head_dim] = {list(balance.shape)}"
        raise ValueError(f"layer {index}: the calibration has {found}, needed is {list(signs.shape)}: it is of another model")
    return balance.to(signs.device)
