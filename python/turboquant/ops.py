# SPDX-License-Identifier: Apache-2.0
"""The operators as Python functions: ``torch.ops.turboquant.<name>`` with types and exact exceptions.

The arithmetic is in C++; nothing is computed here. Every operator has a fake kernel, so all of them may
be called inside ``torch.compile``. They are for inference: none has a gradient.

Conventions, once for all of them:

* All tensors of a call are on one device, the CPU or a CUDA device, and are never copied or converted: a
  wrong dtype, shape, device or stride raises ``ValueError``, which names the argument, what was found and
  what to pass. Nothing has been written then. What no kernel does raises ``NotImplementedError``.
* On CUDA a call runs on the current stream and waits for nothing, so it can be captured in a graph. What
  ``token_starts``, ``lengths``, ``starts``, ``recent_starts`` and ``page_table`` hold is not looked at
  there: it must be right.
* ``query``, ``keys``, ``values`` and ``x`` are ``[tokens, heads, head_dim]`` of float32, float16 or
  bfloat16: the tokens of all sequences one after another. Their last dimension has stride 1, the other
  strides are free; all other tensors are contiguous.
* ``token_starts`` int32 ``[sequences + 1]``: sequence ``i`` owns rows ``token_starts[i]`` to
  ``token_starts[i + 1]``.
* ``pages`` uint8 ``[count, kv_heads, page_bytes(head_dim, k_bits, v_bits)]``: 64 tokens a page.
  ``page_table`` int32 ``[sequences, max_pages]``: position ``p`` of a sequence is slot ``p % 64`` of page
  ``page_table[sequence, p // 64]``.
* ``lengths`` int32 ``[sequences]``: positions in the pages before this call. ``starts`` int32
  ``[sequences]`` or None: the first position that counts; those before are left padding.
* ``fringe`` float16 ``[sequences, kv_heads, first + recent, 2, head_dim]`` or None: 16-bit copies of the
  first ``fringe_first`` and the newest ``recent`` tokens. ``recent_starts`` int32 ``[sequences]`` or
  None: the first position that the recent part holds, where a sequence was truncated.
* ``key_signs``, ``query_signs``, ``value_signs`` float32 ``[kv_heads, head_dim]``: random signs, divided
  by the balance for keys and multiplied by it for queries.
* ``base`` float32 ``[m, m]`` or None: ``hadamard_base(head_dim)``; None where ``head_dim`` is a power
  of two.
"""

from typing import Any

import torch
from torch import Tensor

from . import _fake  # noqa: F401  registers torch.ops.turboquant and its fake kernels
from ._errors import call as _call
from ._quantizer_ops import lloyd_max, mse_dequantize, mse_quantize, prod_dequantize, prod_inner_product, prod_quantize

__all__ = [
    "attend",
    "attend_encode",
    "attend_encode_prepared",
    "attend_workspace_bytes",
    "balance",
    "decode",
    "encode",
    "hadamard_base",
    "hadamard_base_size",
    "key_metric",
    "lloyd_max",
    "mse_dequantize",
    "mse_quantize",
    "page_bytes",
    "prepare_attend_encode",
    "prod_dequantize",
    "prod_inner_product",
    "prod_quantize",
    "random_signs",
    "rotate",
    "version",
]

_ops = torch.ops.turboquant

METRIC_QUERIES = 1 << 17  # of a KV head, in all: what a moment of `key_metric` holds


def rotate(x: Tensor, signs: Tensor, base: Tensor | None = None, inverse: bool = False) -> Tensor:
    """``H (signs * x) / sqrt(head_dim)``, or with ``inverse`` ``signs * (H^T x) / sqrt(head_dim)``.

    ``signs`` float32 ``[heads, head_dim]``. Returns a new tensor of x's shape and dtype.
    """
    return _call(_ops.rotate.default, x, signs, base, inverse)


def balance(query: Tensor, keys: Tensor, token_starts: Tensor, starts: Tensor | None = None) -> Tensor:
    """The balance of keys against queries, from the first 128 tokens of every sequence.

    ``starts`` int32 ``[sequences]``: rows to skip at the front of each sequence. Returns float32
    ``[kv_heads, head_dim]``, of mean 1 in each head: ``key_signs = signs / balance`` and
    ``query_signs = signs * balance``.
    """
    return _call(_ops.balance.default, query, keys, token_starts, starts)


def key_metric(
    query: Tensor,
    starts: Tensor | None,
    query_signs: Tensor,
    base: Tensor | None,
    step: int,
    begins: bool,
    moment: Tensor,
    metric: Tensor | None = None,
) -> None:
    """Adds queries to ``moment``, and makes of all that were added ``metric``, `encode`'s ``key_metric``.

    ``query`` is as models have it, ``[sequences, q_heads, tokens, head_dim]``, of any strides but the last. Of the rows of all
    sequences, one after another, every ``step``-th is taken, from row ``step - 1`` on; not those before ``starts``, zeros, or what
    holds NaN or infinity. ``moment`` int32 ``[kv_heads, head_dim, head_dim]`` may hold anything where the call ``begins``; what lies below
    its diagonal is not used. It holds 131,072 queries of a KV head: more in one call are refused, more in all make it wrong.
    ``metric`` int8 of the same shape, or None: only add. The bytes depend on which queries were added alone, not on the order.
    """
    _call(_ops.key_metric.default, query, starts, query_signs, base, step, begins, moment, metric)


def encode(
    keys: Tensor,
    values: Tensor,
    token_starts: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    starts: Tensor | None,
    pages: Tensor,
    fringe: Tensor | None,
    recent_starts: Tensor | None,
    key_signs: Tensor,
    value_signs: Tensor,
    base: Tensor | None,
    k_bits: int,
    v_bits: int,
    fringe_first: int,
    settled: bool = False,
    key_metric: Tensor | None = None,
) -> None:
    """Stores the call's keys and values into ``pages`` (and ``fringe``) at positions ``lengths[i]`` on.

    ``keys`` and ``values`` have one dtype. A token whose vector holds NaN or infinity decodes to NaN; no
    other token notices. The bytes depend on the inputs alone, not on the machine.

    ``settled`` (CUDA): True promises that all arguments were complete before the stream's previous kernel
    began, the `attend` of the same tokens, say. The two may then overlap, and so may the next kernel. In
    these promises a settled `encode` counts as a part of the kernel before it.

    ``key_metric`` int8 ``[kv_heads, head_dim, head_dim]``, symmetric, or None: what an error of a rotated key costs, which the
    choice of codes, and a page's own mean, then lower (`key_metric` makes it of queries; docs/adr/0008, 0009).
    """
    _call(
        _ops.encode.default, keys, values, token_starts, page_table, lengths, starts, pages, fringe,
        recent_starts, key_signs, value_signs, base, k_bits, v_bits, fringe_first, settled, key_metric,
    )  # fmt: skip


def decode(
    pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    starts: Tensor | None,
    fringe: Tensor | None,
    recent_starts: Tensor | None,
    query_signs: Tensor,
    value_signs: Tensor,
    base: Tensor | None,
    head_dim: int,
    k_bits: int,
    v_bits: int,
    fringe_first: int,
    max_tokens: int,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Keys and values as the model gave them, up to the error of the codes: the inverse of `encode`.

    Returns two tensors ``[sequences, kv_heads, max_tokens, head_dim]`` of ``dtype`` (float32, float16 or
    bfloat16), zero at padding and from ``lengths[i]`` on; ``max_tokens`` is at least the longest length.
    """
    return _call(
        _ops.decode.default, pages, page_table, lengths, starts, fringe, recent_starts, query_signs,
        value_signs, base, head_dim, k_bits, v_bits, fringe_first, max_tokens, dtype,
    )  # fmt: skip


def attend(
    query: Tensor,
    keys: Tensor | None,
    values: Tensor | None,
    token_starts: Tensor,
    pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    starts: Tensor | None,
    fringe: Tensor | None,
    recent_starts: Tensor | None,
    query_signs: Tensor,
    value_signs: Tensor,
    base: Tensor | None,
    sinks: Tensor | None,
    k_bits: int,
    v_bits: int,
    fringe_first: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    settled: bool = False,
    workspace: Tensor | None = None,
    most_tokens: int = 0,
) -> tuple[Tensor, Tensor]:
    """Attention of the call's queries to their own keys and values, as given, and to all older positions.

    A query at position ``p`` sees the call's tokens at positions up to ``p`` and the ``lengths[i]`` ones
    in the pages, from the fringe where it holds them; with a ``window``, only those after ``p - window``.
    Scores are ``scale * q.k``, then ``softcap * tanh(score / softcap)`` where ``softcap > 0``; ``sinks``
    float32 ``[q_heads]`` adds ``exp(sink)`` to the denominator. ``keys`` and ``values`` None: only the
    pages. Call it before `encode` of the same tokens.

    Returns ``out`` of query's shape and dtype, and ``lse`` float32 ``[tokens, q_heads]``, the natural
    logarithm of the denominator. A query that sees nothing gets zeros and ``-inf``.

    ``workspace`` uint8 ``[attend_workspace_bytes(...) or more]``, written. On CUDA zero it once: every call
    leaves it ready for the next on the same stream; calls that may run at once need one each, or may never
    end. None: made for this call, which on CUDA costs a memset. ``settled`` (CUDA): True promises that all but
    query, keys and values was complete before the stream's previous kernel began, ``token_starts``, ``starts`` and
    ``recent_starts`` too; `attend` may then read it while that kernel runs. A settled `encode` counts as a
    part of the kernel before it. ``most_tokens``: no sequence has more of the call's tokens, 0: not known. A CUDA
    call of many short sequences is then one launch, as no long one has to be looked for.
    """
    return _call(
        _ops.attend.default, query, keys, values, token_starts, pages, page_table, lengths, starts, fringe,
        recent_starts, query_signs, value_signs, base, sinks, k_bits, v_bits, fringe_first, scale, softcap,
        window, settled, workspace, most_tokens,
    )  # fmt: skip


def attend_encode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    token_starts: Tensor,
    pages: Tensor,
    page_table: Tensor,
    lengths: Tensor,
    starts: Tensor | None,
    fringe: Tensor | None,
    recent_starts: Tensor | None,
    key_signs: Tensor,
    query_signs: Tensor,
    value_signs: Tensor,
    base: Tensor | None,
    sinks: Tensor | None,
    k_bits: int,
    v_bits: int,
    fringe_first: int,
    scale: float,
    softcap: float = 0.0,
    window: int = 0,
    settled: bool = False,
    workspace: Tensor | None = None,
    key_metric: Tensor | None = None,
) -> Tensor:
    """A step of decoding in one call: `attend`'s ``out``, then `encode` of the same keys and values.

    ``query``, ``keys`` and ``values`` are as models have them, ``[sequences, heads, tokens, head_dim]``, so all sequences
    bring as many tokens; where that is more than one, sequences follow one another at the stride of tokens (transposed
    ``[sequences, tokens, heads, head_dim]``). Returns ``out`` as ``[sequences, tokens, q_heads, head_dim]``, contiguous. The other
    arguments as there; ``lengths`` stays as it is. ``settled`` (CUDA) is `attend`'s, ``key_metric`` `encode`'s.
    """
    return _call(
        _ops.attend_encode.default, query, keys, values, token_starts, pages, page_table, lengths, starts, fringe,
        recent_starts, key_signs, query_signs, value_signs, base, sinks, k_bits, v_bits, fringe_first, scale,
        softcap, window, settled, workspace, key_metric,
    )  # fmt: skip


def prepare_attend_encode(*arguments: Any) -> Tensor:
    """`attend_encode`'s arguments, checked as there and kept for `attend_encode_prepared`; nothing runs. ``workspace`` is needed.

    Returns uint8 on the CPU. It holds addresses: it is of use as long as all the tensors live where they are, and only in this
    process.
    """
    return _call(_ops.prepare_attend_encode.default, *arguments)


def attend_encode_prepared(query: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, state: Tensor) -> Tensor:
    """`attend_encode` of one more step: all arguments but these are those that ``state`` was made of, and are not checked again.

    A layer's step has some twenty arguments, of which these change; handing over all of them takes the host longer than to
    launch the kernels.
    """
    return _call(_ops.attend_encode_prepared.default, query, keys, values, lengths, state)


@torch.compiler.assume_constant_result
def attend_workspace_bytes(
    head_dim: int,
    k_bits: int,
    v_bits: int,
    kv_heads: int,
    q_heads: int,
    sequences: int,
    tokens: int,
    device: torch.device | str = "cpu",
) -> int:
    """Bytes of `attend`'s workspace for calls of at most ``tokens`` query rows in all, whatever the lengths."""
    device = torch.device(device)
    index = -1
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
    return _call(
        _ops.attend_workspace_bytes.default, head_dim, k_bits, v_bits, kv_heads, q_heads, sequences, tokens, index
    )


@torch.compiler.assume_constant_result
def page_bytes(head_dim: int, k_bits: int, v_bits: int) -> int:
    """Bytes of one page of one KV head: 64 tokens, K and V. ``head_dim`` a multiple of 16 from 32 to 512,
    bits 2, 3 or 4; else ``ValueError``."""
    return _call(_ops.page_bytes.default, head_dim, k_bits, v_bits)


def random_signs(dim: int, seed: int) -> Tensor:
    """``dim`` signs of +-1, float32 on the CPU: the same for a seed on every machine."""
    return _call(_ops.random_signs.default, dim, seed)


def hadamard_base(head_dim: int) -> Tensor:
    """The base matrix of head_dim's Hadamard rotation, float32 ``[m, m]`` on the CPU; ``[[1]]`` where
    ``head_dim`` is a power of two. ``NotImplementedError`` where there is no such rotation."""
    return _call(_ops.hadamard_base.default, head_dim)


@torch.compiler.assume_constant_result
def hadamard_base_size(head_dim: int) -> int:
    """``m`` of `hadamard_base`; 1: pass ``base=None``."""
    return _call(_ops.hadamard_base_size.default, head_dim)


@torch.compiler.assume_constant_result
def version() -> str:
    """Of the C++ library that is loaded, "0.1.0"."""
    return _ops.version.default()
