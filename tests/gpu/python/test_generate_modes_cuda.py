# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_generate_modes.py, its tensors on the GPU (conftest.py)."""

from test_generate_modes import *  # noqa: F403
