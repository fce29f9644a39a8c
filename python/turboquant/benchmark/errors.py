# SPDX-License-Identifier: Apache-2.0


class BenchmarkError(Exception):
    """Something the caller can put right. The message names the value and the remedy; the command line prints it and exits 2."""
