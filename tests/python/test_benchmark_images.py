# SPDX-License-Identifier: Apache-2.0
"""The benchmark on models that take images: a random LLaVA and a random SmolVLM of two layers, their processors, and a PNG."""

import json

import numpy as np
import pytest
import torch
import where
from PIL import Image
from test_benchmark import failure
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)
from transformers.models.smolvlm import processing_smolvlm

from turboquant.benchmark.cli import main

IMAGE_PATCHES = 16
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %} <image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


SMOLVLM_PARTS, SMOLVLM_TOKENS = 5, 4  # 2 x 2 of 32 x 32 pixels and the whole, 16 patches each, 4 of which are a token
TEXT = dict(
    vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32,
    eos_token_id=None,
)  # fmt: skip
PATCHES = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)


def word_tokenizer(special, **options):
    words = [*special, *(f"w{i}" for i in range(128 - len(special)))]
    words_only = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words_only, unk_token="<unk>", eos_token="</s>", pad_token="</s>", **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llava")
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        tokenizer=word_tokenizer(["<unk>", "<image>", "</s>"], extra_special_tokens={"image_token": "<image>"}),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    config = LlavaConfig(vision_config=CLIPVisionConfig(**PATCHES), text_config=LlamaConfig(**TEXT), image_token_index=1)
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder / "tiny-llava")
    processor.save_pretrained(folder / "tiny-llava")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "noise.png")
    return folder


@pytest.fixture
def smolvlm(folder, monkeypatch):
    """Its processor wants the package num2words, for a video's number of frames; digits do as well."""
    monkeypatch.setattr(processing_smolvlm, "num2words", processing_smolvlm.num2words or str)
    marks = ["<image>", "<fake_token_around_image>", "<global-img>", *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2))]
    processor = SmolVLMProcessor(
        SmolVLMImageProcessorPil(size={"longest_edge": 64}, max_image_size={"longest_edge": 32}),
        word_tokenizer(["<unk>", "</s>", *marks], additional_special_tokens=marks),
        SmolVLMVideoProcessor(),
        image_seq_len=SMOLVLM_TOKENS,
        chat_template=TEMPLATE,
    )
    config = SmolVLMConfig(vision_config=PATCHES, text_config=LlamaConfig(**TEXT), image_token_id=2, scale_factor=2, pad_token_id=1)
    torch.manual_seed(0)
    SmolVLMForConditionalGeneration(config).save_pretrained(folder / "tiny-smolvlm")
    processor.save_pretrained(folder / "tiny-smolvlm")
    return folder / "tiny-smolvlm"


def test_an_image_goes_through_both_caches(folder, one_thread, capsys):
    report = folder / "report.json"
    arguments = ["--model", folder / "tiny-llava", "--image", folder / "noise.png", "--prompt", "w1 w2 w3 w4", "--max-new-tokens", "8"]
    assert main([str(a) for a in (*arguments, "--repeats", "1", "--device", where.DEVICE, "--json", report)]) == 0
    found = json.loads(report.read_text())
    assert found["prompt_tokens"] == IMAGE_PATCHES + 4
    assert found["fidelity"]["continuation"]["positions"] == 7
    # Positions of image tokens are the model's own business, so nothing is fed piece by piece there.
    assert found["fidelity"]["text"]["positions"] == 0
    assert "answers" in capsys.readouterr().out


def test_an_image_in_parts_goes_through_both_caches(smolvlm, folder, one_thread):
    report = folder / "smolvlm.json"
    arguments = ["--model", smolvlm, "--image", folder / "noise.png", "--prompt", "w1 w2 w3 w4", "--max-new-tokens", "8"]
    assert main([str(a) for a in (*arguments, "--repeats", "1", "--device", where.DEVICE, "--json", report)]) == 0
    found = json.loads(report.read_text())
    # Marks: two beside each part, one behind the last.
    assert found["prompt_tokens"] == SMOLVLM_PARTS * (SMOLVLM_TOKENS + 2) + 1 + 4
    assert found["fidelity"]["continuation"]["positions"] == 7


def test_a_model_without_videos_says_so(folder, capsys):
    assert "no video_processor" in failure(capsys, "--model", folder / "tiny-llava", "--video", folder / "noise.png")


def test_a_missing_or_broken_image_is_named(folder, capsys):
    model = ("--model", folder / "tiny-llava", "--prompt", "w1")
    assert "'nowhere.png' does not exist" in failure(capsys, *model, "--image", "nowhere.png")
    (folder / "text.png").write_text("not an image")
    assert "text.png" in failure(capsys, *model, "--image", folder / "text.png")
