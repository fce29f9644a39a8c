# SPDX-License-Identifier: Apache-2.0
"""The whole-model benchmark without a GPU: its rows, its caches, its clocks on a tiny model, its report and table."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from transformers import DynamicCache

import turboquant

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from gpu_model import compiled, eager, fill, first_token, graph_parts, host, kinds, memory, profile, quantized, report, steps, subject  # noqa: E402
from gpu_model import rows as table  # noqa: E402
from gpu_model.run import Run  # noqa: E402

QUICK = Run(quick=True)
ROWS = {row.name: row for row in table.rows()}


def tool(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def model(one_thread):
    with torch.no_grad():
        yield turboquant.enable(tiny_model("llama"))


def tiny(name: str) -> table.Row:
    row = ROWS[name]
    return replace(row, batch=min(row.batch, 2), tokens=min(row.tokens, 150))


# ---- rows


def test_row_names_are_unique_and_every_kind_and_target_is_known():
    assert len(ROWS) == len(table.rows())
    assert {row.kind for row in ROWS.values()} == set(kinds.MEASURES)
    for row in ROWS.values():
        for target in row.targets:
            assert (target.at_least is None) != (target.at_most is None) and target.what in report.WORDS


def test_the_model_has_llama_8bs_shape():
    config = subject.llama_8b()
    shape = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim)
    assert shape == (32, 4096, 32, 8, 128) and config.intermediate_size == 14336 and config.vocab_size == 128256
    with torch.device("meta"):
        model = subject.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    assert sum(p.numel() for p in model.parameters()) == 8_030_261_248
    assert subject.weight_bytes(model) == 2 * (8_030_261_248 - 128256 * 4096)  # a step reads a row a token of the embedding
    assert compiled.page_bytes(model, 8, 11264) == 32 * 8 * 8 * 176 * 8704


def test_another_model_comes_from_its_config(tmp_path):
    tiny_model("qwen3").config.save_pretrained(tmp_path)
    made = subject.random_model(subject.read_config(str(tmp_path)), "cpu", torch.float32)
    assert made.config.model_type == "qwen3" and not made.training


# ---- caches


def test_both_caches_hold_the_same_keys_and_values(model):
    ours, dense = turboquant.TurboQuantCache(model.config), DynamicCache(config=model.config)
    fill.fill_ours(model, ours, 2, 150)
    fill.fill_with_the_same(dense, ours)
    assert ours.get_seq_length() == dense.get_seq_length() == 150
    for layer, other in zip(ours.layers, dense.layers):
        assert layer.pending is None and layer.basis_known
        assert torch.equal(layer.dequantize()[0], other.keys) and torch.equal(layer.dequantize()[1], other.values)


@pytest.mark.parametrize("batch", [1, 8])
def test_a_filled_cache_has_seen_its_metric_s_queries_as_after_a_prompt(model, batch):
    ours = turboquant.TurboQuantCache(model.config)
    fill.fill_ours(model, ours, batch, 1200)
    assert all(layer.basis_known and layer.key_metric is not None and layer.growth is None for layer in ours.layers)


def test_a_row_s_arms_agree_before_they_are_timed(model):
    found = eager.measure(model, tiny("eager step, 8 x 11,264"), QUICK)
    assert found["error"] < 1e-5 and found["sdpa_error"] == 0  # fp32, and one SDPA on a CPU
    assert set(found["ms"]) == {"default", "flash", "turboquant"} and found["baseline"] in eager.BASELINES
    assert found["ratio"]["count"] == 8 and found["speedup"] == found["ratio"]["median"]
    assert found["ms"]["turboquant"]["count"] == found["ms"][found["baseline"]]["count"] == 8


def test_a_cache_with_other_contents_does_not_agree(model):
    arms = eager.decoders(model, 1, 150)
    for layer in arms["flash"].cache.layers:
        layer.keys += 0.5 * torch.randn_like(layer.keys)
    assert not eager.check(arms)["right"]


def test_the_attention_is_the_arm_s(model):
    for arm, expected in steps.ATTENTIONS.items():
        with steps.attention(model, arm):
            assert model.config._attn_implementation == expected


# ---- the other measurements, on a tiny model


def test_host_time_is_of_update_and_attention_alone(model):
    found = host.measure(model, tiny("host, update + attention"), QUICK)
    assert found["us"]["flash"]["count"] == 50 and found["host_share"] > 0


def test_a_first_token_comes_from_a_real_prefill(model):
    found = first_token.measure(model, tiny("first token, 8 x 8,192"), QUICK)
    assert found["same_first_tokens"] and found["ms"]["turboquant"]["count"] == 2


def test_bytes_are_not_counted_without_a_gpu(model):
    found = memory.measure(model, tiny("bytes, 8 x 8,192"), QUICK)
    assert set(found) == {"bytes"} and found["bytes"]["turboquant"]["nbytes"] > 0
    assert report.complete(ROWS["bytes, 8 x 8,192"], found)["targets"][0]["met"] is None


def test_compiled_arms_run_in_turn(model, monkeypatch):
    """Without the compiler, which takes a minute here; the GPU tests have it."""
    monkeypatch.setattr(torch, "compile", lambda forward, **options: forward)
    found = compiled.measure(model, tiny("compiled step, 8 x 11,264"), QUICK)
    assert set(found["ms"]) == {"static", "turboquant"} and found["over_floor"] > 1
    assert found["error"] < 1e-5 and found["bare_ms"] > 0  # fp32
    assert found["speedup"] == found["ratio"]["median"] and found["waited_ms"]["static"]["count"] == 8
    bytes_read = subject.weight_bytes(model) + compiled.page_bytes(model, 2, 150)
    assert found["floor_ms"] == pytest.approx(bytes_read / 1e9, rel=1e-9)  # at 1000 GB/s
    joined = kinds.MEASURES["joined"](model, tiny("compiled step, 8 x 11,264"), replace(QUICK, inductor={"max_autotune_gemm": True}))
    assert joined["joined"] and joined["inductor"] == ["combo_kernels", "max_autotune_gemm", "triton.enable_pdl"] and joined["error"] < 1e-5 and joined["floor_ms"] == pytest.approx(found["floor_ms"])


def test_transformers_own_quantized_cache_takes_the_same(model, monkeypatch):
    monkeypatch.setattr(quantized, "QuantizedCache", lambda config, **options: DynamicCache(config=config))
    found = quantized.measure(model, tiny("QuantizedCache, 1 x 2,048"), QUICK)
    assert set(found["ms"]) == {"quantized", "turboquant"} and found["speedup"] > 0


def test_codes_unpack_as_optimum_quanto_packs_them():
    """The low bits are the first part's along the first dimension: packed = a | b << 4."""
    codes = torch.randint(16, (6, 5), dtype=torch.uint8)
    assert torch.equal(quantized._unpack(codes[:3] | codes[3:] << 4, 4), codes)
    codes = torch.randint(4, (8, 3), dtype=torch.uint8)
    packed = codes[:2] | codes[2:4] << 2 | codes[4:6] << 4 | codes[6:] << 6
    assert torch.equal(quantized._unpack(packed, 2), codes)


def test_a_profile_has_operators_and_functions_of_both_arms(model):
    text, found = profile.profile(model, 1, 70, lines=3)
    assert "==== flash" in text and "==== turboquant" in text and "tottime" in text and "aten::" in text
    stages = [line for line in text.splitlines() if " ms: step " in line]
    assert len(stages) == 2 and all(f" {what} " in line for line in stages for what in ("host", "update", "attention", "mask", "model"))
    assert set(found["stages_ms"]) == {"flash", "turboquant"} and found["stages_ms"]["flash"]["update"]["count"] == 30


# ---- clocks


def test_arms_are_timed_in_turn_after_a_warm_up():
    seen = []
    times = steps.in_turn({"a": lambda: seen.append("a") or len(seen), "b": lambda: seen.append("b") or len(seen)}, 1, 2)
    assert seen == ["a", "b"] * 3 and times == {"a": [3, 5], "b": [4, 6]}


def test_blocks_take_turns_both_ways_round_and_drop_their_first_value():
    seen = []
    arms = {name: lambda name=name: seen.append(name) or len(seen) for name in "ab"}
    assert steps.in_blocks(arms, 2, 2, lead=1) == {"a": [[2, 3], [11, 12]], "b": [[5, 6], [8, 9]]}
    assert seen == [*"aaabbbbbbaaa"]


def test_what_slows_two_blocks_that_follow_one_another_leaves_their_ratio():
    theirs, ours = [[30, 31, 90], [60, 62, 61], [30, 30, 30]], [[20, 20, 20], [40, 40, 400], [20, 21, 20]]
    assert steps.ratio(theirs, ours) == {"median": 1.525, "p10": 1.505, "p90": 1.545, "count": 3}


def test_a_loop_feeds_each_token_to_the_next_step_and_keeps_its_length(model):
    decoder = eager.decoders(model, 1, 70)["turboquant"]
    assert compiled.loop(decoder, 60) > 0 and decoder.cache.get_seq_length() == 60 + compiled.LOOP
    decoder.cache.crop(60)
    tokens = [torch.full((1, 1), 17)]
    for _ in range(compiled.LOOP):
        tokens.append(model(tokens[-1], past_key_values=decoder.cache).logits[:, -1].argmax(-1, keepdim=True))
    decoder.tokens = tokens[0]
    compiled.loop(decoder, 60)
    assert torch.equal(decoder.tokens, tokens[-1])


def test_a_summary_has_the_median_and_the_tenths():
    assert steps.summary([float(i) for i in range(11)]) == {"median": 5.0, "p10": 1.0, "p90": 9.0, "count": 11}


# ---- the report


def times(ms: float) -> dict:
    return {"median": ms, "p10": ms - 1, "p90": ms + 1, "count": 24}


def a_report() -> dict:
    eager_row, memory_row = ROWS["eager step, 1 x 2,048"], ROWS["bytes, 8 x 8,192"]
    held = {"resident": 1000e6, "prefill_extra": 1010e6, "decode_extra": 1050e6}
    rows = [
        report.complete(eager_row, {"ms": {"default": times(51), "flash": times(20), "turboquant": times(16)}, "baseline": "flash",
                                    "speedup": 1.25, "error": 1e-2, "sdpa_error": 1e-2, "right": True}),
        report.complete(memory_row, {"bytes": {"flash": held, "turboquant": held | {"resident": 270e6}}, "resident_share": 0.27,
                                     "extra_share": 0.36}),
        report.complete(ROWS["longest context"], {"longest": {"flash": 1000, "turboquant": 3600, "turboquant, growing": 3300}, "length_ratio": 3.6}),
        report.complete(ROWS["QuantizedCache, 1 x 2,048"], {"failed": "ImportError: no quanto"}),
    ]  # fmt: skip
    return {"device": "a GPU", "under_load": {}, "copy_gb_s": 2900.0, "torch": "2.11.0", "transformers": "5.17.0", "commit": "abc", "rows": rows}


def test_targets_are_judged_and_failures_named():
    one, two, three, four = a_report()["rows"]
    assert [target["met"] for row in (one, two, three) for target in row["targets"]] == [True, True, False, True]
    assert "1.25, met" in report.line(one) and "0.36, MISSED" in report.line(two) and "3,600 tokens" in report.line(three)
    assert "FAILED: ImportError" in report.line(four)


def test_a_wrong_row_meets_no_target():
    row = report.complete(ROWS["eager step, 1 x 2,048"], a_report()["rows"][0] | {"right": False})
    assert row["targets"][0]["met"] is None and "WRONG" in report.line(row)


def test_a_row_that_fails_is_reported_with_its_message(model, monkeypatch):
    program = tool("benchmarks/model_gpu.py")
    monkeypatch.setitem(kinds.MEASURES, "eager", lambda *_: 1 / 0)
    row = program.measured(model, ROWS["eager step, 1 x 2,048"], QUICK)
    assert row["failed"] == "ZeroDivisionError: division by zero" and row["targets"][0]["met"] is None
    json.dumps(row)


def test_the_table_says_what_was_met_missed_and_not_measured():
    text = tool("tools/model_table.py").section(Path("run.json"), a_report())
    assert "| DynamicCache, flash 20.00 (19.00 to 21.00) ms; DynamicCache 51.0 | 16.00 (15.00 to 17.00) ms | >= 1 x the baseline's speed | 1.25 | met |" in text
    assert "**missed**" in text and "3,600 tokens; growing 3,300" in text and "ImportError: no quanto" in text and "3 of 4 targets met" in text


def test_a_compiled_row_says_its_ratio_s_spread_and_what_a_step_takes_that_is_waited_for():
    row = report.complete(ROWS["compiled step, 1 x 11,264"], {
        "ms": {"static": times(12), "turboquant": times(7)}, "baseline": "static", "speedup": 1.7, "ratio": times(1.7), "floor_ms": 5.1,
        "waited_ms": {"static": times(12.5), "turboquant": times(8)}, "bare_ms": 6.9, "error": 1e-2, "sdpa_error": 1e-2, "right": True,
    })  # fmt: skip
    made = tool("tools/model_table.py")
    text = made.lines(row)[0]
    assert "| StaticCache 12.00 (11.00 to 13.00) ms, each waited for 12.50 | 7.00 (6.00 to 8.00) ms, each waited for 8.00, floor 5.10 (1.37 x), without a history 6.90 |" in text
    assert text.endswith("| 1.70 (0.70 to 2.70) | met |") and "waited for, 8.00" in report.line(row) and "ratio 1.70" in report.line(row)
    assert made.PAIRS in made.section(Path("run.json"), a_report() | {"rows": [row]}) and made.PAIRS not in made.section(Path("run.json"), a_report())


def test_the_readmes_table_has_the_rows_with_targets():
    text = tool("tools/model_table.py").summary(Path("run.json"), a_report())
    assert "| eager step, 1 x 2,048 | 20.0 ms | 16.0 ms | 1.25 x as fast |" in text and "quanto" not in text
    assert "| cache after the prompt, 8 x 8,192 | 1,000 MB | 270 MB | 3.70 x smaller |" in text
    assert "| longest context | 1,000 tokens | 3,600 tokens | 3.60 x as long |" in text and "3 of 4 targets met" in text


def test_docs_transformers_says_what_the_committed_runs_say():
    made = tool("tools/model_table.py")
    assert made.split(made.DOCUMENT.read_text())[1] == made.rendered_in_full(), "run tools/model_table.py"


def test_kernels_of_a_graph_are_summed_by_kind():
    """Those that overlap once: an append runs beside its attention."""
    kernels = [
        ("nvjet_tst_64x8", 100, 140), ("void cublasLt::splitKreduce_kernel<32>", 141, 143), ("triton_poi_fused_mul_silu_5", 143, 145),
        ("void turboquant::few_rows_kernel", 146, 160), ("void turboquant::encode_pages", 150, 163),
    ]  # fmt: skip
    assert graph_parts.parts(kernels) == {
        "us": 63,
        "kinds": {
            "attention": {"kernels": 2, "us": 17}, "matrix products": {"kernels": 2, "us": 42}, "the rest": {"kernels": 1, "us": 2},
        },
        "gaps_us": 2,
    }  # fmt: skip
