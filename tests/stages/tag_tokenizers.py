"""Tokenizers for the tests of the tag protocol, made on the spot."""

from functools import cache
from typing import Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from schemas.config import PolicyConfig
from stages.cold_start.tiny_policy import make_tokenizer
from stages.dialogue.tags import TAGS

END = "<end>"
START = "<start>"


@cache
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Returns an embedded tokenizer; shared, so only read it."""
    texts = ["Take 12. Multiply it by 7.", "product print(12 * 7) 84"]
    return make_tokenizer(texts, PolicyConfig(vocabulary_size=320))


def foreign_tokenizer(
    *, tags: Literal["absent", "special", "plain", "vocabulary"], start: bool = False
) -> PreTrainedTokenizerFast:
    """Returns a byte-level tokenizer as a given policy may bring it.

    Args:
        tags: Whether it knows the tags not at all, as special tokens, as added tokens that are
            not special, or as entries of its own vocabulary.
        start: Whether it has a beginning-of-sequence token.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if tags == "vocabulary":
        backend = Tokenizer(_vocabulary_with_tags(alphabet))
    else:
        backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if tags != "vocabulary":
        trainer = trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, special_tokens=[END], show_progress=False
        )
        backend.train_from_iterator([], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=END, bos_token=START if start else None
    )
    if tags == "special":
        tokenizer.add_special_tokens(
            {"additional_special_tokens": list(TAGS)}, replace_extra_special_tokens=False
        )
    elif tags == "plain":
        tokenizer.add_tokens(list(TAGS))
    return tokenizer


def _vocabulary_with_tags(alphabet: list[str]) -> models.BPE:
    """Returns a model whose merges build every tag out of its characters."""
    symbols, merges = [END, *alphabet], []
    for tag in TAGS:
        for end in range(2, len(tag) + 1):
            if tag[:end] not in symbols:
                symbols.append(tag[:end])
                merges.append((tag[: end - 1], tag[end - 1]))
    return models.BPE(vocab={symbol: i for i, symbol in enumerate(symbols)}, merges=merges)
