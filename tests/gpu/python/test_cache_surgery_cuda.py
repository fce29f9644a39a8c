# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_cache_surgery.py, its tensors on the GPU (conftest.py)."""

from test_cache_surgery import *  # noqa: F403
