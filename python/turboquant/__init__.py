# SPDX-License-Identifier: Apache-2.0
"""A KV cache of 2 to 4 bits a number, attended where it lies."""

import torch

from . import _library  # noqa: F401  registers torch.ops.turboquant

__version__ = torch.ops.turboquant.version()
__all__ = ["__version__"]
