# SPDX-License-Identifier: Apache-2.0
"""What a figure depends on besides the code: device, versions, the model's shape."""

from __future__ import annotations

import platform
from pathlib import Path

import torch
import transformers

import turboquant
from turboquant.benchmark.models import Subject


def describe_device(device: torch.device) -> dict[str, object]:
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return {"type": "cuda", "name": properties.name, "memory_bytes": properties.total_memory}
    return {"type": "cpu", "name": _cpu_name(), "isa": torch.backends.cpu.get_cpu_capability()}


def versions() -> dict[str, str | None]:
    return {
        "python": platform.python_version(), "torch": str(torch.__version__), "cuda": torch.version.cuda,
        "turboquant": turboquant.__version__, "transformers": transformers.__version__,
    }  # fmt: skip


def describe_model(subject: Subject) -> dict[str, object]:
    model = subject.model
    text = model.config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    return {
        "name": subject.name,
        "type": model.config.model_type,
        "parameters": sum(p.numel() for p in model.parameters()),
        "layers": text.num_hidden_layers,
        "q_heads": heads,
        "kv_heads": getattr(text, "num_key_value_heads", None) or heads,
        "head_dim": getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None),
        "dtype": str(model.dtype).removeprefix("torch."),
    }


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
