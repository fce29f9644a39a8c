# SPDX-License-Identifier: Apache-2.0
"""The device that test bodies run on: the CPU here, the GPU where tests/gpu/python runs the same bodies."""

DEVICE = "cpu"
