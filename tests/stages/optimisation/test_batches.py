"""From tables to ragged arrays: which token stands where, and which of them is trained."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.errors import TurnledgerError
from schemas.tables import Turns
from stages.optimisation import make_batch, refuse_other_policies
from tests.stages.optimisation.optimisation_batches import advantages_of
from tests.stages.rollout.rollout_policies import executions_of, prompts_of, turns_of

PROMPTS = prompts_of({"a": [1, 2], "b": [3]})
TURNS = turns_of(
    {
        ("b", 0, 0): ([31, 32], [-1.0, -2.0]),
        ("a", 1, 0): ([21], [-0.5]),
        ("a", 0, 0): ([11, 12], [-0.1, -0.2]),
        ("a", 0, 1): ([13], [-0.3]),
    },
    temperature=0.5,
)
EXECUTIONS = executions_of({("a", 0, 1): [99], ("a", 0, 0): [91, 92, 93]})
ALL = {("a", 0, 0): 1.5, ("a", 0, 1): -2.0, ("a", 1, 0): 0.25, ("b", 0, 0): 0.0}


def test_layout_token_for_token() -> None:
    batch = make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of(ALL))
    assert batch.token_ids.tolist() == [1, 2, 11, 12, 91, 92, 93, 13, 1, 2, 21, 3, 31, 32]
    assert batch.trained.astype(int).tolist() == [0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0, 1, 1]
    logprobs = [0, 0, -0.1, -0.2, 0, 0, 0, -0.3, 0, 0, -0.5, 0, -1, -2]
    assert batch.logprobs.tolist() == np.float32(logprobs).tolist()
    advantages = [0, 0, 1.5, 1.5, 0, 0, 0, -2, 0, 0, 0.25, 0, 0, 0]
    assert batch.advantages.tolist() == np.float32(advantages).tolist()
    assert batch.offsets.tolist() == [0, 8, 11, 14]
    assert batch.prompt_lengths.tolist() == [2, 2, 1]
    assert batch.temperatures.tolist() == [0.5] * 3


def test_an_excluded_turn_is_context_and_not_trained() -> None:
    batch = make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of({**ALL, ("a", 0, 0): None}))
    assert batch.token_ids[:8].tolist() == [1, 2, 11, 12, 91, 92, 93, 13]
    assert batch.trained[:8].astype(int).tolist() == [0, 0, 0, 0, 0, 0, 0, 1]
    assert batch.logprobs[2:4].tolist() == [0, 0]


def test_what_follows_the_last_trained_token_is_left_out() -> None:
    batch = make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of({**ALL, ("a", 0, 1): None}))
    assert batch.token_ids[: batch.offsets[1]].tolist() == [1, 2, 11, 12]


def test_a_trajectory_without_credit_is_left_out() -> None:
    batch = make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of({**ALL, ("a", 1, 0): None}))
    assert batch.offsets.tolist() == [0, 8, 11]


def test_turns_without_tokens_train_nothing_and_keep_no_overflow() -> None:
    first, last, lone = ("a", 0, 0), ("a", 0, 1), ("b", 0, 0)
    turns = turns_of({first: ([11], [-0.1]), last: ([], []), lone: ([], [])})
    executions = executions_of({first: [90] * 50})
    batch = make_batch(
        PROMPTS, turns, executions, advantages_of({first: 1.0, last: 1.0, lone: 1.0})
    )
    assert batch.token_ids.tolist() == [1, 2, 11]


def test_greedy_turns_are_scored_at_temperature_one() -> None:
    turns = turns_of({("b", 0, 0): ([31], [-1.0])}, temperature=0.0)
    batch = make_batch(PROMPTS, turns, EXECUTIONS.clear(), advantages_of({("b", 0, 0): 1.0}))
    assert batch.temperatures.tolist() == [1.0]


@pytest.mark.parametrize("advantages", [advantages_of(dict.fromkeys(ALL))])
def test_no_credit_at_all_is_an_empty_batch(advantages: object) -> None:
    assert len(make_batch(PROMPTS, TURNS, EXECUTIONS, advantages)) == 0  # type: ignore[arg-type]


def test_no_turns_are_an_empty_batch() -> None:
    empty = make_batch(PROMPTS, Turns.create_empty(), EXECUTIONS, advantages_of({}))
    assert len(empty) == 0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_advantage_that_is_no_number_is_refused_by_key(value: float) -> None:
    with pytest.raises(TurnledgerError, match=r"no number: \('a', 0, 1\)"):
        make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of({**ALL, ("a", 0, 1): value}))


def test_a_turn_without_advantage_is_refused_by_key() -> None:
    rest = {key: value for key, value in ALL.items() if key != ("a", 1, 0)}
    with pytest.raises(TurnledgerError, match=r"without its advantage: \('a', 1, 0\)"):
        make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of(rest))


def test_an_advantage_without_turn_is_refused_by_key() -> None:
    with pytest.raises(TurnledgerError, match=r"without its turn: \('z', 7, 3\)"):
        make_batch(PROMPTS, TURNS, EXECUTIONS, advantages_of({**ALL, ("z", 7, 3): 1.0}))


def test_a_turn_without_prompt_is_refused_by_key() -> None:
    with pytest.raises(TurnledgerError, match=r"without its prompt: \('b', 0, 0\)"):
        make_batch(prompts_of({"a": [1, 2]}), TURNS, EXECUTIONS, advantages_of(ALL))


def test_turns_of_another_policy_are_refused_by_key() -> None:
    refuse_other_policies(TURNS, 0)
    mixed = TURNS.with_columns(
        policy_version=pl.when(pl.col("task_id") == "b").then(2).otherwise("policy_version")
    )
    with pytest.raises(TurnledgerError, match=r"\('b', 0, 0\) was sampled by policy version 2"):
        refuse_other_policies(mixed, 0)  # type: ignore[arg-type]


tokens_strategy = st.lists(st.integers(1, 39), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_layout_is_what_a_loop_makes_of_it(data: st.DataObject) -> None:
    prompts = {task: data.draw(tokens_strategy) for task in ("a", "b")}
    turns, shown, credit = {}, {}, {}
    expected: list[list[tuple[int, float | None, float]]] = []
    for task, prompt in prompts.items():
        for index in range(2):
            row = [(token, None, 0.0) for token in prompt]
            for turn in range(data.draw(st.integers(1, 3))):
                key = (task, index, turn)
                tokens = data.draw(tokens_strategy)
                turns[key] = (tokens, [-0.5 - turn] * len(tokens))
                shown[key] = data.draw(st.lists(st.integers(1, 39), max_size=3))
                credit[key] = data.draw(st.one_of(st.none(), st.sampled_from([-1.0, 0.0, 2.0])))
                row += [(token, credit[key], -0.5 - turn) for token in tokens]
                row += [(token, None, 0.0) for token in shown[key]]
            while row and row[-1][1] is None:
                row.pop()
            if row:
                expected.append(row)
    keys = data.draw(st.permutations(list(turns)))
    batch = make_batch(
        prompts_of(prompts),
        turns_of({key: turns[key] for key in keys}),
        executions_of(shown),
        advantages_of({key: credit[key] for key in reversed(keys)}),
    )
    flat = [token for row in expected for token in row]
    assert batch.lengths.tolist() == [len(row) for row in expected]
    assert batch.token_ids.tolist() == [token for token, _, _ in flat]
    assert batch.trained.tolist() == [advantage is not None for _, advantage, _ in flat]
    assert batch.advantages.tolist() == [advantage or 0.0 for _, advantage, _ in flat]
    assert batch.logprobs.tolist() == [0 if a is None else logprob for _, a, logprob in flat]
