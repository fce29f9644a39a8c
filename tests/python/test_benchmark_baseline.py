# SPDX-License-Identifier: Apache-2.0
"""What the benchmark compares with: the faster of torch's attention backends on a GPU; peaks of memory; what needs a GPU."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from test_benchmark import failure
from tiny_models import prompt, tiny_model

from turboquant.benchmark import arms, baseline, generation, memory
from turboquant.benchmark.cli import main
from turboquant.benchmark.metrics import StepTimes
from turboquant.benchmark.progress import Progress

ON_A_GPU = SimpleNamespace(device=torch.device("cuda"), config=None)


@pytest.fixture
def quiet():
    return Progress(Console(file=io.StringIO()))


def run_taking(seconds: dict[str, float | RuntimeError]):
    """Stands for generate: each attention's time a token, or its error."""

    def generate(model, inputs, arm, count):
        taken = seconds["flash" if arm.label.endswith("flash") else "default"]
        if isinstance(taken, RuntimeError):
            raise taken
        return SimpleNamespace(times=StepTimes(1.0, [taken] * count))

    return generate


@pytest.mark.parametrize(
    "seconds, chosen",
    [
        ({"default": 0.105, "flash": 0.036}, "flash"),
        ({"default": 0.02, "flash": 0.036}, "default"),
        ({"default": 0.105, "flash": RuntimeError("No available kernel. Aborting execution.")}, "default"),
    ],
)
def test_on_a_gpu_the_faster_attention_is_the_baseline(seconds, chosen, quiet, monkeypatch):
    monkeypatch.setattr(baseline, "generate", run_taking(seconds))
    arm, words = baseline.choose(ON_A_GPU, {}, static=False, wanted="auto", progress=quiet)
    assert words["attention"] == chosen and arm.label == ("DynamicCache, flash" if chosen == "flash" else "DynamicCache")
    assert words["tried_s"] == {name: None if isinstance(x, RuntimeError) else x for name, x in seconds.items()}


def test_another_error_is_not_taken_for_a_missing_backend(quiet, monkeypatch):
    monkeypatch.setattr(baseline, "generate", run_taking({"default": RuntimeError("device-side assert")}))
    with pytest.raises(RuntimeError, match="device-side"):
        baseline.choose(ON_A_GPU, {}, static=False, wanted="auto", progress=quiet)


@pytest.mark.parametrize(
    "static, wanted, label", [(False, "flash", "DynamicCache, flash"), (False, "default", "DynamicCache"), (True, "auto", "StaticCache")]
)
def test_what_is_named_or_leaves_no_choice_is_not_tried(static, wanted, label, quiet):
    arm, words = baseline.choose(ON_A_GPU, {}, static=static, wanted=wanted, progress=quiet)
    assert arm.label == label and words["tried_s"] == {}


def test_caches_of_fixed_capacity_are_compared_with_their_like(tmp_path, one_thread):
    tiny_model("llama").config.save_pretrained(tmp_path / "tiny-llama")
    report = tmp_path / "report.json"
    arguments = ["--model", tmp_path / "tiny-llama", "--random-weights", "--random-prompt", "60", "--max-new-tokens", "8", "--device", "cpu"]
    assert main([str(a) for a in (*arguments, "--static", "--json", report)]) == 0
    found = json.loads(report.read_text())
    assert found["baseline"] == {"cache": "StaticCache", "attention": "default", "tried_s": {}} and found["setting"]["static"]
    assert found["memory"]["cached_tokens"] == 67 and found["fidelity"]["text"]["positions"] == 30
    # The baseline's room is for the prompt and all tokens, in keys and values of both layers.
    assert found["cache_bytes"]["baseline"] >= 68 * 2 * 2 * 2 * 32 * 2


def test_a_named_backend_serves_generate():
    model = tiny_model("llama")
    runs = [generation.generate(model, prompt(tokens=40), arms.baseline_arm(model, attention=name), 5) for name in ("default", "flash")]
    assert runs[0].tokens == runs[1].tokens


def test_the_peak_is_seen_though_the_memory_is_given_back():
    peak = memory.Peak(torch.device("cpu"))
    torch.ones(32 << 20)  # 128 MB, gone at once
    found = peak.bytes()
    assert found is None or abs(found - (128 << 20)) < 16 << 20


def test_kept_logits_are_no_part_of_a_peak():
    model = tiny_model("llama")
    kept = generation.generate(model, prompt(tokens=30), arms.baseline_arm(model), 2, keep_logits=True)
    assert kept.peak_bytes is None


def test_the_longest_context_needs_a_gpu(capsys):
    assert "--longest needs a GPU" in failure(capsys, "--demo", "--longest", "--device", "cpu")
