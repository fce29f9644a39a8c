# SPDX-License-Identifier: Apache-2.0
"""Random models of a few layers, one per family: large weights, so that attention and logits are not flat."""

import torch
import transformers
import where
from turboquant import enable

VOCABULARY = 128
SHAPE = dict(
    vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=32, max_position_embeddings=512, initializer_range=0.15,
    bos_token_id=None, eos_token_id=None, pad_token_id=0, tie_word_embeddings=False,
)  # fmt: skip
ALTERNATING = dict(layer_types=["sliding_attention", "full_attention"], sliding_window=24)

# name -> (config class, what it adds to SHAPE)
FAMILIES = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", dict(num_key_value_heads=1, hidden_size=128)),  # biases; head_dim = hidden / heads
    "qwen3": ("Qwen3Config", dict(head_dim=48)),  # norms of q and k; head_dim not a power of two
    "phi3": ("Phi3Config", dict(hidden_size=128)),  # one matrix for q, k, v
    "gemma2": ("Gemma2Config", dict(ALTERNATING, attn_logit_softcapping=5.0, query_pre_attn_scalar=32)),
    "gemma3": ("Gemma3TextConfig", dict(ALTERNATING, query_pre_attn_scalar=32)),
    "gemma3n": (  # the last layers share KV
        "Gemma3nTextConfig",
        dict(
            num_hidden_layers=5, layer_types=[*ALTERNATING["layer_types"], "full_attention", *ALTERNATING["layer_types"]],
            sliding_window=24, num_kv_shared_layers=3, vocab_size_per_layer_input=128, hidden_size_per_layer_input=16,
            laurel_rank=8, activation_sparsity_pattern=[0.0] * 5, intermediate_size=[64] * 5,
        ),
    ),  # fmt: skip
    "gemma4": (  # the same, and full layers of another head_dim
        "Gemma4TextConfig",
        dict(
            num_hidden_layers=4, layer_types=ALTERNATING["layer_types"] * 2, sliding_window=24, num_kv_shared_layers=2,
            global_head_dim=64, vocab_size_per_layer_input=128, hidden_size_per_layer_input=16,
        ),
    ),  # fmt: skip
    "qwen3_next": (  # linear attention beside full attention with an output gate
        "Qwen3NextConfig",
        dict(
            layer_types=["linear_attention", "full_attention"], linear_num_key_heads=2, linear_num_value_heads=2,
            linear_key_head_dim=16, linear_value_head_dim=16, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=32, shared_expert_intermediate_size=32,
        ),
    ),  # fmt: skip
    "gpt_oss": ("GptOssConfig", dict(ALTERNATING, num_local_experts=4, num_experts_per_tok=2)),  # sinks
    "mistral": ("MistralConfig", dict(sliding_window=24)),  # every layer slides: nothing is compressed
    "mistral_full": ("MistralConfig", dict(sliding_window=24, layer_types=["full_attention"] * 2)),  # with a window
}

# With heads that the fast kernels on CUDA take; others: head_dim=64.
WIDE = {
    "qwen2": dict(hidden_size=256),
    "qwen3": dict(head_dim=128),
    "phi3": dict(hidden_size=320),  # head_dim 80
    "gemma3": dict(head_dim=96),
    "gemma4": dict(head_dim=64, global_head_dim=256),
    "qwen3_next": dict(head_dim=128),
}
# Every expert: a choice of some would turn roundings of 16 bits into other experts.
SOFT_ROUTING = {"qwen3_next": dict(num_experts_per_tok=2), "gpt_oss": dict(num_experts_per_tok=4)}


def tiny_model(family="llama", seed=0, **changes):
    name, extra = FAMILIES[family]
    config = getattr(transformers, name)(**{**SHAPE, **extra, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    ).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("bias", "sinks")):  # they start at zero, or undefined
            parameter.data.normal_(0.0, 0.5)
    return model.to(where.DEVICE).requires_grad_(False)


def prompt(batch=1, tokens=80, seed=1, padding=()):
    """Token ids and attention mask; padding[i] tokens of sequence i are left padding."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, VOCABULARY, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row, count in enumerate(padding):
        ids[row, :count], mask[row, :count] = 0, 0
    return dict(input_ids=ids.to(where.DEVICE), attention_mask=mask.to(where.DEVICE))


def generate(model, implementation, cache, inputs, tokens=12, **options):
    """Greedy unless told otherwise. Returns generate's own output, with the logits of every step."""
    enable(model, implementation)
    options = dict(do_sample=False, max_new_tokens=tokens) | options
    return model.generate(
        **inputs, past_key_values=cache, return_dict_in_generate=True, output_logits=True, **options
    )
