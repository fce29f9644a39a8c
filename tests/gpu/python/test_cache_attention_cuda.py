# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_cache_attention.py, its tensors on the GPU (conftest.py)."""

from test_cache_attention import *  # noqa: F403
