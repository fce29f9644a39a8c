# SPDX-License-Identifier: Apache-2.0
"""The attention "turboquant" of transformers' AttentionInterface.

    model = turboquant.enable(model)
    cache = turboquant.TurboQuantCache(model.config)
    model.generate(**inputs, past_key_values=cache)

A query sees its own call's keys and values exactly, and older ones through the fringe and the pages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface

from .carrier import Carrier, Step
from .dense import dense_attention
from .static_layer import StaticHalf
from .static_mask import turboquant_mask

NAME = "turboquant"
# Arguments that some attention functions know and that would change the result here.
UNSUPPORTED = frozenset(("position_bias", "head_mask", "cu_seq_lens_q", "cu_seq_lens_k", "block_mask"))


@dataclass
class Options:
    scale: float
    softcap: float
    window: int
    sinks: torch.Tensor | None
    causal: bool
    dropout: float


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
    paired = isinstance(key, Carrier) and isinstance(value, Carrier) and key.step is value.step
    if not paired or key.step.dense is not None:  # or the model has looked at them: then they are tensors by now
        if isinstance(key, StaticHalf):
            options = _options(module, query, dropout, scaling, kwargs)
            return _attend_static(module, key, query, attention_mask, options), None
        key, value = (x.tensor() if isinstance(x, Carrier) else x for x in (key, value))
        options = _options(module, query, dropout, scaling, kwargs)
        return _exact(module, query, key, value, attention_mask, options), None

    if torch.is_grad_enabled():
        with torch.no_grad():
            return _attend_step(module, key.step, query, attention_mask, dropout, scaling, kwargs), None
    return _attend_step(module, key.step, query, attention_mask, dropout, scaling, kwargs), None


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
    layer = step.layer
    layer.check_pending(step)
    try:
        _check_inference(module)
        out = _attend(module, step, query, mask, _options(module, query, dropout, scaling, kwargs))
        if not step.stored:
            layer.attended(step, query)
    except BaseException:
        layer.forget(step)
        raise
    return out


def _attend_static(
    module: torch.nn.Module, key: StaticHalf, query: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    _check_inference(module)
    step = key.step
    with torch.no_grad():
        return step.layer.attention(
            step, query, mask, options, lambda: _exact(module, query, step.keys, step.values, mask, options)
        )


def _check_inference(module: torch.nn.Module) -> None:
    if module.training:
        raise NotImplementedError("TurboQuantCache is for inference: call model.eval(), or train with use_cache=False")


def _options(
    module: torch.nn.Module, query: torch.Tensor, dropout: float, scaling: float | None, kwargs: dict[str, Any]
) -> Options:
    if kwargs.get("output_attentions") or _wants_weights(module):
        raise NotImplementedError(
            "output_attentions: 'turboquant' never holds the attention weights; "
            "use model.set_attn_implementation('eager') to see them"
        )
    for name in UNSUPPORTED.intersection(kwargs):
        if kwargs[name] is not None:
            raise NotImplementedError(f"{name} is not supported by the attention 'turboquant': use 'sdpa' or 'eager'")
    causal = kwargs.get("is_causal")
    sinks = kwargs.get("s_aux")
    return Options(
        scale=query.shape[3] ** -0.5 if scaling is None else float(scaling),
        softcap=float(kwargs.get("softcap") or 0.0),
        window=int(kwargs.get("sliding_window") or 0),
        sinks=None if sinks is None else sinks.detach().float(),
        causal=getattr(module, "is_causal", True) if causal is None else bool(causal),
        dropout=dropout,
    )


def _wants_weights(module: torch.nn.Module) -> bool:
    """config.output_attentions. Its property costs as much as two operators, so the value is read beneath it."""
    config = getattr(module, "config", None)
    if torch.compiler.is_compiling():  # which knows properties, and not what is beneath them
        return bool(getattr(config, "output_attentions", False))
    return config is not None and bool(object.__getattribute__(config, "__dict__").get("_output_attentions"))


def _attend(
    module: torch.nn.Module, step: Step, query: torch.Tensor, mask: torch.Tensor | None, options: Options
) -> torch.Tensor:
    layer, history, tokens = step.layer, step.history, step.tokens
    if query.shape[2] != tokens:
        raise ValueError(f"{query.shape[2]} queries came with {tokens} keys of their own: their numbers must be equal")
    plain = options.causal or tokens == 1
    if mask is not None:
        view = layer.settings.masks.read(mask, layer.batch, history, tokens, options.window, layer.starts)
        layer.set_starts(view.starts)
        plain = view.plain
    elif layer.starts_tensor is not None:
        raise ValueError(
            f"the cached sequences begin with padding (first real positions: {list(layer.starts)}): "
            "pass attention_mask with every call"
        )
    if history == 0:
        return _exact(module, query, step.keys, step.values, mask, options)
    if layer.held is not None:
        keys, values = layer.with_history(step)
        if mask is None and tokens > 1:  # which SDPA would align to the first key
            return _dense(query, keys, values, mask, options)
        return _exact(module, query, keys, values, mask, options)
    if plain:
        return layer.attend(step, query, options.scale, options.softcap, options.window, options.sinks)
    layer.settings.warn_once(
        "mask",
        "This attention_mask is more than causal with left padding, so each such call dequantises the whole history: "
        "right, but slow. Pad on the left, and one sequence a row.",
    )
    keys, values = layer.with_history(step)
    return _dense(query, keys, values, mask, options)


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
