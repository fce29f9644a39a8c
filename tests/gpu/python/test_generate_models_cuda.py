# SPDX-License-Identifier: Apache-2.0
"""tests/python/test_generate_models.py, its tensors on the GPU (conftest.py)."""

from test_generate_models import *  # noqa: F403
