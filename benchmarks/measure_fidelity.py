#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a compressed cache costs a model, measured: see fidelity/__init__.py."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from fidelity.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
