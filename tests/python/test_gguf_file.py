# SPDX-License-Identifier: Apache-2.0
"""A GGUF file by its path: loaded with every weight, and read once."""

import gguf
import tiny_directory
import torch
from tiny_models import tiny_model

from turboquant.benchmark import models


def test_a_gguf_file_is_read_once_and_gives_its_model_and_tokenizer(tmp_path, monkeypatch):
    model = tiny_model("llama", vocab_size=260)
    file = tiny_directory.save_gguf(tmp_path / "tiny.gguf", model)
    opened = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path, *options):
            opened.append(path)
            super().__init__(path, *options)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    subject = models.load(file)
    assert len(opened) == 1 and gguf.GGUFReader is Counted
    assert subject.tokenizer("the").input_ids == [257]
    weights = subject.model.state_dict()
    assert all(torch.equal(weights.pop(name), weight) for name, weight in model.state_dict().items()) and not weights
