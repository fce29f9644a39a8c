#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Usage: tools/package.sh wheel     builds dist/turboquant-<version>-py3-none-<platform>.whl
#        tools/package.sh install   the same for this machine, into .venv; nothing to do when no input of it has changed
# Builds incrementally in build/wheel, against the torch of .venv. With nvcc the wheel has the CUDA operators too, for the
# architectures that cmake/Cuda.cmake picks; CMAKE_ARGS="-DTQ_CUDA=OFF" leaves them out.
set -euo pipefail
cd "$(dirname "$0")/.."
python=.venv/bin/python
stamp=build/wheel-installed

# Names and contents of everything the wheel is made from, and the environment it lands in.
fingerprint() {
  { find CMakeLists.txt pyproject.toml README.md cmake include src bindings python -type f ! -name '*.pyc' -print0 2>/dev/null |
      sort -z | xargs -0 sha256sum
    cat .venv/.turboquant-setup
    "$python" -c 'import os, sys; print(sys.prefix, *map(os.environ.get, ("CXX", "CXXFLAGS", "CUDACXX", "CMAKE_ARGS")))'
    command -v nvcc /usr/local/cuda/bin/nvcc || true
  } | sha256sum | cut -d' ' -f1
}

installed() { "$python" -P -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("turboquant"))'; }

build_wheel() {
  echo "package: building the wheel"
  mkdir -p build
  rm -rf build/wheel-out
  if ! "$python" -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps --verbose \
      --wheel-dir build/wheel-out . >build/wheel.log 2>&1; then
    tail -n 60 build/wheel.log >&2
    echo "package: the build failed; all of its output is in build/wheel.log" >&2
    exit 1
  fi
}

case ${1:-} in
  wheel)
    build_wheel
    mkdir -p dist
    cp build/wheel-out/*.whl dist/
    ls dist/*.whl
    ;;
  install)
    # Kernels that no GPU here could run are only compiled to see that they compile: 5 minutes less on two cores.
    nvidia-smi -L >/dev/null 2>&1 || export CMAKE_ARGS="-DTQ_CUDA_QUICK=ON ${CMAKE_ARGS:-}"
    now=$(fingerprint)
    if [[ -f $stamp && $(<"$stamp") == "$now" ]] && installed; then exit 0; fi
    rm -f "$stamp"
    build_wheel
    "$python" -m pip install --disable-pip-version-check --quiet --no-deps --force-reinstall build/wheel-out/*.whl
    echo "$now" > "$stamp"
    echo "package: installed $(basename build/wheel-out/*.whl)"
    ;;
  *) echo "usage: tools/package.sh wheel|install" >&2; exit 2 ;;
esac
