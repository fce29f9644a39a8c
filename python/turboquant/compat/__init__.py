# SPDX-License-Identifier: Apache-2.0
"""The names of the package turboquant-vllm, with this library behind them.

Where the behaviour differs, it is on purpose:

* `CompressedDynamicCache` keeps no 16-bit copy beside the codes, packs 2, 3 and 4 bits for real, and counts every byte
  that it holds. `disable` and `restore` leave the cache with dense tensors of what the codes say.
* Codebooks are those of the exact coordinate law, whatever `use_exact` says.
* `TurboQuantProd.dequantize` includes the correction of the residual; the estimate of inner products is unbiased.
* A vector of norm 0 decodes to 0; NaN and infinity stay in their own vector.
"""

from typing import Any

from .compressors import (
    CompressedKeys,
    CompressedValues,
    TurboQuantCompressorMSE,
    TurboQuantCompressorV2,
)
from .quantizers import LloydMaxCodebook, TurboQuantMSE, TurboQuantProd, solve_lloyd_max

__all__ = [
    "CompressedDynamicCache",
    "CompressedKeys",
    "CompressedValues",
    "LloydMaxCodebook",
    "TurboQuantCompressorMSE",
    "TurboQuantCompressorV2",
    "TurboQuantKVCache",
    "TurboQuantMSE",
    "TurboQuantProd",
    "solve_lloyd_max",
]


def __getattr__(name: str) -> Any:
    # The caches need transformers, the quantisers do not.
    if name not in ("CompressedDynamicCache", "TurboQuantKVCache"):
        raise AttributeError(f"module 'turboquant.compat' has no attribute {name!r}")
    from . import caches

    return getattr(caches, name)
