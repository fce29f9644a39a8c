# SPDX-License-Identifier: Apache-2.0
"""The masks of the attention "turboquant": torch's, and for a TurboQuantStaticCache that holds tokens, a summary.

A mask over a fixed capacity would cost each step a row of the whole capacity, and reading it on the host a wait for the device.
`attend` needs no mask, only where each sequence begins, and the cache has that from the first call. So a later call's mask becomes
int32 [batch, 1, 1, 2]: the first position that it shows, and whether it shows all from there on. The device compares.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask, sliding_window_causal_mask_function

from .static_state import StaticState
from .static_window import window_mask

_SLIDING = sliding_window_causal_mask_function(1)


def turboquant_mask(*args: Any, **options: Any) -> torch.Tensor | None:
    """For transformers' AttentionMaskInterface; arguments as sdpa_mask. `kv_offset` of one dimension is a TurboQuantStaticLayer's
    mark, of two a StaticWindowLayer's; see get_mask_sizes."""
    length = options.get("kv_offset")
    if not isinstance(length, torch.Tensor) or length.dim() == 0:
        return sdpa_mask(*args, **options)
    function = options["mask_function"]
    sliding = options.get("local_size") is not None and function.__code__ is _SLIDING.__code__
    if not (function is causal_mask_function or sliding) or options.get("use_vmap"):
        raise NotImplementedError(
            "TurboQuantStaticCache: after the first call, masks are causal with left padding; this model asks for more (image blocks, "
            "packed sequences): use TurboQuantCache"
        )
    mask, tokens, keys = options.get("attention_mask"), options["q_length"], options["kv_length"]
    if length.dim() == 2:
        return window_mask(options["batch_size"], tokens, keys, length[0, 0], options["local_size"], mask)
    return None if mask is None else _summary(mask, length + tokens, keys)


def _summary(mask: torch.Tensor, end: torch.Tensor, max_tokens: int) -> torch.Tensor:
    """`mask` bool [batch, positions], of which those from `end` on do not matter."""
    positions = mask.shape[1]
    if positions > max_tokens:
        raise ValueError(
            f"attention_mask has {positions} positions, which do not fit into max_tokens={max_tokens}: build the cache with more"
        )
    shown = mask & (torch.arange(positions, device=mask.device) < end)
    count = shown.sum(dim=1)
    first = torch.where(count > 0, shown.int().argmax(dim=1), end)  # `end` is of one element
    return torch.stack([first, count == end - first], dim=1).int()[:, None, None, :]


def read_first_mask(state: StaticState, mask: torch.Tensor | None, tokens: int) -> None:
    """`mask` of the first call, bool (True: visible) or added: says where each sequence begins."""
    if mask is None:
        state.padded = False
        return
    if mask.dim() != 4 or mask.shape[0] not in (1, state.batch) or mask.shape[2:] != (tokens, tokens):
        raise ValueError(f"attention_mask has shape {tuple(mask.shape)}, but this call has batch {state.batch} and {tokens} tokens")
    visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    columns = visible.any(dim=1).any(dim=1)  # [batch or 1, tokens]: seen by any query
    state.starts.copy_(torch.where(columns.any(dim=1), columns.int().argmax(dim=1), tokens).expand(state.batch))
    state.padded = None if state.unseen() else bool(state.starts.any())


def read_later_mask(state: StaticState, mask: torch.Tensor | None, tokens: int) -> None:
    """`mask` from turboquant_mask."""
    if mask is None:
        if state.padded:
            raise ValueError("the cached sequences begin with padding: pass attention_mask with every call")
        if state.padded is None:
            state.mask_changed.logical_or_(state.starts.any())
        return
    if mask.dtype != torch.int32 or mask.shape != (state.batch, 1, 1, 2):
        raise NotImplementedError(
            f"TurboQuantStaticCache: after the first call, attention_mask is [batch, positions], not {tuple(mask.shape)}"
        )
    first, whole = mask[:, 0, 0, 0], mask[:, 0, 0, 1]
    if tokens > 1:  # a chunk of a prompt: a sequence that was all padding until now may begin
        state.starts.copy_(torch.where(state.starts >= state.lengths, first, state.starts))
    state.mask_changed.logical_or_(((first != state.starts) | (whole == 0)).any())
