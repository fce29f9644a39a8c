# SPDX-License-Identifier: Apache-2.0
"""The planted stresses, the paper's experiments and the report, on models and vectors of a test's size."""

import json
import sys
from pathlib import Path

import pytest
import tiny_directory
import torch
from tiny_models import prompt, tiny_model

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from fidelity import codec, models, paper, report, tables  # noqa: E402
from fidelity.attention import Recorder, Study, logits  # noqa: E402
from fidelity.cli import main  # noqa: E402
from fidelity.metrics import compare, summary  # noqa: E402
from fidelity.ours import Recipe  # noqa: E402
from fidelity.codec import Layer  # noqa: E402
from fidelity.reproduce import activations, distortion, needle, recall  # noqa: E402
from fidelity.targets import TARGETS  # noqa: E402
from fidelity.variants import variants  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")


def stressed(stress):
    model = tiny_model("llama", head_dim=64)
    if stress != "none":
        models.plant(model, stress, prompt(tokens=128, seed=3)["input_ids"][0])
    return model


@pytest.fixture(scope="module")
def tokens():
    return prompt(tokens=200)["input_ids"][0]


def test_planted_outliers_leave_the_model_as_it_is(tokens):
    plain, planted = (logits(stressed(stress), tokens, None) for stress in ("none", "outlier"))
    assert float(compare(plain, planted, tokens).kl.max()) < 1e-8


def test_a_planted_bias_is_as_large_as_told_and_moves_the_model_little(tokens):
    plain, planted = stressed("none"), stressed("k-bias")
    recorders = [Recorder(), Recorder()]
    reference, other = (logits(m, tokens, None, r) for m, r in zip((plain, planted), recorders))
    assert float(compare(reference, other, tokens).kl.mean()) < 0.1
    mean = recorders[1].layers[0][1].keys.mean(1)
    deviation = recorders[0].layers[0][1].keys.std(1)
    pairs = torch.arange(64).view(2, 32)[:, 29:].flatten()
    assert float(mean[:, pairs].norm()) > 30 * float(deviation[:, pairs].norm()) / 2**0.5


@pytest.mark.parametrize("stress", ["outlier", "k-bias"])
def test_the_papers_codec_breaks_under_a_stress_and_the_recipe_does_not(stress, tokens):
    model = stressed(stress)
    reference = logits(model, tokens, None)
    studies = {"paper": Study(paper.mse(4, 4)), "ours": Study(Recipe(4, 4))}
    kl = {name: summary(compare(reference, logits(model, tokens, study), tokens))["kl"] for name, study in studies.items()}
    assert kl["ours"] < 0.2 * kl["paper"], kl


def test_the_quantisers_have_the_errors_of_theory_within_five_standard_errors():
    for row in distortion.measure(dims=(64, 200), bits=(2, 4)):
        if row["quantiser"] == "mse":
            assert abs(row["mse"] - row["theory_mse"]) < 5 * row["mse_standard_error"]
            assert row["lower_bound"] < row["mse"] < row["upper_bound"]
        else:
            assert row["lower_bound"] < row["inner_product_error"] < row["upper_bound"]
        assert abs(row["inner_product_error"] - row["theory_inner_product_error"]) < 5 * row["inner_product_standard_error"]


def test_recall_grows_with_bits_and_with_k():
    clustered = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    rows = {(r["quantiser"], r["bits"]): list(r["recall"].values()) for r in recall.measure(clustered, bits=(2, 4))}
    assert rows["mse", 4][0] > rows["mse", 2][0] and rows["mse", 4][0] > rows["prod", 4][0]
    assert all(values == sorted(values) for values in rows.values())


def test_the_needle_lies_at_its_depth_and_the_prompt_has_its_length():
    tokenizer = tiny_directory.character_tokenizer()
    for depth in (0.0, 0.5, 1.0):
        tokens, count = needle.prompt(tokenizer, 1000, depth)
        text = tokenizer.decode(tokens).replace(" ", "")
        assert len(tokens) == 1000 and count == len(" 73915")
        assert text.endswith("lighthouseis73915")
        assert abs(text.index("73915") / len(text) - depth) < 0.2


def test_random_activations_are_what_the_codebooks_expect_and_look_nowhere():
    """Within five standard errors: a coordinate's fourth power has a variance of 96 at most, and there are 2 x 1,024 x 64."""
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (torch.randn(heads, 1024, 64, generator=generator) for heads in (6, 2, 2))
    found = activations._layer(Layer(0, query, keys, values, 64**-0.5))
    for side in ("key", "value"):
        assert abs(found[f"{side}_kurtosis"] - found["kurtosis_of_a_random_direction"]) < 5 * (96 / (2 * 1024 * 64)) ** 0.5
    assert found["query_share_of_1"] < 2 / 64 and found["query_share_of_4"] < 8 / 64
    tilted = activations._layer(Layer(0, query + 3 * torch.ones(64), keys, values, 64**-0.5))
    assert tilted["query_share_of_1"] > 0.8


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two variants on two texts, from the command line to the report."""
    root = tmp_path_factory.mktemp("run")
    model = tiny_directory.save(root / "tiny", tiny_model("llama", head_dim=64))
    common = ["--model", str(model), "--texts", "prose,code", "--tokens", "100", "--variants", "^(fp16|recipe 4/4)$", "--cells", str(root / "cells")]
    main(["run", *common])
    main(["blocks", *common])
    main(["report", "--cells", str(root / "cells"), "--json", str(root / "report.json")])
    return root


def test_the_command_writes_a_cell_for_each_text_and_variant_and_a_report(finished, capsys):
    assert len(list((finished / "cells").glob("*.json"))) == 8
    found = json.loads((finished / "report.json").read_text())
    assert {(c["text"], c["variant"]) for c in found["cells"]} == {(t, v) for t in ("prose", "code") for v in ("fp16", "recipe 4/4")}
    assert len(found["blocks"]) == 4 and all(len(c["block_errors"]) == 2 and c["tokens"] == 100 for c in found["blocks"])
    fp16, ours = (next(v for v in found["variants"] if v["variant"] == name) for name in ("fp16", "recipe 4/4"))
    assert fp16["kl"]["mean"] < ours["kl"]["mean"] and fp16["bytes_per_token"]["mean"] == 256
    assert ours["bytes_per_token"]["mean"] == pytest.approx(2 * 4480 / 100)  # two whole pages for 100 tokens
    assert found["runs"][0]["versions"]["torch"] == torch.__version__


def test_what_was_measured_is_not_measured_again(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()}
    main(["run", "--model", str(finished / "tiny"), "--texts", "prose", "--tokens", "100", "--variants", "^fp16$", "--cells", str(finished / "cells")])
    assert capsys.readouterr().out == ""
    assert {path: path.stat().st_mtime_ns for path in (finished / "cells").iterdir()} == before


def test_a_gguf_file_is_measured_like_a_directory(tmp_path):
    model = tiny_model("llama", head_dim=64, hidden_size=256, vocab_size=300)
    file = tiny_directory.save_gguf(tmp_path / "tiny.gguf", model)
    main(["run", "--model", str(file), "--texts", "prose", "--tokens", "100", "--variants", "^fp16$", "--cells", str(tmp_path / "cells")])
    (cell,) = (json.loads(path.read_text()) for path in (tmp_path / "cells").glob("*.json"))
    assert cell["model"] == "tiny" and cell["tokens"] == 100 and 0 < cell["kl"] < 1e-4
    tokens = torch.arange(1, 200)
    found = models.open_model(str(file), torch.device("cpu"), torch.float32).model
    torch.testing.assert_close(logits(found, tokens, None), logits(model, tokens, None), rtol=1e-3, atol=1e-3)


def test_a_table_of_fringes_has_a_cell_for_each_that_was_measured():
    def row(name, kl):
        return {"variant": name, "kl": {"mean": kl}}

    rows = [row("recipe 4/4", 0.5), row("recipe 4/4 fringe 4+28", 0.25), row("recipe 4/4 fringe 0+28", 0.375), row("fp16", 1.0)]
    assert tables.render_fringes(rows).splitlines() == ["| S | W = 0 | W = 28 |", "|---|---|---|", "| 0 | 0.5 | 0.375 |", "| 4 |  | 0.25 |"]
    assert tables.render_fringes(rows[:2]) == ""


def test_blocks_are_summed_over_texts_with_their_spread():
    cells = [
        {"variant": "x", "text": text, "tokens": 640, "stress": "none", "block_errors": errors} for text, errors in (("a", [0.1, 0.3, 0.2]), ("b", [0.4, 0.2, 0.2]))
    ]
    assert tables.render_blocks(cells, "a machine").splitlines()[-1] == "| x | 2 | 0.2494 | 0.2160 to 0.2828 | 0.2000 | 0.2000 to 0.2000 | 0.4000 (b) | 0.3000 to 0.4000 |"


def test_the_readme_and_the_plot_are_over_the_texts_that_their_own_rows_saw():
    def row(name, group, texts):
        return {"variant": name, "group": group, "texts": texts, "stress": "none", "tokens": 2048}

    shown = [row("x", "ours", list("abcd")), row("x", "ours", list("abc"))]
    aside = [row(f"sketch {i}", "ablation", list("abc")) for i in range(3)]
    assert tables.richest({"variants": shown + aside}) == ([shown[0]], tuple("abcd"))


def test_rows_compare_over_the_same_texts():
    def cell(text, variant, kl):
        numbers = dict.fromkeys(report.SPREAD, 1.0) | {"kl": kl}
        return {"model": "m", "stress": "none", "tokens": 2048, "text": text, "variant": variant, "group": "ours", **numbers}

    rows = report.summarise([cell("a", "x", 1.0), cell("b", "x", 3.0), cell("a", "y", 5.0)])
    found = {(tuple(r["texts"]), r["variant"]): (r["kl"]["mean"], r["only_here"]) for r in rows}
    assert found == {(("a", "b"), "x"): (2.0, True), (("a",), "x"): (1.0, False), (("a",), "y"): (5.0, True)}
    assert [r["variant"] for r in tables.whole({"variants": rows})[0]] == ["x"]


def test_targets_name_variants_that_exist():
    asked = []

    def note(name):
        asked.append(name)
        return 1.0

    for target in TARGETS:
        target.measured(note)
    assert asked and set(asked) <= set(variants())


def test_codecs_that_cast_saturate():
    given = type("Layer", (), {"keys": torch.full((1, 2, 4), 1e6), "values": torch.zeros(1, 2, 4)})
    assert float(codec.cast(torch.float8_e4m3fn)(given).keys.max()) == 448.0
