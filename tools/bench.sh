#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/bench.sh BUILD_DIR OUT_DIR   runs every benchmark program of BUILD_DIR; one JSON each in OUT_DIR.
set -euo pipefail
mkdir -p "$2"
for program in "$1"/benchmarks/*; do
  [[ -f $program && -x $program ]] || continue
  "$program" --benchmark_out="$2/$(basename "$program").json" --benchmark_out_format=json
done
