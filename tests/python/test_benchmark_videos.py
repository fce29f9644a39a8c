# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a model that takes videos: a random Qwen3-VL of two layers, its processor, and a video written here."""

import json

import av
import numpy as np
import pytest
import torch
from test_benchmark import failure
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from turboquant.benchmark.cli import main
from turboquant.benchmark.video import fetch_videos, read_video

FRAMES, RATE, SIDE = 12, 8, 64
SPECIAL = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)
# Patches of 8 x 8 pixels and 2 frames; 2 x 2 of them are a token.
VISION = {"patch_size": 8, "temporal_patch_size": 2, "merge_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3-vl")
    words = ["<unk>", "</s>", *SPECIAL, *(f"w{i}" for i in range(122))]
    words_only = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    words_only.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words_only, unk_token="<unk>", eos_token="</s>", pad_token="</s>", additional_special_tokens=SPECIAL
    )
    size = {"shortest_edge": 4 * SIDE * SIDE, "longest_edge": 16 * SIDE * SIDE}
    processor = Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(size=size, **VISION),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(size=size, fps=4, min_frames=4, max_frames=8, **VISION),
        chat_template=TEMPLATE,
    )
    config = Qwen3VLConfig(
        vision_config=dict(
            depth=2, hidden_size=32, intermediate_size=32, num_heads=2, out_hidden_size=64, num_position_embeddings=64,
            deepstack_visual_indexes=[0], patch_size=8, temporal_patch_size=2, spatial_merge_size=2,
        ),
        text_config=dict(
            vocab_size=128, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
            head_dim=32, eos_token_id=None, bos_token_id=None, pad_token_id=1,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [8, 4, 4], "mrope_interleaved": True},
        ),
        image_token_id=2, video_token_id=3, vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config).save_pretrained(folder / "tiny-qwen3-vl")
    processor.save_pretrained(folder / "tiny-qwen3-vl")
    write_video(folder / "ramp.mp4")
    return folder


def write_video(path):
    """Grey frames, each brighter than the last one."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p"
        for i in range(FRAMES):
            pixels = np.full((SIDE, SIDE, 3), 10 + 20 * i, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def test_a_video_goes_through_both_caches(folder, one_thread, capsys):
    report = folder / "report.json"
    arguments = ["--model", folder / "tiny-qwen3-vl", "--video", folder / "ramp.mp4", "--prompt", "w1 w2 w3 w4", "--max-new-tokens", "8"]
    assert main([str(a) for a in (*arguments, "--repeats", "1", "--device", "cpu", "--json", report)]) == 0
    found = json.loads(report.read_text())
    # 1.5 s at 4 frames a second: 6 frames, 3 pairs of 4 x 4 tokens each, beside start, end and time of each pair.
    assert found["prompt_tokens"] >= 3 * (SIDE // 16) ** 2 + 4
    assert found["fidelity"]["continuation"]["positions"] == 7
    assert found["fidelity"]["text"]["positions"] == 0
    assert "answers" in capsys.readouterr().out


def test_frames_come_in_order_and_sampled(folder):
    file = str(folder / "ramp.mp4")
    frames, metadata = read_video(file)
    assert frames.shape == (FRAMES, SIDE, SIDE, 3) and metadata.fps == RATE and metadata.duration == FRAMES / RATE
    brightness = frames.mean(axis=(1, 2, 3))
    assert np.allclose(brightness, [10 + 20 * i for i in range(FRAMES)], atol=4)  # a video codec's rounding
    some, metadata = read_video(file, lambda metadata: [2, 2, metadata.total_num_frames - 1])
    assert np.array_equal(some, frames[[2, 2, FRAMES - 1]]) and metadata.frames_indices == [2, 2, FRAMES - 1]
    several = fetch_videos([file, file])
    assert len(several) == 2 and len(several[0]) == 2


def test_a_missing_or_broken_video_is_named(folder, capsys):
    model = ("--model", folder / "tiny-qwen3-vl", "--prompt", "w1")
    assert "'nowhere.mp4' does not exist" in failure(capsys, *model, "--video", "nowhere.mp4")
    (folder / "text.mp4").write_text("not a video")
    assert "text.mp4" in failure(capsys, *model, "--video", folder / "text.mp4")
