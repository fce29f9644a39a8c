# SPDX-License-Identifier: Apache-2.0
"""A random model as a directory with weights and a tokenizer, which commands take by path."""

import string

from tiny_models import VOCABULARY, tiny_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def character_tokenizer():
    letters = string.printable[:VOCABULARY - 1]
    tokenizer = Tokenizer(models.WordLevel({"?": 0} | {letter: i + 1 for i, letter in enumerate(letters) if letter != "?"}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?")


def save(directory, model=None):
    model = model or tiny_model("llama")
    model.save_pretrained(directory)
    character_tokenizer().save_pretrained(directory)
    return directory
