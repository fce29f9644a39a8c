#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes what `python -m turboquant.benchmark --random-weights` needs to time pictures and clips where no such model's weights are at hand:

    python3 benchmarks/vision_model.py FOLDER     # Qwen3-VL-2B's shape: config.json and processor, picture.png, clip.mp4

The tokenizer knows the words w0, w1, ... and what marks a picture or a clip; its answers mean nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLProcessor, Qwen3VLVideoProcessor

WORDS = 122
SPECIAL = ["<unk>", "</s>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]  # their places are their ids
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %} {{ part['text'] }}{% else %}<|vision_start|><|{{ part['type'] }}_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endfor %}"
)
TEXT = dict(
    hidden_size=2048, intermediate_size=6144, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8, head_dim=128, vocab_size=151936,
    max_position_embeddings=262144,
)  # fmt: skip
VISION = dict(
    depth=24, hidden_size=1024, intermediate_size=4096, num_heads=16, num_position_embeddings=2304, deepstack_visual_indexes=[5, 11, 17],
    patch_size=16, temporal_patch_size=2, spatial_merge_size=2,
)  # fmt: skip


def config(text: dict = TEXT, vision: dict = VISION) -> Qwen3VLConfig:
    pairs, across = text["head_dim"] // 2, text["head_dim"] * 5 // 32  # of rotated channels: in all, and for each of height and width
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [pairs - 2 * across, across, across], "mrope_interleaved": True}
    return Qwen3VLConfig(
        text_config=text | dict(rope_parameters=rope, eos_token_id=None, bos_token_id=None, pad_token_id=1, tie_word_embeddings=True),
        vision_config=vision | dict(out_hidden_size=text["hidden_size"]), tie_word_embeddings=True,
        image_token_id=2, video_token_id=3, vision_start_token_id=4, vision_end_token_id=5,
    )  # fmt: skip


def processor(pixels: tuple[int, int], vision: dict = VISION, **sampling: int) -> Qwen3VLProcessor:
    """`pixels`: the least and the most of a picture, or of a clip's frames together."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *(f"w{i}" for i in range(WORDS))])}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token="<unk>", eos_token="</s>", pad_token="</s>", additional_special_tokens=SPECIAL[2:]
    )
    patches = dict(
        size={"shortest_edge": pixels[0], "longest_edge": pixels[1]}, patch_size=vision["patch_size"],
        temporal_patch_size=vision["temporal_patch_size"], merge_size=vision["spatial_merge_size"],
    )  # fmt: skip
    return Qwen3VLProcessor(
        image_processor=Qwen2VLImageProcessor(**patches), tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor(**patches, **sampling), chat_template=TEMPLATE,
    )  # fmt: skip


def write_picture(path: Path, side: int) -> None:
    across, down = np.meshgrid(np.arange(side), np.arange(side))
    waves = [np.sin(across / 9) + np.cos(down / 17), np.sin((across + down) / 23), np.hypot(across - side / 2, down - side / 2) / side]
    Image.fromarray(np.stack([128 + 60 * wave for wave in waves], axis=-1).astype(np.uint8)).save(path)


def write_clip(path: Path, side: int, frames: int, rate: int) -> None:
    """Grey frames, each brighter than the last one."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        for i in range(frames):
            pixels = np.full((side, side, 3), 10 + 240 * i // frames, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    config().save_pretrained(folder)
    processor((256 * 32 * 32, 16384 * 32 * 32), fps=4, min_frames=4, max_frames=64).save_pretrained(folder)
    write_picture(folder / "picture.png", 1536)
    write_clip(folder / "clip.mp4", side=384, frames=64, rate=8)


if __name__ == "__main__":
    main()
