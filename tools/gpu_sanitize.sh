#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/gpu_sanitize.sh PROGRAM [TOOL...]   runs PROGRAM (the GPU tests) under compute-sanitizer's tools, each over
# the tests of FILTER, which meet every kernel with shapes small enough for a tool that slows kernels a hundredfold.
set -euo pipefail
program=$1
shift
tools=("$@")
(( ${#tools[@]} )) || tools=(memcheck racecheck initcheck synccheck)
FILTER=${FILTER:-Rotate.*:Balance.*:KeyMetric.Reads*:Encode.KeepsNan*:Encode.*LeftPadding:Encode.*EveryDType:Encode.*RaggedBatches:Encode.*PrefillsWith*:Decode.*Alone:Decode.*EveryHeadDim:Sanitizer.*}
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
for tool in "${tools[@]}"; do
  echo "compute-sanitizer --tool $tool"
  more=()
  # More mbarriers than it follows by default: 16 a block.
  [[ $tool != synccheck ]] || more=(--num-cuda-barriers 65536)
  "$sanitizer" --tool "$tool" "${more[@]}" --error-exitcode 1 --print-limit 20 "$program" --gtest_brief=1 --gtest_filter="$FILTER"
done
