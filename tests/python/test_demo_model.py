# SPDX-License-Identifier: Apache-2.0
"""The kept copy of the demo's model: whole or not there."""

import pytest

from turboquant.benchmark import demo_model


@pytest.fixture
def small(monkeypatch, tmp_path):
    """The same steps with an invented GGUF file; returns the list of conversions done."""
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF one")
    done = []

    def dequantise(source, target):
        done.append(source.read_bytes())
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_model, "_gguf_path", lambda: gguf)
    monkeypatch.setattr(demo_model, "_dequantise", dequantise)
    return gguf, done


def test_the_second_call_finds_the_copy(small):
    _, done = small
    first = demo_model.demo_model()
    assert demo_model.demo_model() == first and len(done) == 1
    assert (first / "model.safetensors").read_bytes() == b"weights"


def test_a_changed_file_gets_a_copy_of_its_own(small):
    gguf, done = small
    first = demo_model.demo_model()
    gguf.write_bytes(b"GGUF two")
    assert demo_model.demo_model() != first and done == [b"GGUF one", b"GGUF two"]


@pytest.mark.parametrize("damage", ["shorter", "missing", "manifest"])
def test_a_damaged_copy_is_made_again(small, damage):
    _, done = small
    copy = demo_model.demo_model()
    if damage == "shorter":
        (copy / "model.safetensors").write_bytes(b"wei")
    elif damage == "missing":
        (copy / "model.safetensors").unlink()
    else:
        (copy / demo_model.MANIFEST).write_text("{")
    assert demo_model.demo_model() == copy and len(done) == 2
    assert demo_model.is_complete(copy)


def test_a_run_that_breaks_leaves_nothing_behind(small, monkeypatch):
    def broken(source, target):
        (target / "model.safetensors").write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(demo_model, "_dequantise", broken)
    with pytest.raises(OSError, match="disk full"):
        demo_model.demo_model()
    assert list(demo_model.cache_root().iterdir()) == []


def test_two_runs_at_once_end_with_one_copy(small, monkeypatch):
    quick = demo_model._dequantise
    monkeypatch.setattr(demo_model, "_dequantise", lambda source, target: (monkeypatch.setattr(demo_model, "_dequantise", quick), demo_model.demo_model(), quick(source, target)))
    copy = demo_model.demo_model()
    assert demo_model.is_complete(copy) and list(demo_model.cache_root().iterdir()) == [copy]


def test_the_cache_follows_the_xdg_rules(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo_model.cache_root() == tmp_path / "turboquant"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("", "relative/path"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert demo_model.cache_root() == tmp_path / "home" / ".cache" / "turboquant"
