# SPDX-License-Identifier: Apache-2.0
"""fp8 e4m3 caches as servers run them by default: a plain cast (scale 1), saturated at 448. d = 64: 128 bytes a token."""

from __future__ import annotations

import torch

from fidelity.codec import Codec, cast


def fp8() -> Codec:
    return cast(torch.float8_e4m3fn)
