# SPDX-License-Identifier: Apache-2.0
"""A/B benchmark: transformers' DynamicCache against TurboQuantCache, on a model of yours.

    python -m turboquant.benchmark --model DIR --prompt-file FILE --json report.json --plot report.png
    python -m turboquant.benchmark --demo

metrics.py says what is computed, generation.py and fidelity.py on which forward passes, memory.py how bytes are counted.
"""
