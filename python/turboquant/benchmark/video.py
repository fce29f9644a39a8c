# SPDX-License-Identifier: Apache-2.0
"""Videos, decoded by PyAV: its wheels bring FFmpeg along, which transformers' own choice (torchcodec) looks for on the system."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from transformers.video_utils import VideoMetadata

from turboquant.benchmark.errors import BenchmarkError


def decode_with_pyav(processor: object) -> None:
    """Makes a processor's chat template read its videos here."""
    try:
        import av  # noqa: F401
    except ImportError as error:
        raise BenchmarkError("videos are decoded by PyAV, which is missing: pip install av") from error
    processor.video_processor.fetch_videos = fetch_videos


def fetch_videos(files: str | list, sample_indices_fn: Callable | None = None) -> tuple:
    """As BaseVideoProcessor.fetch_videos: (frames, metadata), each a list of what it is for one where `files` is a list."""
    if isinstance(files, list):
        return list(zip(*(fetch_videos(file, sample_indices_fn) for file in files)))
    return read_video(files, sample_indices_fn)


def read_video(file: str, sample_indices_fn: Callable | None = None) -> tuple[np.ndarray, VideoMetadata]:
    """Frames uint8 [frames, height, width, 3], all or those that `sample_indices_fn(metadata=...)` names."""
    import av

    with av.open(file) as container:
        if not container.streams.video:
            raise ValueError(f"{file!r} holds no video stream")
        stream = container.streams.video[0]
        # Some containers do not say how many frames they hold.
        count = stream.frames or sum(1 for _ in container.decode(video=0))
        rate, height, width = float(stream.average_rate or 24), stream.height, stream.width
    metadata = VideoMetadata(
        total_num_frames=count, fps=rate, duration=count / rate, video_backend="pyav", height=height, width=width
    )
    indices = list(range(count)) if sample_indices_fn is None else [int(i) for i in sample_indices_fn(metadata=metadata)]
    wanted, frames = set(indices), {}
    with av.open(file) as container:
        for i, frame in enumerate(container.decode(video=0)):
            if i in wanted:
                frames[i] = frame.to_ndarray(format="rgb24")
            if i >= max(wanted):
                break
    metadata.frames_indices = indices = [i for i in indices if i in frames]  # a broken file ends early
    if not indices:
        raise ValueError(f"no frame of {file!r} can be decoded")
    return np.stack([frames[i] for i in indices]), metadata
