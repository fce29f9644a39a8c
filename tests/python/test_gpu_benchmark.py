# SPDX-License-Identifier: Apache-2.0
"""The GPU benchmark's own logic, without a GPU: its rows, its bytes, its check, its report, its plot and table."""

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from turboquant import ops

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))

from gpu import baselines, grid, measure, problem, reference, report, timing  # noqa: E402
from gpu import rows as table  # noqa: E402

ROWS = {row.name: row for row in table.rows()}
TINY = table.Row("tiny", (130, 70), q_heads=4, kv_heads=2, head_dim=64)


def tool(path: str):
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tiny_problem(row: table.Row, buffers: int = 2) -> problem.Problem:
    pool = problem.Pool(row, buffers * len(row.lengths) * row.max_pages, "cpu")
    return problem.Problem(row, pool, buffers)


# ---- rows


def test_row_names_are_unique_and_every_target_refers_to_a_row_and_a_known_value():
    assert len(ROWS) == len(table.rows())
    for row in ROWS.values():
        for target in row.targets:
            assert target.of is None or target.of in ROWS
            assert (target.at_least is None) != (target.at_most is None)
            assert target.what in report.VALUES and target.what in report.WORDS


def test_the_table_of_shapes_is_complete():
    batches = {(len(row.lengths), row.lengths[0]) for row in ROWS.values() if not row.fringe and row.queries == 1 and not row.window}
    wanted = {(32, 11264), (8, 11264), (1, 2048), (1, 11264), (1, 32768), (1, 131072), (64, 2048), (128, 1024), (256, 512)}
    assert wanted <= batches
    for name in [f"{count} x {tokens:,}" for count, tokens in wanted] + ["16 of 1,250 to 5,000"]:
        assert replace(ROWS[name], name="", fringe=True, targets=()) == replace(ROWS[f"{name}, fringe"], name="", targets=())
    assert {(row.k_bits, row.v_bits) for row in ROWS.values()} >= {(4, 4), (3, 3), (2, 2), (4, 2), (4, 3), (2, 4), (3, 4)}
    assert {row.head_dim for row in ROWS.values()} == {64, 80, 96, 128, 192, 256}
    assert {(64, 3), (64, 4)} <= {(row.head_dim, row.q_heads // row.kv_heads) for row in ROWS.values()}
    assert {row.q_heads // row.kv_heads for row in ROWS.values() if row.head_dim == 128} >= {1, 2, 4, 7, 8, 16, 32}
    assert {row.queries for row in ROWS.values() if row.verb == "attend"} == {1, 2, 4, 8, 512, 2048}
    assert {row.verb for row in ROWS.values()} == {"attend", "append", "encode"}
    assert any(row.window == 1024 and row.lengths[0] == 32768 for row in ROWS.values())


def test_rows_that_are_held_to_a_share_of_bandwidth_have_enough_pages():
    for row in ROWS.values():
        if any(target.what == "share_of_copy" for target in row.targets) and row.verb == "attend":
            assert table.history_bytes(row) >= table.BIG


def test_unequal_lengths_and_their_equals_have_about_one_total():
    unequal, equal = ROWS["16 of 1,250 to 5,000"].lengths, ROWS["16 equal lengths, the same total"].lengths
    assert all(1250 <= length <= 5000 for length in unequal) and len(unequal) == len(equal) == 16
    assert len(set(equal)) == 1 and 0 <= sum(unequal) - sum(equal) < 16


# ---- bytes


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 192, 256])
@pytest.mark.parametrize("bits", [(4, 4), (3, 2), (2, 3)])
def test_a_page_has_the_bytes_that_the_library_stores(head_dim, bits):
    assert table.page_bytes(head_dim, *bits) == ops.page_bytes(head_dim, *bits)


def test_history_is_what_the_pages_hold():
    row = ROWS["32 x 11,264"]
    assert table.history_bytes(row) == 32 * 176 * 8 * 8704
    made = tiny_problem(replace(TINY, lengths=(128, 128), queries=64), buffers=1)
    assert made.pool.pages[0].numel() * 4 == table.history_bytes(replace(TINY, lengths=(128, 128)))


def test_fringe_tokens_count_in_16_bits_and_a_window_counts_what_it_sees():
    page = table.page_bytes(128, 4, 4) / 64
    one = table.Row("one", (1000,), kv_heads=1, q_heads=1)
    assert table.history_bytes(replace(one, fringe=True)) == (1000 - 32) * page + 32 * 512
    assert table.history_bytes(replace(one, fringe=True, lengths=(20,))) == 20 * 512
    assert table.history_bytes(replace(one, fringe=True, lengths=(2,))) == 2 * 512
    assert table.history_bytes(replace(one, window=100)) == 99 * page
    assert table.history_bytes(replace(one, window=100, fringe=True)) == (99 - 28) * page + 28 * 512


def test_encode_needs_its_vectors_and_its_pages():
    row = ROWS["encode of a prefill, 8 x 8,192"]
    assert table.needed_bytes(row) == 65536 * 8 * (128 * 4 + 136)


# ---- problems and their check


def test_buffers_are_disjoint_pages():
    made = tiny_problem(TINY)
    pages = torch.cat([arguments["page_table"].flatten() for arguments in made.arguments])
    assert len(pages.unique()) == len(pages)


def test_a_pool_that_is_too_small_is_gone_through_again():
    pool = problem.Pool(TINY, 10, "cpu")
    made = problem.Problem(TINY, pool, buffers=4)
    for arguments in made.arguments:
        assert 0 <= int(arguments["page_table"].min()) and int(arguments["page_table"].max()) < 10


@pytest.mark.parametrize(
    "row",
    [
        TINY,
        replace(TINY, fringe=True),
        replace(TINY, queries=3, fringe=True),
        replace(TINY, window=50),
        replace(TINY, verb="append", fringe=True),
        replace(TINY, head_dim=80, k_bits=3, v_bits=2),
    ],
)
def test_the_check_passes_what_is_right(row):
    made = tiny_problem(row)
    assert measure._checked(made)["right"]
    out = made.attend(0)[0]
    assert torch.equal(made.launches(settled=True)[0]()[0], out)


def test_the_check_sees_a_wrong_result():
    made = tiny_problem(TINY)
    out = made.attend(0)[0].clone()
    error, sdpa_error = reference.errors(made, out * 1.02)
    assert error > 2 * sdpa_error
    out[0, 0, 0] = float("nan")
    error, sdpa_error = reference.errors(made, out)
    assert not error <= 2 * sdpa_error


def test_encode_rows_launch():
    row = replace(TINY, verb="encode", lengths=(0, 0), queries=70, fringe=True)
    made = tiny_problem(row)
    before = made.pool.pages.clone()
    made.launches(settled=True)[0]()
    assert not torch.equal(before, made.pool.pages)


@pytest.mark.parametrize(("verb", "lengths", "queries"), [("encode", (0, 0), 70), ("append", (130, 70), 1)])
def test_rows_with_a_key_metric_choose_other_codes_of_the_same_vectors(verb, lengths, queries):
    row = replace(TINY, verb=verb, lengths=lengths, queries=queries)
    made = tiny_problem(replace(row, metric=True))
    before, results = made.pool.pages.clone(), []
    for metric in (made.arguments[0]["key_metric"], None):
        made.pool.pages.copy_(before)
        made.arguments[0]["key_metric"] = metric
        made.launches(settled=True)[0]()
        results.append(made.pool.pages.clone())
    assert not torch.equal(*results) and not torch.equal(results[1], before)


def test_rows_with_a_key_metric_have_no_target_and_one_row_without_beside_them():
    for row in (row for row in ROWS.values() if row.metric):
        assert row.verb != "attend" and not row.targets
        assert replace(ROWS[row.name.removesuffix(", key metric")], name="", targets=()) == replace(row, name="", metric=False)
    assert {row.verb for row in ROWS.values() if row.metric} == {"append", "encode"}


def test_graphs_have_24_launches_or_a_round_of_buffers_unless_they_would_take_long():
    assert timing.launch_count(2, 100.0) == 24
    assert timing.launch_count(149, 5.0) == 149
    assert timing.launch_count(2, 10_000.0) == 4
    assert timing.Times.of([3.0, 1.0, 2.0], 24).json() == {"median": 2.0, "min": 1.0, "max": 3.0, "launches": 24}


# ---- the report


def measured(row: table.Row, us: float, cudnn: float | None = None) -> dict:
    times = {"median": us, "min": us, "max": us, "launches": 24}
    return measure.describe(row) | {
        "buffers": 2, "workspace_bytes": 0, "error": 1e-3, "sdpa_error": 2e-3, "right": True,
        "us": {"graph": times, "chained": times}, "cudnn_us": times | {"median": cudnn} if cudnn else None,
    }  # fmt: skip


def a_report() -> dict:
    rows = [ROWS["32 x 11,264"], ROWS["32 x 11,264, fringe"], ROWS["encode of a prefill, 8 x 8,192"]]
    done = [measured(rows[0], 140.0, 482.0), measured(rows[1], 150.0), measured(rows[2], 1000.0)]
    return {
        "schema": report.SCHEMA, "benchmark": "attend_gpu", "device": "a GPU", "torch": "2.11.0", "copy_gb_s": 2900.0, "commit": "abc",
        "rows": report.complete(done, rows, 2900.0),
    }  # fmt: skip


def test_targets_are_judged():
    base, fringe, encode = a_report()["rows"]
    assert base["gb_s"] == pytest.approx(32 * 176 * 8 * 8704 / 140e3)
    assert base["ratio_to_cudnn"] == pytest.approx(482 / 140)
    assert [target["met"] for target in base["targets"]] == [False, True]
    assert fringe["targets"][0]["value"] == pytest.approx(150 / 140) and fringe["targets"][0]["met"] is False
    assert encode["targets"][0]["met"] is False
    assert "MISSED" in report.line(base) and "3.44" in report.line(base)


def test_a_target_without_a_measurement_is_neither_met_nor_missed():
    row = ROWS["8 x 11,264"]
    done = report.complete([measured(row, 40.0)], [row], 2900.0)
    assert done[0]["targets"][0]["met"] is None and "not measured" in report.line(done[0])


def test_a_wrong_row_is_reported_without_times():
    row = ROWS["8 x 11,264"]
    wrong = measure.describe(row) | {"buffers": 2, "workspace_bytes": 0, "error": 0.1, "sdpa_error": 2e-3, "right": False}
    assert "WRONG" in report.line(report.complete([wrong], [row], 2900.0)[0])


def test_a_row_that_fails_is_reported_with_its_message():
    row = ROWS["8 x 11,264"]
    result = tool("benchmarks/attend_gpu.py").failed(row, RuntimeError("no such kernel\nand more"))
    assert "FAILED: no such kernel" in report.line(report.complete([result], [row], 2900.0)[0])


def test_long_calls_are_checked_at_some_queries():
    made = tiny_problem(replace(TINY, queries=150), buffers=1)
    assert measure._checked(made)["right"]


def test_the_report_is_json_with_every_derived_number():
    again = json.loads(json.dumps(a_report()))
    keys = {"name", "verb", "sequences", "bytes", "us", "gb_s", "share_of_copy", "ratio_to_cudnn", "error", "right", "targets"}
    assert all(keys <= set(row) for row in again["rows"])


# ---- the map, the plot and the table


def test_the_map_covers_batches_and_lengths_cheapest_first():
    cells = grid.cells()
    assert len(cells) == 90 and len(cells[0].lengths) * cells[0].lengths[0] == 256
    sizes = [sum(cell.lengths) for cell in cells]
    assert sizes == sorted(sizes) and sizes[-1] == 256 * 131072


def test_the_plot_draws_a_tiny_map(tmp_path):
    row = ROWS["32 x 11,264"]
    cells = [grid.cell(report.complete([measured(row, 140.0, 482.0)], [row], 2900.0)[0])]
    cells.append(cells[0] | {"sequences": 1, "ratio_to_cudnn": None})
    picture = tool("benchmarks/plot_gpu_map.py")
    assert picture.table(cells, "share_of_copy", 100)[:2] == ([1, 32], [11264])
    picture.draw({"cells": cells, "device": "a GPU", "commit": "abc"}).savefig(tmp_path / "map.svg")
    assert (tmp_path / "map.svg").stat().st_size > 1000


def test_the_readme_table_has_a_line_for_each_shown_row_that_was_run():
    made = tool("tools/gpu_table.py")
    text = made.section(Path("run.json"), a_report())
    assert "| 32 x 11,264 | 140.0 | 2,801 | 97 % | 482.0 | 3.44 |" in text and "1 of 4 targets met" in text
    assert set(made.SHOWN) <= set(ROWS)


def test_the_full_table_says_what_was_missed_and_what_was_not_measured():
    made = tool("tools/gpu_table.py")
    broken = tool("benchmarks/attend_gpu.py").failed(ROWS["8 x 11,264"], RuntimeError("no such kernel"))
    whole = a_report() | {"read_gb_s": 3000.0}
    text = made.full_section(Path("run.json"), whole | {"rows": whole["rows"] + [broken | {"targets": []}]})
    assert "| >= 3.45 x cuDNN | 3.44 | **missed** |" in text and "| >= 0.95 of copy | 0.97 | met |" in text
    assert "no such kernel" in text


def test_a_baseline_for_unequal_lengths_does_not_exist():
    assert baselines.Dense.time(None, ROWS["16 of 1,250 to 5,000"], "cudnn", None) is None
