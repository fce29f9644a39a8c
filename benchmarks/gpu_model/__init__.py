# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/model_gpu.py is made of: a whole model's steps with our caches and with transformers' own.
rows.py says what is measured, and which value would be good."""
