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
    """Within it a GGUF file that was read is not read again (it must not change meanwhile), and no bar is drawn beside ours."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader

    with contextlib.ExitStack() as stack:
        for module, name, other in (
            (gguf, "GGUFReader", functools.cache(gguf.GGUFReader)),
            (gguf, "get_tensor_name_map", functools.cache(gguf.get_tensor_name_map)),
            (loader, "tqdm", lambda tensors, **_: tensors),
        ):
            stack.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, other)
        yield
