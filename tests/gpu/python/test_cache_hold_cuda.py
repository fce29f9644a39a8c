# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_cache_hold.py, its tensors on the GPU (conftest.py)."""

from test_cache_hold import *  # noqa: F403
