# SPDX-License-Identifier: Apache-2.0
"""A small paged cache for tests of the operators: random tensors of every argument, and the calls."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from turboquant import ops


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


@dataclass
class Paged:
    """Sequences of `history` tokens in pages, and a call of `own` more, as arguments of the operators."""

    history: tuple[int, ...] = (70, 0, 5)
    own: tuple[int, ...] = (1, 3, 2)
    kv_heads: int = 2
    group: int = 2
    head_dim: int = 64
    k_bits: int = 4
    v_bits: int = 4
    first: int = 0
    recent: int = 0
    starts: Tensor | None = None
    dtype: torch.dtype = torch.float32
    seed: int = 0
    # Made from the above, unless given.
    arguments: dict = field(default_factory=dict)

    def __post_init__(self):
        if not self.arguments:
            self.arguments = self._make()
            self._encode_history()

    def _make(self) -> dict:
        generator = torch.Generator().manual_seed(self.seed)
        count, tokens = len(self.history), sum(self.own)
        longest = max((h + o for h, o in zip(self.history, self.own)), default=0)
        max_pages = -(-longest // 64)
        signs = [
            torch.stack([ops.random_signs(self.head_dim, 10 * kind + head) for head in range(self.kv_heads)])
            for kind in range(2)
        ]
        stretch = torch.rand(self.kv_heads, self.head_dim, generator=generator) + 0.5
        fringe_shape = (count, self.kv_heads, self.first + self.recent, 2, self.head_dim)
        page_size = ops.page_bytes(self.head_dim, self.k_bits, self.v_bits)
        base = ops.hadamard_base(self.head_dim)
        # Shuffled pages, so that nothing works by luck.
        table = torch.randperm(count * max_pages, generator=generator).to(torch.int32)

        def rows(heads: int, count: int) -> Tensor:
            return torch.randn(count, heads, self.head_dim, generator=generator).to(self.dtype)

        total = sum(self.history)
        self.history_keys, self.history_values = rows(self.kv_heads, total), rows(self.kv_heads, total)
        return {
            "query": rows(self.kv_heads * self.group, tokens),
            "keys": rows(self.kv_heads, tokens),
            "values": rows(self.kv_heads, tokens),
            "token_starts": self._cumulative(self.own),
            "pages": torch.zeros(count * max_pages, self.kv_heads, page_size, dtype=torch.uint8),
            "page_table": table.reshape(count, max_pages),
            "lengths": int32(*self.history),
            "starts": self.starts,
            "fringe": torch.zeros(fringe_shape, dtype=torch.float16) if self.first + self.recent else None,
            "recent_starts": int32(*[0] * count) if self.first + self.recent else None,
            "key_signs": signs[0] / stretch,
            "query_signs": signs[0] * stretch,
            "value_signs": signs[1],
            "base": base if base.shape[0] > 1 else None,
            "sinks": None,
            "k_bits": self.k_bits,
            "v_bits": self.v_bits,
            "fringe_first": self.first,
            "scale": self.head_dim**-0.5,
            "softcap": 0.0,
            "window": 0,
            "head_dim": self.head_dim,
            "max_tokens": max(self.history, default=0),
            "dtype": torch.float32,
            "settled": False,
            "workspace": None,
            "most_tokens": max(self.own, default=0),
            "key_metric": None,
        }

    @staticmethod
    def _cumulative(counts) -> Tensor:
        return torch.tensor([0, *torch.tensor(counts, dtype=torch.int64).cumsum(0)], dtype=torch.int32)

    def _encode_history(self) -> None:
        before = int32(*[0] * len(self.history))
        self.but(
            keys=self.history_keys,
            values=self.history_values,
            token_starts=self._cumulative(self.history),
            lengths=before,
        ).encode()

    def but(self, **changes) -> "Paged":
        """The same call with other arguments."""
        return replace(self, arguments={**self.arguments, **changes})

    def for_op(self, name: str) -> tuple:
        """The arguments of an operator, in its order."""
        schema = getattr(torch.ops.turboquant, name).default._schema
        arguments = self.in_heads() if "attend_encode" in name else self.arguments
        return tuple(arguments[argument.name] for argument in schema.arguments)

    def in_heads(self) -> dict:
        """With the call's own tokens [sequences, heads, tokens, head_dim]; every sequence brings as many."""
        assert len(set(self.own)) == 1, self.own
        rows = {name: self.arguments[name] for name in ("query", "keys", "values")}
        return self.arguments | {name: x.unflatten(0, (-1, self.own[0])).transpose(1, 2) for name, x in rows.items() if x.dim() == 3}

    def encode(self) -> None:
        ops.encode(*self.for_op("encode"))

    def decode(self) -> tuple[Tensor, Tensor]:
        return ops.decode(*self.for_op("decode"))

    def attend(self) -> tuple[Tensor, Tensor]:
        return ops.attend(*self.for_op("attend"))

    def attend_encode(self) -> Tensor:
        """[tokens, q_heads, head_dim], as attend's."""
        return ops.attend_encode(*self.for_op("attend_encode")).flatten(0, 1)

    def balance(self) -> Tensor:
        # Its `starts` are of the call's own rows.
        return ops.balance(*self.but(starts=None).for_op("balance"))
