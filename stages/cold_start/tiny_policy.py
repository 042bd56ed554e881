"""The embedded policy: a Qwen3-style model of under a million parameters and its tokenizer.

Both are made from scratch and from a seed; nothing is downloaded.
"""

from collections.abc import Iterable

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen3Config,
)
from transformers import Qwen3ForCausalLM as TinyModel

from schemas.config import PolicyConfig
from stages.dialogue.tags import TAGS

END_TOKEN = "<eos>"
PAD_TOKEN = "<pad>"


def make_tokenizer(texts: Iterable[str], config: PolicyConfig) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer whose digits stay single tokens.

    Args:
        texts: Text to learn merges from, without control tags.
        config: Vocabulary size, control tokens included.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary_size,
        special_tokens=[PAD_TOKEN, END_TOKEN, *TAGS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD_TOKEN,
        eos_token=END_TOKEN,
        model_max_length=config.max_context_tokens,
        clean_up_tokenization_spaces=False,
    )


def make_model(tokenizer: PreTrainedTokenizerBase, config: PolicyConfig, *, seed: int) -> TinyModel:
    """Builds the tiny model with weights drawn from the seed, in float32."""
    torch.manual_seed(seed)
    return TinyModel(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=config.hidden_size,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.hidden_size // config.heads,
            intermediate_size=config.feed_forward_size,
            max_position_embeddings=config.max_context_tokens,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            bos_token_id=None,
        )
    )


def adapt_to_tags(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Teaches a foreign policy the control tags, in place.

    Tags that are tokens already keep their numbers and become special; for the others there are
    new tokens, and the embeddings are resized.
    """
    known = tokenizer.get_vocab()
    plain = [tag for tag in TAGS if tag not in tokenizer.all_special_tokens]
    if plain:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": plain}, replace_extra_special_tokens=False
        )
    if any(tag not in known for tag in TAGS):
        model.resize_token_embeddings(len(tokenizer))
