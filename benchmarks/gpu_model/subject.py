# SPDX-License-Identifier: Apache-2.0
"""The model that is timed: random weights, drawn where they are used."""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel


def llama_8b() -> LlamaConfig:
    """Llama-3.1-8B's shape. Positions end at 2 M instead of 131,072: random weights have no trained length."""
    return LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128,
        vocab_size=128256, max_position_embeddings=2 << 20, rms_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip


def read_config(directory: str | None) -> PreTrainedConfig:
    return AutoConfig.from_pretrained(directory) if directory else llama_8b()


def random_model(config: PreTrainedConfig, device: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    return model.eval().requires_grad_(False)


def weight_bytes(model: PreTrainedModel) -> int:
    """What a decoding step reads: all parameters, but of the input embedding only a row a token."""
    embedding = model.get_input_embeddings().weight
    tied = model.get_output_embeddings() is not None and model.get_output_embeddings().weight is embedding
    return sum(p.nbytes for p in model.parameters()) - (0 if tied else embedding.nbytes)
