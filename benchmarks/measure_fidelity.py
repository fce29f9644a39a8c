#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a compressed cache costs a model, measured: see fidelity/__init__.py."""

from fidelity.cli import main

if __name__ == "__main__":
    main()
