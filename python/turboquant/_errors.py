# SPDX-License-Identifier: Apache-2.0
"""Exceptions of the right class: torch's stable ABI carries only RuntimeError."""

from collections.abc import Callable
from typing import Any

import torch

# What bindings/torch/check.h puts before a message.
_CLASSES: dict[str, type[Exception]] = {
    "turboquant: invalid argument: ": ValueError,
    "turboquant: unsupported: ": NotImplementedError,
    "turboquant: device: ": RuntimeError,
}


def translated(error: RuntimeError) -> Exception:
    """The error that the library meant, or `error` itself where it is one of torch."""
    text = str(error)
    for prefix, kind in _CLASSES.items():
        before, found, message = text.partition(prefix)
        if found:
            return kind(message)
    return error


def call(op: Callable[..., Any], *args: Any) -> Any:
    """op(*args), raising ValueError, NotImplementedError or RuntimeError.

    While torch.compile traces, the operator alone: a graph cannot change the class of an exception.
    """
    if torch.compiler.is_compiling():
        return op(*args)
    try:
        return op(*args)
    except RuntimeError as error:
        meant = translated(error)
        if meant is error:
            raise
    raise meant
