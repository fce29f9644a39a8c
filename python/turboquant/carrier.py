# SPDX-License-Identifier: Apache-2.0
"""What TurboQuantCache.update returns in place of the key and value tensors.

The registered attention recognises a carrier and reads the pages themselves. To everything else a
carrier is the dequantised tensor [batch, kv_heads, tokens, head_dim]: it becomes one when first touched.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map

if TYPE_CHECKING:
    from .layers import TurboQuantLayer


class Step:
    """One update of one layer: the call's own keys and values [batch, kv_heads, tokens, head_dim],
    which the layer stores once every reader (the layer, and those that share its KV) has attended."""

    __slots__ = (
        "layer", "keys", "values", "tokens", "history", "unread", "queries", "stored", "dense",
    )  # fmt: skip

    def __init__(self, layer: TurboQuantLayer, keys: torch.Tensor, values: torch.Tensor, tokens: int, history: int) -> None:
        self.layer = layer
        self.keys = keys
        self.values = values
        self.tokens = tokens
        self.history = history  # tokens before this call
        self.unread = layer.readers
        self.queries: torch.Tensor | None = None  # the first reader's, where a balance is to be made of them
        self.stored = False
        self.dense: tuple[torch.Tensor, torch.Tensor] | None = None

    def tensors(self) -> list[torch.Tensor]:
        """What it holds, each storage once."""
        held = (self.keys, self.values, self.queries)
        return list({t.untyped_storage().data_ptr(): t for t in held if t is not None}.values())

    def materialise(self) -> tuple[torch.Tensor, torch.Tensor]:
        """History dequantised, own tokens exact; stores them, since no attention of ours will."""
        if self.dense is None:
            self.dense = self.layer.materialise(self)
        return self.dense


class Carrier:
    """Half of a Step: part 0 is the keys, part 1 the values. Not a torch.Tensor subclass, because making
    one costs ten times as much, and each layer makes two a token."""

    __slots__ = ("step", "part")

    def __init__(self, step: Step, part: int) -> None:
        self.step = step
        self.part = part

    def tensor(self) -> torch.Tensor:
        return self.step.materialise()[self.part]

    @property
    def shape(self) -> torch.Size:
        batch, heads, tokens, head_dim = self.step.keys.shape
        return torch.Size((batch, heads, self.step.history + tokens, head_dim))

    @property
    def dtype(self) -> torch.dtype:
        return self.step.keys.dtype

    @property
    def device(self) -> torch.device:
        return self.step.keys.device

    @property
    def ndim(self) -> int:
        return 4

    def dim(self) -> int:
        return 4

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """Itself where nothing changes: models move shared KV to the reader's device."""
        if len(args) == 1 and not kwargs and isinstance(args[0], (torch.device, torch.dtype, str)):
            if args[0] in (self.device, self.dtype, str(self.device)):
                return self
        return self.tensor().to(*args, **kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = tree_map(_as_tensor, (args, kwargs or {}))
        return func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # copy, pickle and friends ask for what a carrier does not have
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self.tensor()[index]

    def __len__(self) -> int:
        return self.step.keys.shape[0]

    def __repr__(self) -> str:
        return f"Carrier({('keys', 'values')[self.part]}, shape={tuple(self.shape)}, dtype={self.dtype})"


def in_rows(heads: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, head_dim] with strides as `attend_encode` takes them: itself, as models make it, or a copy."""
    batch, _, tokens, _ = heads.shape
    between, _, token, last = heads.stride()
    if last == 1 and (batch == 1 or tokens == 1 or between == tokens * token):
        return heads
    return heads.transpose(1, 2).contiguous().transpose(1, 2)


def rows_of(heads: torch.Tensor) -> torch.Tensor:
    """[batch, heads, tokens, head_dim] -> [batch * tokens, heads, head_dim], a view where it can be one."""
    batch, count, tokens, head_dim = heads.shape
    if tokens == 1:
        rows = heads.select(2, 0)
    elif batch == 1:
        rows = heads.select(0, 0).transpose(0, 1)
    else:
        rows = heads.transpose(1, 2).reshape(batch * tokens, count, head_dim)
    return rows if rows.stride(2) == 1 else rows.contiguous()


def _as_tensor(value: Any) -> Any:
    return value.tensor() if isinstance(value, Carrier) else value


def _operator(function: Any, reflected: bool) -> Any:
    def apply(self: Carrier, other: Any) -> torch.Tensor:
        other = _as_tensor(other)
        return function(other, self.tensor()) if reflected else function(self.tensor(), other)

    return apply


for _name in ("add", "sub", "mul", "truediv", "matmul"):
    setattr(Carrier, f"__{_name}__", _operator(getattr(operator, _name), reflected=False))
    setattr(Carrier, f"__r{_name}__", _operator(getattr(operator, _name), reflected=True))
