# SPDX-License-Identifier: Apache-2.0
"""What the layers of a TurboQuantStaticCache share: lengths, page table, workspace, all on the device and at fixed addresses."""

from __future__ import annotations

import torch

from .pages import PAGE_TOKENS
from .settings import CacheSettings

REMEDY = "call cache.reset(), or use a new cache"


def fixed(tensor: torch.Tensor) -> torch.Tensor:
    """Says that the tensor stays where it is: else CUDA graphs would copy it in, or give up where it is written."""
    torch._dynamo.mark_static_address(tensor)
    return tensor


allocates = torch._dynamo.disable(
    reason="a TurboQuantStaticCache allocates in its first call: make that one without torch.compile, or call "
    "cache.early_initialization(...) before"
)


@torch._dynamo.assume_constant_result
def _frozen() -> bool:
    """Whether inductor is to take what a step reads and does not write as constants: signs, metric, table, of one cache."""
    return torch._inductor.config.freezing and not torch.is_grad_enabled()


class StaticState:
    """Sequences of one (padded) length, each in pages of its own, which follow one another.

    `lengths` moves once a call, by the last layer, so a call that fails between layers leaves the cache as it was.
    A compiled function or a captured graph moves it without the host, so it cannot be an error there that too many tokens
    come: `lengths` then stops at `max_tokens + 1`. The table's last column is a page that takes what is written there, and
    `length()` is an error.
    """

    def __init__(self, max_tokens: int, settings: CacheSettings, readers: dict[int, int], others: bool) -> None:
        """`readers`: of each compressed layer, by its index, how many layers attend to each update: itself, and those that share
        its KV."""
        self.max_tokens = max_tokens
        self.widths = (settings.k_bits, settings.v_bits, settings.fringe_first)
        self.fringe_recent = settings.fringe_recent
        self.first, self.last = min(readers, default=None), max(readers, default=None)
        self.readers = None if set(readers.values()) <= {1} else readers  # None: one each
        self.pages = -(-max_tokens // PAGE_TOKENS)  # of each sequence
        self.batch = 0  # 0: nothing is allocated
        self.empty = True  # no call has stored tokens
        self.padded: bool | None = False  # sequences begin with padding, so calls need masks; None: the host does not know
        self.known: int | None = 0  # the length, where the host knows it
        self.captured = False  # a CUDA graph may move `lengths` at any time, and has these addresses
        self.open = 0  # tokens of a call that began and has not ended
        self.others = others  # the cache has layers of other kinds, which keep what a failed call gave them
        self.reported = False  # `length()` has raised already

    def allocate(self, batch: int, device: torch.device) -> None:
        pages = torch.arange(batch * self.pages, dtype=torch.int32).view(batch, self.pages)
        unread = torch.full((batch, 1), batch * self.pages, dtype=torch.int32)
        self.batch, self.device = batch, device
        self.table = fixed(torch.cat([pages, unread], dim=1).to(device))
        self.lengths, self.starts, self.recent_starts = (
            fixed(torch.zeros(batch, dtype=torch.int32, device=device)) for _ in range(3)
        )
        self.mask_changed = fixed(torch.zeros(1, dtype=torch.bool, device=device))
        self.row_of = fixed(torch.arange(batch + 1, dtype=torch.int32, device=device))
        self.workspace: torch.Tensor | None = None

    def reserve_workspace(self, size: int) -> None:
        if self.workspace is None or self.workspace.shape[0] < size:
            self.workspace = fixed(torch.zeros(size, dtype=torch.uint8, device=self.device))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        if self.batch == 0:
            return ()
        return self.table, self.lengths, self.starts, self.recent_starts, self.mask_changed, self.row_of

    def token_starts(self, tokens: int) -> torch.Tensor:
        return self.row_of if tokens == 1 else self.row_of * tokens

    # A call: begin by the first layer, advance by the last.

    def readers_of(self, index: int) -> int:
        return 1 if self.readers is None else self.readers[index]

    def begin(self, tokens: int) -> None:
        """What the host can know before anything is written."""
        if self.open and self.others:
            raise RuntimeError(f"a call failed between layers, and those that slide or are linear hold its tokens: {REMEDY}")
        if self.open:  # the call before this one failed, and the ring of newest tokens holds some of its
            self.recent_starts.copy_(torch.maximum(self.recent_starts, self.lengths + (self.open - self.fringe_recent)))
        seen, needed = not self.unseen(), tokens
        if seen:
            if tokens > 1 and not self.empty:
                self.length()
            needed += self.known or 0
        if needed > self.max_tokens:
            raise ValueError(f"{needed} tokens do not fit into max_tokens={self.max_tokens}: build the cache with more")
        if seen:
            self.open = tokens

    def position(self, tokens: int) -> torch.Tensor:
        """Where the call's tokens go: `lengths`, and in any case where pages are."""
        return self.lengths if tokens < PAGE_TOKENS else self.lengths.clamp(max=self.max_tokens - tokens)

    def advance(self, tokens: int) -> None:
        self.lengths.add_(tokens).clamp_(max=self.max_tokens + 1)
        self.empty, self.open = False, 0
        if self.unseen():
            self.known = None
        elif self.known is not None:
            self.known += tokens

    def unseen(self) -> bool:
        """This call will be made again without the host: torch.compile traces it, or a graph captures it."""
        if torch.compiler.is_compiling():
            if _frozen():
                raise NotImplementedError(
                    "torch._inductor.config.freezing (TORCHINDUCTOR_FREEZING=1) would make constants of the cache's signs and tables, and "
                    "compute with them for every later cache: turn it off; turboquant.join_projections(model) joins products without it"
                )
            return True
        capturing = self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()
        self.captured = self.captured or capturing
        return capturing

    # Between calls. These read the device.

    def length(self) -> int:
        """The length; RuntimeError where a call went wrong on the device."""
        if self.empty and not self.captured:
            return 0
        length, mask_changed = torch.cat([self.lengths[:1], self.mask_changed.int()]).tolist()
        if length > self.max_tokens:
            self.reported = True
            raise RuntimeError(
                f"a compiled or captured call brought more tokens than max_tokens={self.max_tokens}, and all output from there on "
                f"is wrong: build the cache with more; {REMEDY}"
            )
        if mask_changed:
            self.reported = True
            raise RuntimeError(
                "the attention_mask of a call did not go on from that of the first: the first call's left padding, then ones. "
                f"Output from that call on is wrong; {REMEDY}"
            )
        self.known = None if self.captured else length
        return length

    def set_length(self, length: int, kept: int) -> None:
        """Forgets positions from `kept` on, of `length`."""
        self.lengths.fill_(kept)
        # The ring holds what it held: the newest tokens before.
        self.recent_starts.clamp_(min=max(length + self.open - self.fringe_recent, 0)).clamp_(max=kept)
        self.starts.clamp_(max=kept)
        self.open, self.known = 0, None if self.captured else kept
        self.empty = kept == 0

    def clear(self) -> None:
        for tensor in (self.lengths, self.starts, self.recent_starts, self.mask_changed):
            tensor.zero_()
        self.empty, self.padded, self.known, self.open, self.reported = True, False, 0, 0, False

    def select(self, index: torch.Tensor) -> None:
        """Sequence i becomes a copy of what sequence index[i] was."""
        kept = [x.index_select(0, index) for x in (self.lengths, self.starts, self.recent_starts)]
        if len(index) != self.batch:
            mask_changed, size = self.mask_changed, 0 if self.workspace is None else self.workspace.shape[0]
            self.allocate(len(index), self.device)
            self.mask_changed.copy_(mask_changed)
            self.reserve_workspace(size)
        for tensor, value in zip((self.lengths, self.starts, self.recent_starts), kept):
            tensor.copy_(value)
