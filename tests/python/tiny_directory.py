# SPDX-License-Identifier: Apache-2.0
"""A random model as a directory with weights and a tokenizer, or as a GGUF file, which commands take by path."""

import string

import gguf
from tiny_models import VOCABULARY, tiny_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode


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


def save_gguf(path, model):
    """A llama with a vocabulary of at least 256, as llama.cpp writes it: the tokens are bytes and two merges. fp32, so nothing is lost."""
    config, bytes_ = model.config, [bytes_to_unicode()[i] for i in range(256)]
    heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}
    out = gguf.GGUFWriter(path, "llama")
    for name, value in dict(
        block_count=config.num_hidden_layers, context_length=config.max_position_embeddings, embedding_length=config.hidden_size,
        feed_forward_length=config.intermediate_size, head_count=heads["q"], head_count_kv=heads["k"], vocab_size=config.vocab_size,
        key_length=config.head_dim, rope_dimension_count=config.head_dim,
    ).items():  # fmt: skip
        getattr(out, f"add_{name}")(value)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_tokenizer_model("gpt2")
    out.add_token_list([*bytes_, "th", "the", *(f"<{i}>" for i in range(258, config.vocab_size))])
    out.add_token_merges(["t h", "th e"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        for side in "qk":
            if f"{side}_proj" in name:  # llama.cpp rotates neighbours
                weight = weight.view(heads[side], 2, config.head_dim // 2, -1).transpose(1, 2).reshape(weight.shape)
        out.add_tensor(names.get_name(name, (".weight",)), weight.contiguous().numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path
