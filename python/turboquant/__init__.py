# SPDX-License-Identifier: Apache-2.0
"""A KV cache of 2 to 4 bits a number, attended where it lies."""

import importlib

from . import ops

__version__ = ops.version()
# The names of the package turboquant-vllm.
_COMPAT = (
    "CompressedDynamicCache",
    "LloydMaxCodebook",
    "TurboQuantCompressorMSE",
    "TurboQuantCompressorV2",
    "TurboQuantKVCache",
    "TurboQuantMSE",
    "TurboQuantProd",
    "solve_lloyd_max",
)
# Loaded when first asked for: the caches need transformers, operators and quantisers do not.
_LAZY = {"TurboQuantCache": ".cache", "TurboQuantStaticCache": ".static_cache", "enable": ".attention", "join_projections": ".projections"} | dict.fromkeys(_COMPAT, ".compat")
__all__ = ["__version__", "ops", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'turboquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name], __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
