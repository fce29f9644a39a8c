# SPDX-License-Identifier: Apache-2.0
"""What the installed package promises before any operator runs."""

import importlib.metadata
import re
import subprocess
from pathlib import Path

import turboquant
from turboquant._library import CPU_LIBRARY

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


def test_the_library_needs_no_cpp_symbol_of_torch():
    # C++ symbols change from release to release; the stable ABI is C.
    symbols = subprocess.run(
        ["nm", "--dynamic", "--undefined-only", "--demangle", CPU_LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    assert "aoti_torch" in symbols or "torch_" in symbols
    assert not re.findall(r".*\b(?:torch|at|c10)::.*", symbols)


def test_the_library_exports_none_of_our_symbols():
    # Another library in the process may hold turboquant too, in another version.
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", "--demangle", CPU_LIBRARY], check=True, capture_output=True, text=True
    ).stdout
    assert "turboquant::" not in symbols


def test_the_wheel_is_for_every_python_3():
    (wheel,) = [f for f in importlib.metadata.files("turboquant") if f.name == "WHEEL"]
    assert "Tag: py3-none-" in wheel.read_text()
