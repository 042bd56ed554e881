"""A trajectory as its page shows it, beside the rows of the tables."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from page_runs import IMPORTED, RUN, WORDS
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE, WordLevel

from flows.page.conversation import Key, conversation, spelled
from flows.page.reading import NotFoundError, Reader
from storage import Store, open_table

FIRST = Key(RUN, 1, "train", "sum", 0)


def test_worth_of_a_turn_is_that_of_the_tables(reader: Reader, store: Store) -> None:
    ours = (pl.col("task_id") == "sum") & (pl.col("sample_index") == 0)
    credit = open_table(store.root, RUN, "advantages", iteration=1).filter(ours).collect()
    rewards = open_table(store.root, RUN, "turn_rewards", iteration=1).filter(ours).collect()
    shown = [dict(turn.worth) for turn in conversation(reader, FIRST).turns]
    for name in ("return", "baseline", "scale", "advantage"):
        assert [worth[name] for worth in shown] == credit[name].to_list()
    assert [worth["reward"] for worth in shown] == rewards["total"].to_list()


def test_a_shaped_turn_shows_its_reward_before_and_after(reader: Reader) -> None:
    (turn,) = conversation(reader, Key(RUN, 1, "train", "sum", 1)).turns
    worth = dict(turn.worth)
    assert worth["reward"] == 0
    assert worth["shaped reward"] is not None
    assert worth["shaped reward"] > 0.4


def test_tokens_are_told_with_control_tokens_and_log_probabilities(reader: Reader) -> None:
    turn = conversation(reader, FIRST).turns[0]
    assert [token.text for token in turn.tokens] == [WORDS[i] for i in (0, 2, 5, 4, 1, 3)]
    assert [token.logprob for token in turn.tokens] == [-0.25 * 2**i for i in range(6)]


def test_without_a_policy_tokens_are_told_by_id(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Reader, "tokenizer_file", lambda *_: None)
    shown = conversation(reader, FIRST)
    assert [token.text for token in shown.turns[0].tokens][:2] == ["[0]", "[2]"]
    assert "No policy of the run is kept, so tokens are told by their ids." in shown.notes


def test_an_imported_trajectory_has_no_tokens(reader: Reader) -> None:
    shown = conversation(reader, Key(IMPORTED, 1, "train", "sum", 0))
    assert shown.notes == ["Imported: there are no tokens and no log-probabilities."]
    assert not any(turn.tokens for turn in shown.turns)
    assert shown.turns[0].ran is not None


def test_an_evaluated_trajectory_is_shown_with_its_outcome(reader: Reader) -> None:
    outcomes = [
        conversation(reader, Key(RUN, 2, "evaluation", "sum", sample)).outcome for sample in (0, 1)
    ]
    assert outcomes == ["right", "wrong"]


def test_what_is_not_there_is_named(reader: Reader) -> None:
    with pytest.raises(NotFoundError, match="no trajectory 7 of task sum in iteration 1, train"):
        conversation(reader, Key(RUN, 1, "train", "sum", 7))


def byte_level() -> Tokenizer:
    """Returns a tokenizer with a token a byte, as those of Qwen and GPT have."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@given(st.text(st.characters(codec="ascii"), max_size=20))
def test_tokens_of_whole_characters_spell_the_text(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert "".join(spelled(tokenizer, ids)) == text


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=10))
def test_parts_of_a_character_are_told_one_by_one(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    shown = list(spelled(tokenizer, ids))
    assert len(shown) == len(ids)
    assert all(shown)


def test_a_space_that_a_decoder_leaves_out_in_front_is_told() -> None:
    tokenizer = Tokenizer(WordLevel({"▁a": 0, "▁b": 1}, unk_token="▁a"))
    tokenizer.decoder = decoders.Metaspace()
    assert list(spelled(tokenizer, [0, 1, 0])) == ["a", " b", " a"]
