# SPDX-License-Identifier: Apache-2.0
"""The benchmark on a model that takes videos: a random Qwen3-VL of two layers, its processor, and a video written here."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import where
from test_benchmark import failure
from transformers import Qwen3VLForConditionalGeneration

from turboquant.benchmark.cli import main
from turboquant.benchmark.video import fetch_videos, read_video

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
from vision_model import config, processor, write_clip, write_picture  # noqa: E402

FRAMES, RATE, SIDE = 12, 8, 64
TEXT = dict(hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, vocab_size=128)
# Patches of 8 x 8 pixels and 2 frames; 2 x 2 of them are a token.
VISION = dict(
    depth=2, hidden_size=32, intermediate_size=32, num_heads=2, num_position_embeddings=64, deepstack_visual_indexes=[0], patch_size=8,
    temporal_patch_size=2, spatial_merge_size=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen3-vl")
    torch.manual_seed(0)
    Qwen3VLForConditionalGeneration(config(TEXT, VISION)).save_pretrained(folder / "tiny-qwen3-vl")
    sides = (4 * SIDE * SIDE, 16 * SIDE * SIDE)
    processor(sides, VISION, fps=4, min_frames=4, max_frames=8).save_pretrained(folder / "tiny-qwen3-vl")
    write_picture(folder / "waves.png", 2 * SIDE)
    write_clip(folder / "ramp.mp4", SIDE, FRAMES, RATE)
    return folder


# A picture of 128 x 128 pixels is 8 x 8 tokens. 1.5 s at 4 frames a second: 6 frames, 3 pairs of 4 x 4 tokens each, beside the time of each pair.
@pytest.mark.parametrize(("option", "file", "tokens"), [("--image", "waves.png", 64), ("--video", "ramp.mp4", 48)])
def test_a_picture_and_a_video_go_through_both_caches(folder, one_thread, capsys, option, file, tokens):
    report = folder / "report.json"
    arguments = ["--model", folder / "tiny-qwen3-vl", option, folder / file, "--prompt", "w1 w2 w3 w4", "--max-new-tokens", "8"]
    assert main([str(a) for a in (*arguments, "--repeats", "1", "--device", where.DEVICE, "--json", report)]) == 0
    found = json.loads(report.read_text())
    assert tokens + 4 <= found["prompt_tokens"] <= tokens + 20
    assert found["fidelity"]["continuation"]["positions"] == 7
    assert found["fidelity"]["text"]["positions"] == 0
    assert "answers" in capsys.readouterr().out


def test_frames_come_in_order_and_sampled(folder):
    file = str(folder / "ramp.mp4")
    frames, metadata = read_video(file)
    assert frames.shape == (FRAMES, SIDE, SIDE, 3) and metadata.fps == RATE and metadata.duration == FRAMES / RATE
    brightness = frames.mean(axis=(1, 2, 3))
    assert np.allclose(brightness, [10 + 240 * i // FRAMES for i in range(FRAMES)], atol=4)  # a video codec's rounding
    some, metadata = read_video(file, lambda metadata: [2, 2, metadata.total_num_frames - 1])
    assert np.array_equal(some, frames[[2, 2, FRAMES - 1]]) and metadata.frames_indices == [2, 2, FRAMES - 1]
    several = fetch_videos([file, file])
    assert len(several) == 2 and len(several[0]) == 2


def test_a_missing_or_broken_video_is_named(folder, capsys):
    model = ("--model", folder / "tiny-qwen3-vl", "--prompt", "w1")
    assert "'nowhere.mp4' does not exist" in failure(capsys, *model, "--video", "nowhere.mp4")
    (folder / "text.mp4").write_text("not a video")
    assert "text.mp4" in failure(capsys, *model, "--video", folder / "text.mp4")
