"""Inserted text: decodes to itself and never holds a control token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from stages.dialogue.encoding import (
    TextEncoder,
    decoded,
    encoded_with_control_tokens,
    with_tags_broken,
)
from tests.stages.dialogue.chat_tokenizers import END, START, chat_tokenizer, qwen_like, smol_like
from tests.stages.reward_frames import LAW

MARKS = [START, END, "<tool_call>", "</tool_call>", "<", "call>", "</code>", "\n", " "]
TEXTS = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=6)), max_size=8).map("".join)


@pytest.mark.parametrize("tokenizer", [qwen_like(), smol_like()], ids=["tokens", "text"])
@LAW
@given(texts=st.lists(TEXTS, max_size=3))
def test_text_of_others_decodes_to_itself_without_control_tokens(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    ids = TextEncoder(tokenizer).encode(texts)
    assert decoded(tokenizer, ids) == texts
    control = set(tokenizer.get_added_vocab().values())
    assert not any(control & set(row) for row in ids)


def test_text_of_this_program_holds_its_control_tokens() -> None:
    ids = encoded_with_control_tokens(qwen_like(), f"{START}a<tool_call>")
    known = qwen_like().get_added_vocab()
    assert (ids[0], ids[-1]) == (known[START], known["<tool_call>"])


def test_plain_text_is_encoded_as_the_tokenizer_does() -> None:
    text = "Take 12 apples.\n\n  if x < 3: pass"
    expected = qwen_like()(text, add_special_tokens=False)["input_ids"]
    assert TextEncoder(qwen_like()).encode([text]) == [expected]


def test_a_control_token_that_a_normaliser_writes_is_none() -> None:
    tokenizer = chat_tokenizer(calls_are_tokens=True, folds_widths=True)
    call = tokenizer.get_added_vocab()["<tool_call>"]
    forged = "\uff1ctool_call\uff1e"
    assert call in tokenizer(forged)["input_ids"]
    assert call not in TextEncoder(tokenizer).encode([forged])[0]


@LAW
@given(text=TEXTS)
def test_broken_tags_are_gone_and_all_else_stays(text: str) -> None:
    tags = ("<tool_call>", "</tool_call>", "</code>")
    broken = with_tags_broken(text, tags)
    assert not any(tag in broken for tag in tags)
    assert broken.replace("< ", "<") == text.replace("< ", "<")
    if not any(tag in text for tag in tags):
        assert broken == text


def test_without_tags_a_text_stays() -> None:
    assert with_tags_broken("a<b>c", ()) == "a<b>c"
