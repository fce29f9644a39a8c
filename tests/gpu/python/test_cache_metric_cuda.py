# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_cache_metric.py, its caches on the GPU (conftest.py)."""

from test_cache_metric import *  # noqa: F403
