# SPDX-License-Identifier: Apache-2.0
"""A needle in a haystack: a sentence with a number is put into the novel at a depth, and asked for at the end. Teacher-forced in one
pass: the answer is found if each of its tokens is the most likely one. With it, the answer's mean log-likelihood, which says more where
a small model does not find it even with a 16-bit cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fidelity.attention import Study, attending
from fidelity.texts import TEXTS
from turboquant.benchmark.models import Subject

NEEDLE = "\n\nThe secret number of the lighthouse is {number}. Remember it.\n\n"
QUESTION = "\n\nQuestion: What is the secret number of the lighthouse?\nAnswer: The secret number of the lighthouse is"
ANSWER = " {number}"
NUMBER = 73915


def prompt(tokenizer: object, length: int, depth: float) -> tuple[Tensor, int]:
    """Token ids of haystack, needle and question, `length` in all with the answer, and the answer's number of tokens."""
    text = TEXTS["novel"].path.read_text(encoding="utf-8")

    def ids(string: str) -> Tensor:
        return tokenizer(string, return_tensors="pt", add_special_tokens=False)["input_ids"][0]

    needle, question, answer = ids(NEEDLE.format(number=NUMBER)), ids(QUESTION), ids(ANSWER.format(number=NUMBER))
    room = length - len(needle) - len(question) - len(answer)
    hay = ids(text)[:room]
    at = int(depth * room)
    return torch.cat([hay[:at], needle, hay[at:], question, answer]), len(answer)


@torch.no_grad()
def measure(subject: Subject, study: Study | None, length: int, depth: float) -> dict:
    tokens, count = prompt(subject.tokenizer, length, depth)
    with attending(subject.model, study):
        on_device = tokens[None].to(subject.model.device)
        logits = subject.model(input_ids=on_device, use_cache=False, logits_to_keep=count + 1).logits[0, :-1].cpu()
    answer = tokens[-count:]
    likelihood = logits.double().log_softmax(-1).gather(1, answer[:, None])[:, 0]
    return {"tokens": len(tokens), "depth": depth, "found": bool((logits.argmax(-1) == answer).all()), "log_likelihood": float(likelihood.mean())}
