# SPDX-License-Identifier: Apache-2.0
"""What all measurements of a run share."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    quick: bool = False  # fewer repetitions
    copy_gb_s: float = 1000.0  # read and write counted, measured in the same run
    inductor: dict[str, bool] = field(default_factory=dict)  # options of torch._inductor.config for compiled rows, of both arms
