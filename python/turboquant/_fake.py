# SPDX-License-Identifier: Apache-2.0
"""What each operator returns, as shapes and dtypes: for torch.compile, torch.export and meta tensors.

One function an operator, with the operator's own arguments; the ones that give no shape are not named.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import _library  # noqa: F401  registers torch.ops.turboquant

_ops = torch.ops.turboquant


def _check_devices(names: list[str], args: tuple) -> None:
    tensors = [(name, arg) for name, arg in zip(names, args) if isinstance(arg, Tensor) and name != "state"]
    for name, tensor in tensors:
        first, device = tensors[0][0], tensors[0][1].device
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device} but {first} on {device}; pass {name}.to({str(device)!r})")


def _fake(function: Callable[..., Any]) -> Callable[..., Any]:
    """Registers `function` as the fake kernel of the operator of its name."""
    op = function.__name__
    names = [argument.name for argument in getattr(_ops, op).default._schema.arguments]

    @torch.library.register_fake(f"turboquant::{op}")
    @functools.wraps(function)
    def checked(*args: Any) -> Any:
        _check_devices(names, args)
        return function(*args)

    return checked


@_fake
def rotate(x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


@_fake
def balance(query: Tensor, keys: Tensor, *_: Any) -> Tensor:
    return query.new_empty((keys.shape[1], keys.shape[2]), dtype=torch.float32)


@_fake
def key_metric(*_: Any) -> None:
    return None


@_fake
def encode(*_: Any) -> None:
    return None


@_fake
def decode(pages: Tensor, page_table: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    head_dim, _k_bits, _v_bits, _fringe_first, max_tokens, dtype = others[-6:]
    shape = (page_table.shape[0], pages.shape[1], max_tokens, head_dim)
    return pages.new_empty(shape, dtype=dtype), pages.new_empty(shape, dtype=dtype)


@_fake
def attend(query: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), query.new_empty(query.shape[:2], dtype=torch.float32)


@_fake
def attend_encode(query: Tensor, *_: Any) -> Tensor:
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty((batch, tokens, heads, head_dim))


@_fake
def prepare_attend_encode(query: Tensor, *_: Any) -> Tensor:
    return torch.empty(1024, dtype=torch.uint8, device="cpu")  # as in bindings/torch/attend_encode.cc


@_fake
def attend_encode_prepared(query: Tensor, *_: Any) -> Tensor:
    batch, heads, tokens, head_dim = query.shape
    return query.new_empty((batch, tokens, heads, head_dim))


@_fake
def random_signs(dim: int, seed: int) -> Tensor:
    return torch.empty(dim, dtype=torch.float32, device="cpu")


@_fake
def hadamard_base(head_dim: int) -> Tensor:
    size = _ops.hadamard_base_size(head_dim)
    return torch.empty((size, size), dtype=torch.float32, device="cpu")


@_fake
def lloyd_max(dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    levels = 1 << int(bits)
    return tuple(torch.empty(shape, dtype=torch.float64, device="cpu") for shape in ((levels,), (levels - 1,), ()))


@_fake
def mse_quantize(x: Tensor, bits: int, *_: Any) -> tuple[Tensor, Tensor]:
    n, dim = x.shape
    return x.new_empty((n, (dim * bits + 7) // 8), dtype=torch.uint8), x.new_empty(n)


@_fake
def mse_dequantize(codes: Tensor, norms: Tensor, dim: int, *_: Any) -> Tensor:
    return norms.new_empty((codes.shape[0], dim))


@_fake
def prod_quantize(x: Tensor, bits: int, *_: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n, dim = x.shape
    codes = x.new_empty((n, (dim * (bits - 1) + 7) // 8), dtype=torch.uint8)
    signs = x.new_empty((n, (dim + 7) // 8), dtype=torch.uint8)
    return codes, signs, x.new_empty(n), x.new_empty(n)


@_fake
def prod_dequantize(
    codes: Tensor, signs: Tensor, norms: Tensor, residual_norms: Tensor, dim: int, *_: Any
) -> Tensor:
    return norms.new_empty((codes.shape[0], dim))


@_fake
def prod_inner_product(queries: Tensor, codes: Tensor, *_: Any) -> Tensor:
    return queries.new_empty((queries.shape[0], codes.shape[0]))
