# SPDX-License-Identifier: Apache-2.0
"""python -m turboquant.benchmark on the device, with a random model: what it measures there and nowhere else."""

import json

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import LlamaConfig

pytest.importorskip("rich", reason="the benchmark's own packages are not installed: pip install 'turboquant[benchmark]'")
pytest.importorskip("psutil", reason="the benchmark's own packages are not installed: pip install 'turboquant[benchmark]'")

from turboquant.benchmark.cli import main  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    LlamaConfig(
        hidden_size=512, intermediate_size=1024, num_hidden_layers=2, num_attention_heads=8, num_key_value_heads=2, head_dim=128, vocab_size=1024,
        max_position_embeddings=1 << 20, bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
    ).save_pretrained(folder / "small-llama")  # fmt: skip
    return folder


def run(folder, *options) -> dict:
    report = folder / "report.json"
    arguments = ["--model", folder / "small-llama", "--random-weights", "--random-prompt", "2000", "--device", "cuda", "--json", report]
    assert main([str(a) for a in (*arguments, *options)]) == 0
    return json.loads(report.read_text())


def test_both_of_torchs_attentions_are_tried_and_bytes_are_the_allocators(folder):
    found = run(folder, "--max-new-tokens", "16")
    tried = found["baseline"]["tried_s"]
    assert set(tried) == {"default", "flash"} and tried[found["baseline"]["attention"]] == min(tried.values())
    held = found["memory"]
    assert held["cached_tokens"] == 2015 and held["baseline_as_run"] == 2015 * 2 * 2 * 2 * 128 * 2
    for key, bytes_held in (("baseline", held["baseline_as_run"]), ("turboquant", held["turboquant"])):
        assert bytes_held <= held[f"{key}_released"] <= held[f"{key}_peak"]
    assert found["kl"]["mean"] is not None and found["fidelity"]["continuation"]["positions"] == 15


def test_a_longest_context_is_found_for_both_caches(folder):
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - (2 << 30), dtype=torch.uint8, device="cuda")  # 2 GiB are left
    found = run(folder, "--max-new-tokens", "4", "--chunk", "0", "--repeats", "1", "--longest")["longest_context"]
    del ballast
    # A token of keys and values takes 2 KiB in 16 bits, and no more than 17/64 of that as codes and scales.
    assert 0 < found["baseline"] * 2048 < 2 << 30 and 3 * found["baseline"] < found["turboquant"] < (2 << 30) / (2048 * 17 / 64)


def test_steps_of_fixed_capacity_are_compiled_by_generate_once_for_each_cache(folder):
    torch._dynamo.reset()
    counters.clear()
    found = run(folder, "--max-new-tokens", "16", "--chunk", "0", "--static")
    assert found["baseline"]["cache"] == "StaticCache" and found["speed"]["turboquant"]["steps"] > 0
    assert found["fidelity"]["continuation"]["positions"] == 15
    assert counters["stats"]["unique_graphs"] == 2
