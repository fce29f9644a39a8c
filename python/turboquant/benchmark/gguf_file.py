# SPDX-License-Identifier: Apache-2.0
"""Loading a GGUF file in reasonable time.

transformers parses the whole file anew for the configuration, the weights and the tokenizer (five times in all), and makes the table
of tensor names anew for each module of the model. Both are the same each time, and most of what loading takes.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it a GGUF file that was read is not read again; it must not change meanwhile."""
    import gguf

    kept = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader, gguf.get_tensor_name_map = (functools.cache(make) for make in kept)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = kept
