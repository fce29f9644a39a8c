# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_benchmark_videos.py, its model on the GPU (conftest.py)."""

import pytest

for package in ("av", "torchvision", "rich", "psutil"):
    pytest.importorskip(package, reason="the benchmark's own packages are not installed: pip install 'turboquant[benchmark]'")

from test_benchmark_videos import *  # noqa: E402, F403
