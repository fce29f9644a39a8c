# SPDX-License-Identifier: Apache-2.0
"""Formats of other caches, re-stated from their descriptions and sources. Each file says what lies in how many bytes."""
