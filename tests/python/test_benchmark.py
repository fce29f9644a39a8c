# SPDX-License-Identifier: Apache-2.0
"""python -m turboquant.benchmark, from the command line to its files, on random models."""

import json
import subprocess
import sys

import pytest
import torch
from tiny_models import prompt, tiny_model

from turboquant.benchmark import arms, generation, memory
from turboquant.benchmark.cli import main
from turboquant.benchmark.inputs import TEXTS, demo_prompt, shipped_text

NUMBER = (int, float)
SCHEMA = {
    "schema": int,
    "model": {"name": str, "type": str, "parameters": int, "layers": int, "q_heads": int, "kv_heads": int, "head_dim": int, "dtype": str},
    "setting": {"k_bits": int, "v_bits": int, "fringe": list, "balance": bool},
    "prompt_tokens": int,
    "new_tokens": {"baseline": int, "turboquant": int},
    "repeats": int,
    "seed": int,
    "cache_bytes": {"baseline": int, "turboquant": int},
    "ratio": NUMBER,
    "memory": {"baseline_16_bit": int, "baseline_as_run": int, "turboquant": int, "cached_tokens": int, "baseline_peak": NUMBER, "turboquant_peak": NUMBER},
    "baseline": {"cache": str, "attention": str, "tried_s": dict},
    "tokens_per_s": {"baseline": NUMBER, "turboquant": NUMBER},
    "time_to_first_token_s": {"baseline": NUMBER, "turboquant": NUMBER},
    "kl": {"mean": NUMBER, "median": NUMBER, "p99": NUMBER, "p999": NUMBER, "max": NUMBER},
    "top1": NUMBER,
    "fidelity": {"text": {"positions": int, "kl": dict, "top1": NUMBER}, "continuation": {"positions": int, "kl": dict, "top1": NUMBER}},
    "device": {"type": str, "name": str},
    "commit": str,
    "flags": list,
    "threads": int,
    "versions": {"python": str, "turboquant": str, "torch": str, "transformers": str},
}


def check_schema(value, schema, path="report"):
    if isinstance(schema, dict):
        for key, part in schema.items():
            assert key in value, f"{path} has no {key}"
            check_schema(value[key], part, f"{path}.{key}")
    else:
        assert isinstance(value, schema), f"{path} is {value!r}"


@pytest.fixture(scope="module")
def config_directory(tmp_path_factory):
    """A config alone: the command draws its weights."""
    directory = tmp_path_factory.mktemp("models") / "tiny-llama"
    tiny_model("llama").config.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def finished(config_directory, tmp_path_factory):
    """One run of the command: its output, report and plot."""
    out = tmp_path_factory.mktemp("out")
    command = [
        sys.executable, "-P", "-m", "turboquant.benchmark", "--model", config_directory, "--random-weights", "--random-prompt", "150",
        "--max-new-tokens", "20", "--k-bits", "3", "--v-bits", "2", "--fringe", "1,7", "--chunk", "16", "--threads", "1", "--device", "cpu",
        "--commit", "1f", "--json", out / "report.json", "--plot", out / "plot.png",
    ]  # fmt: skip
    run = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    return run, json.loads((out / "report.json").read_text()), (out / "plot.png").read_bytes()


def test_the_report_has_every_documented_key(finished):
    _, report, _ = finished
    check_schema(report, SCHEMA)
    assert report["setting"] == {"k_bits": 3, "v_bits": 2, "fringe": [1, 7], "balance": True, "static": False}
    assert report["baseline"] == {"cache": "DynamicCache", "attention": "default", "tried_s": {}} and report["longest_context"] is None
    assert report["commit"] == "1f" and report["flags"][-2] == "--plot"
    assert report["versions"]["torch"] == torch.__version__ and report["threads"] == 1


def test_the_baseline_is_quoted_in_16_bits_though_the_model_runs_in_fp32(finished):
    _, report, _ = finished
    tokens = 150 + 20 - 1  # the last token is never fed
    in_16_bits = tokens * 2 * 2 * 2 * 32 * 2  # layers, K and V, KV heads, head_dim, bytes
    assert report["memory"]["cached_tokens"] == tokens
    assert report["cache_bytes"]["baseline"] == in_16_bits
    assert report["memory"]["baseline_as_run"] == 2 * in_16_bits
    assert report["ratio"] == pytest.approx(in_16_bits / report["cache_bytes"]["turboquant"])


def test_text_and_continuation_are_measured_where_the_compressed_cache_is_read(finished):
    _, report, _ = finished
    assert report["fidelity"]["text"]["positions"] == 75  # the prompt's second half
    assert report["fidelity"]["continuation"]["positions"] == 19  # all but the first, which the prefill gives
    assert report["kl"]["mean"] > 1e-6 and report["kl"]["p99"] <= report["kl"]["p999"] <= report["kl"]["max"]
    assert report["baseline_repeatable"]


def test_the_plot_is_a_png(finished):
    _, _, plot = finished
    assert plot[:8] == b"\x89PNG\r\n\x1a\n" and plot[-8:-4] == b"IEND"


def test_without_a_terminal_the_output_is_plain_text(finished):
    run, _, _ = finished
    assert "\x1b" not in run.stdout + run.stderr and "\r" not in run.stderr
    for line in ("tokens/s", "first differing token", "KL to DynamicCache", "DynamicCache answers", "TurboQuantCache answers"):
        assert line in run.stdout
    assert "DynamicCache answers again: " in run.stderr


def test_the_bytes_counted_are_those_the_cache_says_it_holds():
    model = tiny_model("llama")
    arm = arms.turboquant_arm(model, arms.Setting())
    done = generation.generate(model, prompt(tokens=100), arm, 5)
    assert memory.held_bytes(done.cache) == done.cache.nbytes
    assert memory.baseline_bytes(arms.baseline_arm(model).make_cache(0)) == 0


def test_a_shared_storage_is_counted_once_and_in_full():
    base = torch.zeros(1000)
    assert memory.held_bytes([base, base[:10], {"again": base.view(10, 100)}]) == 4000
    assert memory.held_bytes((base,), element_bytes=2) == 2000
    assert memory.held_bytes([torch.zeros(8, dtype=torch.int64)], element_bytes=2) == 64  # not a floating-point tensor


def test_dropping_a_tensor_is_seen_in_the_process_memory():
    held = [torch.ones(16 * 1024 * 1024)]
    released = memory.released_bytes(held.clear, torch.device("cpu"))
    assert released is None or abs(released - 64 * 1024 * 1024) < 8 * 1024 * 1024


def test_the_model_attends_as_before_once_the_runs_are_over():
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with arms.turboquant_arm(model, arms.Setting()).attention():
        assert model.config._attn_implementation == "turboquant"
    assert model.config._attn_implementation == before


def test_forced_tokens_are_what_comes_out():
    model = tiny_model("llama")
    forced = [5, 9, 5, 77]
    done = generation.generate(model, prompt(tokens=30), arms.baseline_arm(model), 4, forced=forced, keep_logits=True)
    assert done.tokens == forced and done.logits.shape == (4, 128)
    assert len(done.times.steps) == 3
    free = generation.generate(model, prompt(tokens=30), arms.baseline_arm(model), 1, keep_logits=True)
    torch.testing.assert_close(free.logits[0], done.logits[0])  # as the model gave them, not as forced


def failure(capsys, *arguments) -> str:
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stopped:  # argparse
        code = stopped.code
    assert code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--model", "no/such/model"], ["'no/such/model' does not exist", "config.json"]),
        (["--model", __file__], ["not a .gguf", "config.json"]),
        (["--demo", "--k-bits", "5"], ["--k-bits", "'5'", "2, 3 or 4"]),
        (["--demo", "--v-bits", "1"], ["--v-bits", "'1'", "2, 3 or 4"]),
        (["--demo", "--fringe", "4"], ["--fringe", "'4'", "4,28"]),
        (["--demo", "--fringe=-1,3"], ["--fringe", "'-1,3'"]),
        (["--demo", "--max-new-tokens", "0"], ["--max-new-tokens", "'0'"]),
        (["--demo", "--device", "tpu7"], ["--device", "tpu7"]),
        (["--demo", "--model", "x"], ["not allowed with"]),
        ([], ["--model", "--demo"]),
        (["--demo", "--json", "no/such/folder/report.json"], ["no/such/folder", "does not exist"]),
    ],
)
def test_bad_arguments_get_their_value_and_a_remedy(capsys, arguments, expected):
    message = failure(capsys, *arguments)
    assert all(part in message for part in expected), message


def test_a_directory_with_several_gguf_files_asks_which(capsys, tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    message = failure(capsys, "--model", tmp_path)
    assert "--gguf-file: a.gguf, b.gguf" in message
    assert "GGUF files there: a.gguf, b.gguf" in failure(capsys, "--model", tmp_path, "--gguf-file", "c.gguf")


def test_an_empty_directory_is_named(capsys, tmp_path):
    assert "neither a config.json nor a .gguf" in failure(capsys, "--model", tmp_path)


def test_a_text_only_model_refuses_images_and_videos(capsys, config_directory):
    for option in ("--image", "--video"):
        message = failure(capsys, "--model", config_directory, "--random-weights", option, "cat.png")
        assert "text-only" in message


def test_a_model_without_a_tokenizer_wants_random_tokens(capsys, config_directory):
    assert "--random-prompt" in failure(capsys, "--model", config_directory, "--random-weights", "--prompt", "hello")


def test_a_prompt_beyond_the_models_positions_is_refused(capsys, config_directory):
    message = failure(capsys, "--model", config_directory, "--random-weights", "--random-prompt", "500")
    assert "512 positions" in message


def test_a_prompt_file_that_is_missing_is_named(capsys, config_directory):
    assert "cannot read 'nowhere.txt'" in failure(capsys, "--model", config_directory, "--random-weights", "--prompt-file", "nowhere.txt")


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--model --gguf-file --demo --random-weights --dtype --device --threads --prompt --prompt-file --random-prompt --image --video "
        "--max-new-tokens --seed --k-bits --v-bits --fringe --balance --no-balance --static --baseline-attention --longest --repeats --text-file --text-prefix --chunk --json --commit --plot"
    ).split():
        assert option in text


def test_the_shipped_texts_are_long_enough_to_measure_on():
    assert len(demo_prompt().split()) > 1400
    for name in TEXTS:
        assert len(shipped_text(name).split()) > 900, name
