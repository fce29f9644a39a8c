# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/attend_gpu.py is made of. rows.py says what is measured, and which time would be good."""
