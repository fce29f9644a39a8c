# SPDX-License-Identifier: Apache-2.0
"""A KV cache of 2 to 4 bits a number, attended where it lies."""

import importlib

from . import ops

__version__ = ops.version()
__all__ = ["TurboQuantCache", "__version__", "enable", "ops"]

# Loaded when first asked for: these need transformers, the operators do not.
_LAZY = {"TurboQuantCache": ".cache", "enable": ".attention"}


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'turboquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)
