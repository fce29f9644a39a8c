# SPDX-License-Identifier: Apache-2.0
"""The recipe in plain fp32 torch, with switches that the product does not have, and without its key metric. For ablations and ideas only: a test holds it to
the product's codec where both can do the same.

Bytes are those of codes, scales and centres without a page's padding.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fidelity import feedback, focus
from fidelity.codec import Coded, Layer
from turboquant import ops
from turboquant.settings import sign_seed

# Candidates of encode: what the largest coordinate is meant to be, over the largest centroid (src/core/tables.h).
TOPS = {4: (0.99, 1.06, 1.13), 3: (1.0, 1.1, 1.2, 1.3, 1.4, 1.55), 2: (1.35, 1.55, 1.75, 1.95, 2.15, 2.5)}


@dataclass(frozen=True)
class Sketch:
    """`rotation`: "hadamard" or "dense". `centre`: "page", "previous" (the mean of the previous page's decoded keys), "sequence" or
    "none". `choice`: a token may take 0 for its reference. `balance`: "first 128", "whole text" or "off". `scale`: what is stored
    beside the codes: "norm" (but "unbiased" for values of 3 and 2 bits, as the product), "plain", "least squares" or "unbiased".
    `value_centre`: the same centre and choice for values.
    `previous_share`: of the previous page's mean in a "previous" centre, the rest being that page's own centre. `median`: for mean.
    `feedback`: keys coded by feedback.py with the queries of the "first 128" tokens, of the "whole text", or "off"; `focus`: the same
    for focus.py, or "calibrated" with the queries of `calibration`'s layers."""

    k_bits: int = 4
    v_bits: int = 4
    rotation: str = "hadamard"
    centre: str = "page"
    choice: bool = True
    balance: str = "first 128"
    search: bool = True
    scale: str = "norm"
    page: int = 64
    value_centre: bool = False
    value_choice: bool = True
    value_balance: bool = False
    feedback: str = "off"
    focus: str = "off"
    calibration: Sequence[Layer] = ()
    seed: int = 0
    previous_share: float = 1.0
    median: bool = False

    def __call__(self, layer: Layer) -> Coded:
        heads, tokens, dim = layer.keys.shape
        balance = _balance(layer, self.balance)
        seed = sign_seed(self.seed, layer.index, False)
        metrics = []
        for which in (self.feedback, self.focus):
            seen = slice(0, 128) if which == "first 128" else slice(None)
            source = self.calibration[layer.index] if which == "calibrated" else layer
            query = (source.query.unflatten(0, (heads, -1))[:, :, seen] * balance[:, None]).flatten(1, 2)
            metrics.append(None if which == "off" else feedback.metric(_rotate(query, self.rotation, seed)))
        keys, key_bytes = self._round_trip(layer.keys / balance, self.k_bits, self.centre, self.choice, seed, *metrics)
        values = layer.values
        spread = torch.ones_like(values[:, :1])
        if self.value_balance:  # towards equal channels, half way
            spread = values[:, :128].square().mean(1, keepdim=True).sqrt().clamp_min(1e-6).sqrt()
            spread = spread / spread.mean(-1, keepdim=True)
        centre = "page" if self.value_centre else "none"
        scale = "unbiased" if self.scale == "norm" and self.v_bits < 4 else self.scale
        values, value_bytes = self._round_trip(
            values / spread, self.v_bits, centre, self.value_choice, sign_seed(self.seed, layer.index, True), scale=scale
        )
        return Coded(keys * balance, values * spread, heads * (key_bytes + value_bytes))

    def _round_trip(
        self, x: Tensor, bits: int, centre: str, choice: bool, seed: int, metric: Tensor | None = None, looked_at: Tensor | None = None,
        scale: str | None = None,
    ) -> tuple[Tensor, int]:
        """[heads, tokens, dim] and bytes of one head."""
        heads, tokens, dim = x.shape
        y = _rotate(x, self.rotation, seed)
        pages = -(-tokens // self.page)
        nbytes = tokens * (dim * bits // 8 + 2) + (0 if centre == "none" else pages * (dim + 2))
        if centre == "previous":
            parts, c = [], None
            for part in y.split(self.page, dim=1):
                if c is None:
                    c = torch.zeros_like(part[:, :1])
                else:
                    mean, share = parts[-1].mean(1, keepdim=True), self.previous_share if len(parts) > 1 else 1.0
                    c = _stored_centre(share * mean + (1 - share) * c)
                parts.append(self._code(part, c, choice, bits))
            return _rotate_back(torch.cat(parts, 1), self.rotation, seed), nbytes
        if centre == "none":
            c = torch.zeros_like(y[:, :1])
        elif centre == "sequence":
            c = _stored_centre(y.mean(1, keepdim=True))
        else:
            find = _page_median if self.median else _page_centre
            c = torch.cat([_stored_centre(find(part, choice)).expand_as(part) for part in y.split(self.page, dim=1)], 1)
        return _rotate_back(self._code(y, c, choice and centre != "none", bits, metric, looked_at, scale), self.rotation, seed), nbytes

    def _code(
        self, y: Tensor, centre: Tensor, choice: bool, bits: int, metric: Tensor | None = None, looked_at: Tensor | None = None,
        scale: str | None = None,
    ) -> Tensor:
        reference = centre.expand_as(y)
        if choice:
            nearer = (y - centre).norm(dim=-1, keepdim=True) <= y.norm(dim=-1, keepdim=True)
            reference = torch.where(nearer, reference, 0.0)
        u = y - reference
        norm = u.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        along = None if looked_at is None else focus.direction(looked_at)
        codes = best_codes(u / norm, bits, self.search, along)
        squared = codes.square().sum(-1, keepdim=True)
        along = (codes * u).sum(-1, keepdim=True)
        stored = {
            "norm": norm / squared.sqrt(), "plain": norm, "least squares": along / squared, "unbiased": norm.square() / along,
        }[scale or self.scale]  # fmt: skip
        stored = stored.half().float()
        if metric is not None:
            codes = feedback.codes(u, stored, metric, *(x.to(u.device) for x in _codebook(u.shape[-1], bits)))
        return reference + codes * stored


def best_codes(unit: Tensor, bits: int, search: bool, along: Tensor | None = None) -> Tensor:
    """The centroids of each coordinate, at the candidate scale with the best cosine, or the least error with `along`'s part counted
    more; without a search, of the vector as it is."""
    centroids, boundaries = _codebook(unit.shape[-1], bits)
    centroids, boundaries = centroids.to(unit.device), boundaries.to(unit.device)
    if not search:
        return centroids[torch.bucketize(unit, boundaries)]
    largest = unit.abs().amax(-1, keepdim=True).clamp_min(1e-30)
    best, codes = torch.full_like(unit[..., :1], -torch.inf), torch.zeros_like(unit)
    for top in TOPS[bits]:
        candidate = centroids[torch.bucketize(unit * (top * float(centroids[-1]) / largest), boundaries)]
        length = candidate.norm(dim=-1, keepdim=True)
        cosine = (candidate * unit).sum(-1, keepdim=True) / length
        if along is not None:
            cosine = cosine - ((unit - candidate / length) @ along.mT).square() / 2
        better = cosine > best
        best, codes = torch.where(better, cosine, best), torch.where(better, candidate, codes)
    return codes


@functools.cache
def _codebook(dim: int, bits: int) -> tuple[Tensor, Tensor]:
    centroids, boundaries, _ = ops.lloyd_max(dim, bits)
    return centroids.float(), boundaries.float()


def _balance(layer: Layer, how: str) -> Tensor:
    """[kv_heads, 1, head_dim]."""
    if how == "off":
        return torch.ones_like(layer.keys[:, :1])
    seen = slice(0, 128) if how == "first 128" else slice(None)
    query, keys = (x[:, seen].transpose(0, 1).contiguous() for x in (layer.query, layer.keys))
    step = min(128, len(keys))
    starts = torch.arange(0, len(keys) // step * step + 1, step, dtype=torch.int32, device=keys.device)
    return ops.balance(query[: int(starts[-1])], keys[: int(starts[-1])], starts)[:, None]


def _page_centre(part: Tensor, choice: bool) -> Tensor:
    mean = part.mean(1, keepdim=True)
    if not choice:
        return mean
    chosen = ((part - mean).norm(dim=-1, keepdim=True) <= part.norm(dim=-1, keepdim=True)).float()
    return (part * chosen).sum(1, keepdim=True) / chosen.sum(1, keepdim=True).clamp_min(1)


def _page_median(part: Tensor, choice: bool) -> Tensor:
    return part.median(1, keepdim=True).values


def _stored_centre(c: Tensor) -> Tensor:
    step = (c.abs().amax(-1, keepdim=True) / 127).half().float()
    return torch.where(step > 0, (c / step).round().clamp(-127, 127), 0.0) * step


def _matrix(dim: int, rotation: str, seed: int) -> Tensor:
    """Rows: the rotated basis vectors, so that y = x @ matrix."""
    if rotation == "dense":
        generator = torch.Generator().manual_seed(seed)
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        return (q * r.diagonal().sign()).float()
    base = ops.hadamard_base(dim) if ops.hadamard_base_size(dim) > 1 else None
    return ops.rotate(torch.eye(dim)[:, None], ops.random_signs(dim, seed)[None], base)[:, 0]


def _rotate(x: Tensor, rotation: str, seed: int) -> Tensor:
    return x @ _matrix(x.shape[-1], rotation, seed).to(x.device)


def _rotate_back(y: Tensor, rotation: str, seed: int) -> Tensor:
    return y @ _matrix(y.shape[-1], rotation, seed).to(y.device).T
