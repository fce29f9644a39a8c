# SPDX-License-Identifier: Apache-2.0
"""The wheel, installed into an environment of its own and used from another directory."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest
import turboquant

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def clean_python(tmp_path_factory):
    """An environment with the wheel in it; torch is borrowed from this one, for downloading it again takes minutes."""
    wheels = list((ROOT / "build" / "wheel-out").glob("turboquant-*.whl"))
    assert len(wheels) == 1, "no wheel in build/wheel-out: run 'make package' first"
    home = tmp_path_factory.mktemp("clean")
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", *wheels],
        check=True,
    )
    (site,) = (home / "lib").glob("python3*/site-packages")
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    # A .pth file appends: what is installed here comes first.
    (site / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    return python


def run(python, cwd, *arguments):
    return subprocess.run([python, *arguments], cwd=cwd, check=True, capture_output=True, text=True).stdout


def test_the_wheel_works_from_another_directory(clean_python, tmp_path):
    program = "import torch, turboquant; print(turboquant.__file__, torch.ops.turboquant.version(), sep='\\n')"
    file, version = run(clean_python, tmp_path, "-c", program).splitlines()
    assert Path(file).is_relative_to(clean_python.parents[1])
    assert version == turboquant.__version__


def test_the_wheel_holds_the_package_and_nothing_else(clean_python, tmp_path):
    program = "import importlib.metadata as m; print(*m.files('turboquant'), sep='\\n')"
    files = run(clean_python, tmp_path, "-c", program).splitlines()
    assert "turboquant/libtq_torch_cpu.so" in files
    strays = [f for f in files if not f.startswith(("turboquant/", f"turboquant-{turboquant.__version__}.dist-info/"))]
    assert not strays
