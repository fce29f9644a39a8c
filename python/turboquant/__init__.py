# SPDX-License-Identifier: Apache-2.0
"""A KV cache of 2 to 4 bits a number, attended where it lies."""

from . import ops

__version__ = ops.version()
__all__ = ["__version__", "ops"]
