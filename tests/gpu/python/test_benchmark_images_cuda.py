# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_benchmark_images.py, its model on the GPU (conftest.py)."""

import pytest

for package in ("PIL", "rich", "psutil"):
    pytest.importorskip(package, reason="the benchmark's own packages are not installed: pip install 'turboquant[benchmark]'")

from test_benchmark_images import *  # noqa: E402, F403
