#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/bench.sh BUILD_DIR OUT_DIR   runs `turboquant bench` and every Google Benchmark program of BUILD_DIR,
# one JSON each in OUT_DIR. layout_simd has a command line of its own: make bench-layout.
set -euo pipefail
mkdir -p "$2"
"$1"/bin/turboquant bench
"$1"/bin/turboquant bench --json >"$2"/turboquant_bench.json
for program in "$1"/benchmarks/*; do
  [[ -f $program && -x $program && $program != */layout_simd ]] || continue
  "$program" --benchmark_out="$2/$(basename "$program").json" --benchmark_out_format=json
done
