#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/format.sh [--check]   clang-format (the one version of requirements/dev.txt) on every C++ file.
set -euo pipefail
cd "$(dirname "$0")/.."
how=(-i)
[[ ${1:-} != --check ]] || how=(--dry-run --Werror)
find include src bindings tools tests benchmarks examples -type f \( -name '*.h' -o -name '*.cc' -o -name '*.cu' -o -name '*.cuh' \) \
  -print0 2>/dev/null | xargs -0 -r -n 16 -P "$(nproc)" .venv/bin/clang-format "${how[@]}" || {
  echo "format: run 'make format'" >&2
  exit 1
}
