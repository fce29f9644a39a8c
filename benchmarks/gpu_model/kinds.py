# SPDX-License-Identifier: Apache-2.0
"""Which measurement a row's kind stands for: (model, row, run) -> its part of the report."""

from . import compiled, eager, first_token, host, longest, memory, quantized

MEASURES = {
    "eager": eager.measure, "compiled": compiled.measure, "joined": compiled.measure_joined, "host": host.measure, "first token": first_token.measure, "memory": memory.measure,
    "longest": longest.measure, "quantized": quantized.measure,
}  # fmt: skip
