# SPDX-License-Identifier: Apache-2.0
"""Random models that look at images, with a prompt of text and one image a sequence."""

import torch
import transformers
import where
from tiny_models import ALTERNATING, FAMILIES, SHAPE, VOCABULARY

IMAGE, START, END = 1, 3, 4  # token ids
PATCHES = dict(hidden_size=32, intermediate_size=32, patch_size=8)


def smolvlm():
    config = transformers.SmolVLMConfig(
        text_config=transformers.LlamaConfig(**SHAPE), image_token_id=IMAGE, scale_factor=2, pad_token_id=0,
        vision_config=dict(PATCHES, num_hidden_layers=1, num_attention_heads=2, image_size=32),
    )  # fmt: skip
    return transformers.SmolVLMForConditionalGeneration, config, lambda ids: dict(pixel_values=torch.randn(len(ids), 1, 3, 32, 32))


def qwen3_vl():
    rope = dict(rope_type="default", rope_theta=1e4, mrope_section=[6, 5, 5], mrope_interleaved=True)
    config = transformers.Qwen3VLConfig(
        text_config=dict(SHAPE, rope_parameters=rope), image_token_id=IMAGE, video_token_id=2, vision_start_token_id=START,
        vision_end_token_id=END,
        vision_config=dict(
            PATCHES, depth=2, num_heads=2, spatial_merge_size=2, temporal_patch_size=2, out_hidden_size=64,
            num_position_embeddings=16, deepstack_visual_indexes=[0, 1],
        ),
    )  # fmt: skip

    def image(ids):
        return dict(
            pixel_values=torch.randn(len(ids) * 16, 3 * 2 * 8 * 8),
            image_grid_thw=torch.tensor([[1, 4, 4]] * len(ids)),
            mm_token_type_ids=(ids == IMAGE).int(),
        )

    return transformers.Qwen3VLForConditionalGeneration, config, image


def gemma3():
    """Tokens of an image see each other whatever their order."""
    vision = dict(PATCHES, num_hidden_layers=1, num_attention_heads=2, image_size=32)
    config = transformers.Gemma3Config(
        text_config=transformers.Gemma3TextConfig(**SHAPE, **ALTERNATING, query_pre_attn_scalar=32), image_token_id=IMAGE,
        vision_config=vision, mm_tokens_per_image=4, boi_token_id=START, eoi_token_id=END,
    )  # fmt: skip

    def image(ids):
        return dict(pixel_values=torch.randn(len(ids), 3, 32, 32), token_type_ids=(ids == IMAGE).int())

    return transformers.Gemma3ForConditionalGeneration, config, image


def gemma4():
    """They do so in the layers with a window, which the cache leaves alone."""
    text = FAMILIES["gemma4"][1] | dict(vocab_size=VOCABULARY, use_bidirectional_attention="vision")
    config = transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**{**SHAPE, **text}), image_token_id=IMAGE, boi_token_id=START, eoi_token_id=END,
        video_token_id=2, audio_token_id=0,
        vision_config=dict(
            PATCHES, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2, head_dim=16, pooling_kernel_size=2,
            position_embedding_size=16,
        ),
    )  # fmt: skip

    def image(ids):
        place = torch.tensor([[x, y] for y in range(4) for x in range(4)])
        return dict(
            pixel_values=torch.rand(len(ids), 16, 3 * 8 * 8),
            image_position_ids=place.repeat(len(ids), 1, 1),
            mm_token_type_ids=(ids == IMAGE).int(),
        )

    return transformers.Gemma4ForConditionalGeneration, config, image


VISION = {"smolvlm": smolvlm, "qwen3_vl": qwen3_vl, "gemma3": gemma3, "gemma4": gemma4}


def tiny_vision(family, batch=2, tokens=80):
    """A model, and the inputs of `generate`."""
    torch.manual_seed(0)
    kind, config, image = VISION[family]()
    model = kind._from_config(config, attn_implementation="sdpa").eval().requires_grad_(False)
    model.lm_head.weight[: END + 1] = 0.0  # never generated
    ids = torch.randint(END + 1, VOCABULARY, (batch, tokens))
    ids[:, 4:10] = torch.tensor([START, IMAGE, IMAGE, IMAGE, IMAGE, END])
    inputs = dict(input_ids=ids, **image(ids))
    return model.to(where.DEVICE), {name: x.to(where.DEVICE) for name, x in inputs.items()}
