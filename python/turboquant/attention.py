# SPDX-License-Identifier: Apache-2.0
"""The attention "turboquant" of transformers' AttentionInterface.

    model = turboquant.enable(model)
    cache = turboquant.TurboQuantCache(model.config)
    model.generate(**inputs, past_key_values=cache)

A query sees its own call's keys and values exactly, and older ones through the fringe and the pages.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from .carrier import Carrier, Step
from .dense import dense_attention
from .options import LastOptions, Options, check_inference, read_options
from .static_layer import StaticHalf
from .static_mask import turboquant_mask

NAME = "turboquant"


def turboquant_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor | Carrier | StaticHalf,
    value: torch.Tensor | Carrier | StaticHalf,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """query [batch, q_heads, tokens, head_dim] -> [batch, tokens, q_heads, head_dim]. Inference only: with a
    TurboQuantCache, no gradient flows through the result."""
    if type(key) is Carrier and type(value) is Carrier and (step := key.step) is value.step and step.dense is None:
        layer = step.layer
        if layer.pending is not step:
            layer.refuse(step)
        try:
            if not torch.is_grad_enabled():
                return _attend_step(module, step, query, attention_mask, dropout, scaling, kwargs), None
            with torch.no_grad():
                return _attend_step(module, step, query, attention_mask, dropout, scaling, kwargs), None
        except BaseException:
            layer.forget(step)
            raise
    if isinstance(key, StaticHalf):
        options = read_options(module, query, dropout, scaling, kwargs)
        return _attend_static(module, key, query, attention_mask, options), None
    key, value = (x.tensor() if isinstance(x, Carrier) else x for x in (key, value))  # the model has looked at them
    options = read_options(module, query, dropout, scaling, kwargs)
    return _exact(module, query, key, value, attention_mask, options), None


def enable(model: PreTrainedModel, name: str = NAME) -> PreTrainedModel:
    """Lets the model's text layers attend with "turboquant" (vision and audio parts stay as they are).
    Without a TurboQuantCache it computes what "sdpa" computes, with softcap and sinks honoured. `name`: another
    attention that is registered, for the same layers."""
    config = model.config
    text = config.get_text_config(decoder=True)
    if text is config:
        model.set_attn_implementation(name)
    else:
        model.set_attn_implementation({part: name for part in config.sub_configs if getattr(config, part) is text})
    if text._attn_implementation != name:
        raise NotImplementedError(
            f"{type(model).__name__} does not take its attention from transformers' AttentionInterface, so it cannot "
            "attend to compressed pages: use transformers' DynamicCache"
        )
    return model


def _attend_step(
    module: torch.nn.Module,
    step: Step,
    query: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    if module.training:
        check_inference(module)
    layer = step.layer
    last = layer.options
    if last is None or not last.are(dropout, scaling, kwargs):
        last = layer.options = LastOptions(module, query, dropout, scaling, kwargs)
    options = last.options
    plain = step.tokens == 1 or options.causal
    if mask is not None:
        view = layer.settings.masks.read(mask, layer.batch, step.history, step.tokens, options.window, layer.starts)
        layer.set_starts(view.starts)
        plain = view.plain
    elif layer.starts_tensor is not None:
        raise ValueError(
            f"the cached sequences begin with padding (first real positions: {list(layer.starts)}): "
            "pass attention_mask with every call"
        )
    coded = step.history and layer.held is None
    if coded and layer.growth is not None:
        layer.grow(step, query)
    if coded and plain and (out := layer.attend_again(step, query, options)) is not None:
        return out
    if query.shape[2] != step.tokens:
        raise ValueError(f"{query.shape[2]} queries came with {step.tokens} keys of their own: their numbers must be equal")
    if not step.history:
        out = _exact(module, query, step.keys, step.values, mask, options)
    elif not coded:
        keys, values = layer.with_history(step)
        # SDPA would align the call's queries to the first key.
        aligned = mask is not None or step.tokens == 1
        out = _exact(module, query, keys, values, mask, options) if aligned else _dense(query, keys, values, mask, options)
    elif plain:
        out = layer.attend(step, query, options)
    else:
        layer.settings.warn_once(
            "mask",
            "This attention_mask is more than causal with left padding, so each such call dequantises the whole history: "
            "right, but slow. Pad on the left, and one sequence a row.",
        )
        keys, values = layer.with_history(step)
        out = _dense(query, keys, values, mask, options)
    if not step.stored:
        layer.attended(step, query)
    return out


def _attend_static(
    module: torch.nn.Module, key: StaticHalf, query: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    check_inference(module)
    step = key.step
    with torch.no_grad():
        return step.layer.attention(
            step, query, mask, options, lambda: _exact(module, query, step.keys, step.values, mask, options)
        )


def _exact(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    options: Options,
) -> torch.Tensor:
    """Attention over tensors as they are: torch's SDPA where it knows what is asked."""
    tokens, keys = query.shape[2], key.shape[2]
    windowed = mask is None and 0 < options.window < keys
    if not options.softcap and options.sinks is None and not windowed:
        out, _ = sdpa_attention_forward(
            module, query, key, value, mask, options.dropout, options.scale, is_causal=options.causal
        )
        return out
    if mask is None and 1 < tokens < keys and options.causal:  # as SDPA: the rest of a static cache is empty
        key, value = key[:, :, :tokens], value[:, :, :tokens]
    return _dense(query, key, value, mask, options)


def _dense(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    out = dense_attention(
        query, key, value, mask, options.scale, options.softcap, options.sinks, options.window,
        options.causal, options.dropout,
    )  # fmt: skip
    return out.transpose(1, 2).contiguous()


AttentionInterface.register(NAME, turboquant_attention)
AttentionMaskInterface.register(NAME, turboquant_mask)  # without it, masks would be dropped in silence
