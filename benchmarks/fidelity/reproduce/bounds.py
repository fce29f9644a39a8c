# SPDX-License-Identifier: Apache-2.0
"""The paper's bounds (arXiv 2504.19874, theorems 1 to 3) at b bits a coordinate, of unit vectors."""

from __future__ import annotations

import math


def error(bits: int) -> tuple[float, float]:
    """Of E|x - x^|^2: Shannon's, and MSE's."""
    return 4.0**-bits, math.sqrt(3) * math.pi / 2 * 4.0**-bits


def inner_product(bits: int) -> tuple[float, float]:
    """Of d E[(<x,y> - <x^,y>)^2]: any quantiser's, and Prod's."""
    return 4.0**-bits, math.sqrt(3) * math.pi**2 * 4.0**-bits
