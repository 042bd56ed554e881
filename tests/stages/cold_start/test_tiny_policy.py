"""The embedded policy: small, repeatable, and able to write and read any text."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from schemas.config import PolicyConfig
from schemas.errors import PolicyError
from stages.cold_start.tiny_policy import adapt_to_tags, make_model, make_tokenizer
from stages.dialogue.tags import TAGS, TagDialogue
from tests.stages.cold_start.cold_start_builders import SMALL_POLICY
from tests.stages.reward_frames import LAW
from tests.stages.tag_tokenizers import foreign_tokenizer, tiny_tokenizer


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# Tokenizer


@pytest.mark.parametrize("text", ["0123456789", "12345", "print(90210)", "x7y", "3.14159"])
def test_every_digit_is_a_token_of_its_own(text: str, dialogue: TagDialogue) -> None:
    tokens = dialogue.tokenizer.tokenize(text)
    assert [token for token in tokens if any(map(str.isdigit, token))] == [
        character for character in text if character.isdigit()
    ]


def test_no_token_of_the_vocabulary_holds_a_digit_beside_something_else(
    dialogue: TagDialogue,
) -> None:
    tokens = [
        token for token in dialogue.tokenizer.get_vocab() if any(c in "0123456789" for c in token)
    ]
    assert sorted(tokens) == list("0123456789")


def test_every_byte_is_a_token(dialogue: TagDialogue) -> None:
    assert set(pre_tokenizers.ByteLevel.alphabet()) <= set(dialogue.tokenizer.get_vocab())
    assert len(pre_tokenizers.ByteLevel.alphabet()) == 256


@LAW
@given(data=st.binary(max_size=60))
def test_every_byte_string_is_encoded_and_decoded(data: bytes) -> None:
    tokenizer = tiny_tokenizer()
    for text in (data.decode("latin-1"), data.decode("utf-8", errors="replace")):
        ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_the_vocabulary_is_as_large_as_configured(demonstrated_texts: list[str]) -> None:
    tokenizer = make_tokenizer(demonstrated_texts, PolicyConfig(vocabulary_size=400))
    assert len(tokenizer) == 400
    assert sorted(tokenizer.get_vocab().values()) == list(range(400))


def test_the_same_texts_give_the_same_tokenizer(demonstrated_texts: list[str]) -> None:
    one, other = (make_tokenizer(demonstrated_texts, PolicyConfig()) for _ in range(2))
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


def test_the_tokenizer_knows_the_context_of_the_policy(demonstrated_texts: list[str]) -> None:
    tokenizer = make_tokenizer(demonstrated_texts, PolicyConfig(max_context_tokens=64))
    assert tokenizer.model_max_length == 64


# Model


def test_the_default_policy_has_fewer_than_a_million_parameters(dialogue: TagDialogue) -> None:
    model = make_model(dialogue.tokenizer, PolicyConfig(), seed=0)
    assert 100_000 < sum(p.numel() for p in model.parameters()) < 1_000_000


def test_the_same_seed_gives_the_same_weights(dialogue: TagDialogue) -> None:
    one, other = (weights(make_model(dialogue.tokenizer, SMALL_POLICY, seed=3)) for _ in range(2))
    assert equal(one, other)


def test_another_seed_gives_other_weights(dialogue: TagDialogue) -> None:
    one, other = (weights(make_model(dialogue.tokenizer, SMALL_POLICY, seed=s)) for s in (3, 4))
    assert not equal(one, other)


def test_the_model_has_one_output_a_token_and_reads_its_whole_context(
    dialogue: TagDialogue,
) -> None:
    model = make_model(dialogue.tokenizer, SMALL_POLICY, seed=0)
    ids = torch.zeros((1, SMALL_POLICY.max_context_tokens), dtype=torch.long)
    with torch.inference_mode():
        logits = model(ids).logits
    assert logits.shape == (1, SMALL_POLICY.max_context_tokens, len(dialogue.tokenizer))
    assert torch.isfinite(logits).all()


# A given policy


def test_a_given_policy_learns_the_tags_and_keeps_what_it_knows() -> None:
    tokenizer = foreign_tokenizer(tags="absent")
    model = make_model(tokenizer, SMALL_POLICY, seed=0)
    before, known = weights(model)["model.embed_tokens.weight"], len(tokenizer)
    adapt_to_tags(model, tokenizer)
    after = weights(model)["model.embed_tokens.weight"]
    assert len(after) == len(tokenizer) == known + len(TAGS)
    assert torch.equal(after[:known], before)
    TagDialogue(tokenizer)


def test_a_given_policy_that_knows_the_tags_stays_as_it_is() -> None:
    tokenizer = foreign_tokenizer(tags="special")
    model = make_model(tokenizer, SMALL_POLICY, seed=0)
    before, vocabulary = weights(model), copy.copy(tokenizer.get_vocab())
    adapt_to_tags(model, tokenizer)
    assert equal(weights(model), before)
    assert tokenizer.get_vocab() == vocabulary


def test_tags_that_were_plain_tokens_keep_their_numbers_and_become_special() -> None:
    tokenizer = foreign_tokenizer(tags="plain")
    with pytest.raises(PolicyError):
        TagDialogue(tokenizer)
    model = make_model(tokenizer, SMALL_POLICY, seed=0)
    before, vocabulary = weights(model), copy.copy(tokenizer.get_vocab())
    adapt_to_tags(model, tokenizer)
    assert equal(weights(model), before)
    assert tokenizer.get_vocab() == vocabulary
    TagDialogue(tokenizer)
