# SPDX-License-Identifier: Apache-2.0
"""A deep model does not drift: 36 layers, a prefill of 1,024 tokens, 32 decoded ones.

Two runs of a random model, apart in attention alone: `attend` on pages, and torch's attention in fp32 over the same
pages decoded. Each carries its own hidden state; the second's history is what the first stored, so that both see
the same codes, and the difference is arithmetic. Everything but the attention's inputs and outputs is fp32.

The bound. Query, own key and value and output are rounded to bf16 (a relative 2^-8 at most, 2^-8 / sqrt(3) rms, of
values that differ between the runs) and attend errs by less than that (attend_bound.h), so a branch is off by
e <= 4 * 2^-8 / sqrt(3) = 0.009 of its norm. Branches of one norm b add to the residual stream, errors of different
layers are independent, so the stream of norm b sqrt(L) is off by e b sqrt(L) of fresh errors: e of its norm. A
later layer sees that e and, a normed linear map and an average being no more than 1-Lipschitz on it in this
model, passes at most e b on: the stream's error grows by a factor of at most 1 + 1 / layer, so to e times
(1 + ... + 1/L) < 4.2 e = 0.038. cosine >= 1 - 0.038^2 / 2 = 0.9993.
"""

import torch
from moved import to_cuda
from paged import int32

from turboquant import ops

LAYERS, PREFILL, STEPS = 36, 1024, 32
KV_HEADS, GROUP, HEAD_DIM, FIRST, RECENT = 2, 4, 128, 4, 28
HIDDEN = KV_HEADS * GROUP * HEAD_DIM
DTYPE = torch.bfloat16


def norm(x):
    return x * x.square().mean(-1, keepdim=True).rsqrt()


class Layer:
    def __init__(self, generator):
        def weight(columns):
            return torch.randn(HIDDEN, columns, generator=generator, device="cuda") * HIDDEN**-0.5

        kv = KV_HEADS * HEAD_DIM
        self.query, self.key, self.value, self.out = weight(HIDDEN), weight(kv), weight(kv), weight(HIDDEN)
        pages = -(-(PREFILL + STEPS) // 64)
        self.pages = torch.zeros(pages, KV_HEADS, ops.page_bytes(HEAD_DIM, 4, 4), dtype=torch.uint8, device="cuda")
        self.table = torch.randperm(pages, device="cuda", generator=generator).int()[None]
        self.fringe = torch.zeros(1, KV_HEADS, FIRST + RECENT, 2, HEAD_DIM, dtype=torch.float16, device="cuda")
        signs = [torch.stack([ops.random_signs(HEAD_DIM, 2 * h + kind) for h in range(KV_HEADS)]) for kind in range(2)]
        self.signs, self.value_signs = (s.cuda() for s in signs)

    def rows(self, x):
        x = norm(x)
        return [(x @ w).to(DTYPE).view(len(x), -1, HEAD_DIM) for w in (self.query, self.key, self.value)]

    def attend(self, x, length):
        query, key, value = self.rows(x)
        starts, lengths = int32(0, len(x)).cuda(), int32(length).cuda()
        recent = int32(0).cuda()
        out, _ = ops.attend(
            query, key, value, starts, self.pages, self.table, lengths, None, self.fringe, recent, self.signs,
            self.value_signs, None, None, 4, 4, FIRST, HEAD_DIM**-0.5,
        )  # fmt: skip
        ops.encode(
            key, value, starts, self.table, lengths, None, self.pages, self.fringe, recent, self.signs,
            self.value_signs, None, 4, 4, FIRST, settled=True,
        )  # fmt: skip
        return x + out.reshape(len(x), HIDDEN).float() @ self.out

    def history(self, length):
        return ops.decode(
            self.pages, self.table, int32(length).cuda(), None, self.fringe, int32(0).cuda(), self.signs,
            self.value_signs, None, HEAD_DIM, 4, 4, FIRST, length,
        )  # fmt: skip

    def attend_unfused(self, x, history):
        query, key, value = self.rows(x)
        keys, values = (
            torch.cat([old[0], own.float().transpose(0, 1)], dim=1) for old, own in zip(history, (key, value))
        )
        tokens = len(x)
        mask = torch.ones(tokens, keys.shape[1], dtype=torch.bool, device="cuda").tril(keys.shape[1] - tokens)
        out = torch.nn.functional.scaled_dot_product_attention(
            query.float().transpose(0, 1)[None], keys[None], values[None], attn_mask=mask, enable_gqa=True
        )
        return x + out[0].transpose(0, 1).reshape(tokens, HIDDEN) @ self.out


def test_36_layers_stay_with_the_unfused_model():
    generator = torch.Generator("cuda").manual_seed(1)
    layers = [Layer(generator) for _ in range(LAYERS)]
    length = 0
    for step in range(STEPS + 1):
        tokens = PREFILL if step == 0 else 1
        ours = theirs = torch.randn(tokens, HIDDEN, generator=generator, device="cuda")
        for layer in layers:
            history = layer.history(length)  # before the step's tokens are stored
            ours = layer.attend(ours, length)
            theirs = layer.attend_unfused(theirs, history)
        length += tokens
        cosine = torch.nn.functional.cosine_similarity(ours, theirs, dim=-1).min()
        assert cosine > 0.999, f"step {step}: {float(cosine)}"
