"""Texts that end a row, against decoding the whole row at every token."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from stages.rollout.stop_strings import StopStrings
from stages.rollout.transformers_engine import TransformersEngine
from tests.stages.rollout.rollout_policies import (
    letters_tokenizer,
    ragged_contexts,
    random_model,
    requests,
    started_policy,
)

CPU = torch.device("cpu")


def first_end(watcher: StopStrings, tokens: Sequence[int]) -> int | None:
    """Returns the number of tokens at which a row ends; null if it does not."""
    states = watcher.start(1)
    for count, token in enumerate(tokens, start=1):
        states = watcher.advance(states, torch.tensor([token]))
        if bool(watcher.ended(states)[0]):
            return count
    return None


def slow_first_end(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: Sequence[int]
) -> int | None:
    for count in range(1, len(tokens) + 1):
        written = str(tokenizer.decode(list(tokens[:count])))
        if any(text in written for text in texts):
            return count
    return None


@settings(deadline=None, max_examples=200)
@given(
    texts=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3),
    tokens=st.lists(st.integers(0, 2), max_size=25),
)
def test_a_row_ends_where_its_text_holds_one(texts: list[str], tokens: list[int]) -> None:
    tokenizer = letters_tokenizer()
    watcher = StopStrings(tokenizer, texts, vocabulary=40, device=CPU)
    assert first_end(watcher, tokens) == slow_first_end(tokenizer, texts, tokens)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_tokens_of_several_letters_end_rows_too(data: st.DataObject) -> None:
    tokenizer = started_policy().tokenizer
    text = data.draw(st.sampled_from(["print(", "</code>", "1)", " by ", "(1"]))
    watcher = StopStrings(tokenizer, [text], vocabulary=len(tokenizer), device=CPU)
    said = data.draw(
        st.lists(st.sampled_from(["print(12 * 7)", "Multiply it by 3.", "x = 1", "</", "code>"]))
    )
    tokens = tokenizer.encode("".join(said), add_special_tokens=False)
    assert first_end(watcher, tokens) == slow_first_end(tokenizer, [text], tokens)


@pytest.mark.parametrize("stop", ["e", "ab"])
def test_the_engine_stops_at_texts(stop: str) -> None:
    tokenizer = letters_tokenizer()
    engine = TransformersEngine(random_model("llama"), tokenizer, policy_version=0)
    contexts = ragged_contexts([5] * 64)
    free = engine.generate(requests(contexts, limits=40, stop_ids=()))
    got = engine.generate(requests(contexts, limits=40, stop_ids=(), stop_strings=(stop,)))
    ends = [slow_first_end(tokenizer, [stop], tokens) for tokens in free.token_ids]
    assert got.token_ids == [row[:end] for row, end in zip(free.token_ids, ends, strict=True)]
    assert list(got.stopped) == [end is not None for end in ends]
    assert any(got.stopped)
    assert not all(len(row) == 1 for row in got.token_ids)
