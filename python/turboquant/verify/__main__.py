# SPDX-License-Identifier: Apache-2.0
import sys

from turboquant.verify.cli import main

sys.exit(main())
