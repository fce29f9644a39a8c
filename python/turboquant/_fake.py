# SPDX-License-Identifier: Apache-2.0
"""What each operator returns, as shapes and dtypes: for torch.compile, torch.export and FakeTensor.

One function an operator, with the operator's own arguments; the ones that give no shape are not named.
"""

import torch
from torch import Tensor

from . import _library  # noqa: F401  registers torch.ops.turboquant

_ops = torch.ops.turboquant


@torch.library.register_fake("turboquant::rotate")
def _rotate(x: Tensor, signs: Tensor, base: Tensor | None, inverse: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.register_fake("turboquant::balance")
def _balance(query: Tensor, keys: Tensor, token_starts: Tensor, starts: Tensor | None) -> Tensor:
    return query.new_empty((keys.shape[1], keys.shape[2]), dtype=torch.float32)


@torch.library.register_fake("turboquant::encode")
def _encode(keys: Tensor, *_) -> None:
    return None


@torch.library.register_fake("turboquant::decode")
def _decode(
    pages, page_table, lengths, starts, fringe, recent_starts, query_signs, value_signs, base,
    head_dim, k_bits, v_bits, fringe_first, max_tokens, dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shape = (page_table.shape[0], pages.shape[1], max_tokens, head_dim)
    return pages.new_empty(shape, dtype=dtype), pages.new_empty(shape, dtype=dtype)


@torch.library.register_fake("turboquant::attend")
def _attend(query: Tensor, *_) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@torch.library.register_fake("turboquant::random_signs")
def _random_signs(dim: int, seed: int) -> Tensor:
    return torch.empty(dim, dtype=torch.float32, device="cpu")


@torch.library.register_fake("turboquant::hadamard_base")
def _hadamard_base(head_dim: int) -> Tensor:
    size = _ops.hadamard_base_size(head_dim)
    return torch.empty((size, size), dtype=torch.float32, device="cpu")
