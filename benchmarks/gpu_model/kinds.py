# SPDX-License-Identifier: Apache-2.0
"""Which measurement a row's kind stands for: (model, row, quick) -> its part of the report."""

from . import eager, host

MEASURES = {"eager": eager.measure, "host": host.measure}
