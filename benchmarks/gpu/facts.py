# SPDX-License-Identifier: Apache-2.0
"""What a run is made on: the device and its clocks under load, versions, and the bandwidths that bound it."""

from __future__ import annotations

import datetime
import subprocess

import torch

from .timing import Clock

QUERY = ("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu", "driver_version")
LOAD_MS = 600  # of reads, while nvidia-smi looks


def other_processes() -> int | None:
    """How many programs compute on this GPU beside us: times then mean little. None: nvidia-smi does not say."""
    asked = ["nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader", f"--id={torch.cuda.current_device()}"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return max(0, len(answer.split()) - 1)


def device_facts(clock: Clock) -> dict:
    clock.warm(LOAD_MS)
    asked = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits", f"--id={torch.cuda.current_device()}"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=20).stdout.strip().splitlines()[0]
        under_load = dict(zip(QUERY, (field.strip() for field in answer.split(","))))
    except (OSError, subprocess.SubprocessError, IndexError):
        under_load = {}
    torch.cuda.synchronize()
    properties = torch.cuda.get_device_properties(0)
    return {
        "device": properties.name,
        "sm_count": properties.multi_processor_count,
        "l2_mb": properties.L2_cache_size >> 20,
        "driver": under_load.pop("driver_version", None),
        "under_load": under_load,  # MHz, W, degrees C
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "date": datetime.date.today().isoformat(),
    }


def bandwidths(clock: Clock) -> dict:
    """GB/s of a device-to-device copy, read and write counted, and of a sum, over most of 1 GiB.

    Source and target are not a power of two apart, where both would use the same banks of memory at a time. The copy is the faster
    one of cudaMemcpy and of an elementwise kernel.
    """
    elements = clock.buffer.numel() // 2 - (1 << 20)
    source, target = clock.buffer[:elements], clock.buffer[-elements - 33 * 2048 : -33 * 2048]
    ways = {"memcpy": lambda: target.copy_(source), "kernel": lambda: torch.mul(source, 1.0, out=target)}
    copies = {name: 2 * 4 * elements / clock.graph([way], 8)[0].median / 1e3 for name, way in ways.items()}
    read = 4 * clock.buffer.numel() / clock.graph([lambda: clock.buffer.sum()], 8)[0].median / 1e3
    return {"copy_gb_s": round(max(copies.values()), 1), "read_gb_s": round(read, 1)} | {
        f"copy_by_{name}_gb_s": round(rate, 1) for name, rate in copies.items()
    }
