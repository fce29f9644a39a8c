# SPDX-License-Identifier: Apache-2.0
"""What the installed package promises before any operator runs."""

import importlib.metadata
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import turboquant
from turboquant._library import CPU_LIBRARY, CUDA_LIBRARY

ROOT = Path(__file__).resolve().parents[2]


def test_the_package_under_test_is_the_installed_one():
    assert ROOT / "python" not in Path(turboquant.__file__).parents


def test_the_library_and_the_distribution_have_one_version():
    assert turboquant.__version__ == importlib.metadata.version("turboquant")


def test_the_bindings_include_nothing_of_torch_but_its_stable_api():
    allowed = re.compile(r"torch/(csrc/stable|headeronly)/|torch/csrc/inductor/aoti_torch/c/shim\.h")
    sources = [f for f in (ROOT / "bindings" / "torch").rglob("*") if f.suffix in {".cc", ".h", ".cu", ".cuh"}]
    assert sources
    for source in sources:
        for header in re.findall(r'#\s*include\s*[<"]([^>"]+)[>"]', source.read_text()):
            if re.match(r"(torch|ATen|c10|caffe2|pybind11)/|Python\.h", header):
                assert allowed.match(header), f"{source.name} includes {header}"


LIBRARIES = [library for library in (CPU_LIBRARY, CUDA_LIBRARY) if library.exists()]


def nm(library: Path, *options: str) -> str:
    command = ["nm", "--dynamic", "--demangle", *options, library]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_the_library_needs_no_cpp_symbol_of_torch(library):
    # C++ symbols change from release to release; the stable ABI is C.
    symbols = nm(library, "--undefined-only")
    assert "aoti_torch" in symbols or "torch_" in symbols
    assert not re.findall(r".*\b(?:torch|at|c10)::.*", symbols)


@pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.name)
def test_the_library_exports_none_of_our_symbols(library):
    # Another library in the process may hold turboquant too, in another version.
    symbols = nm(library, "--defined-only")
    assert "turboquant::" not in symbols and "cuda" not in symbols


def needed(library: Path) -> set[str]:
    dynamic = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True).stdout
    return set(re.findall(r"\(NEEDED\).*\[(lib(?:torch|c10|cu)\w*)", dynamic))


def test_the_cpu_library_needs_nothing_of_cuda():
    assert needed(CPU_LIBRARY) == {"libtorch_cpu"}


@pytest.mark.skipif("TQ_CUDA=OFF" in os.environ.get("CMAKE_ARGS", ""), reason="CMAKE_ARGS says so")
def test_the_wheel_has_the_cuda_operators_where_nvcc_is():
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("/usr/local/cuda/bin/nvcc")
    assert CUDA_LIBRARY.exists() == (nvcc is not None)


@pytest.mark.skipif(not CUDA_LIBRARY.exists(), reason="this machine has no nvcc: the wheel is without CUDA")
def test_the_cuda_library_brings_its_own_runtime():
    assert needed(CUDA_LIBRARY) == {"libtorch_cpu", "libtorch_cuda"}


def test_the_wheel_is_for_every_python_3():
    (wheel,) = [f for f in importlib.metadata.files("turboquant") if f.name == "WHEEL"]
    assert "Tag: py3-none-" in wheel.read_text()
