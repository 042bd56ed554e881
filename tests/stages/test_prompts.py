"""Prompts: which problems an iteration asks, in which shard, and never a held-out one."""

import dataframely as dy
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from schemas.cold_start import ColdStartConfig
from schemas.config import ExecutionConfig
from schemas.errors import TurnledgerError
from schemas.tables import Problems, Prompts
from stages.cold_start.demonstrations import make_demonstrations
from stages.prompts import (
    embedded_problems,
    further_embedded_problems,
    make_prompts,
    pick_further_problems,
    pick_problems,
)
from stages.shards import take_shard
from tests.stages.reward_frames import LAW, prompts_frame

LEVELS = (1, 2, 3)
SEEDS = st.integers(0, 2**31)


def problem_set(count: int) -> dy.DataFrame[Problems]:
    rows = [(str(i), f"problem {i}", str(i), "test", None) for i in range(count)]
    schema = Problems.create_empty().schema
    return Problems.validate(pl.DataFrame(rows, schema=schema, orient="row"))


def picked_ids(count: int, of: int, *, iteration: int, seed: int = 3) -> list[str]:
    picked = pick_problems(problem_set(of), count, iteration=iteration, seed=seed)
    return picked["task_id"].to_list()


# embedded_problems


@pytest.fixture(scope="module")
def held_out() -> dy.DataFrame[Problems]:
    return embedded_problems(4_000, split="held_out", levels=LEVELS, seed=1)


@pytest.fixture(scope="module")
def train() -> dy.DataFrame[Problems]:
    return embedded_problems(20_000, split="train", levels=LEVELS, seed=2)


@pytest.mark.parametrize("column", ["task_id", "problem"])
def test_training_and_held_out_problems_are_disjoint(
    column: str, train: dy.DataFrame[Problems], held_out: dy.DataFrame[Problems]
) -> None:
    # Problems of one step are few enough for both draws to meet, were they not kept apart.
    assert set(train[column]).isdisjoint(held_out[column])


def test_two_draws_of_one_side_do_meet(train: dy.DataFrame[Problems]) -> None:
    again = embedded_problems(4_000, split="train", levels=LEVELS, seed=1)
    assert len(set(train["task_id"]) & set(again["task_id"])) > 20


@pytest.mark.parametrize("column", ["task_id", "problem"])
def test_no_demonstration_shows_a_held_out_problem(
    column: str, held_out: dy.DataFrame[Problems]
) -> None:
    shown = make_demonstrations(
        ColdStartConfig(demonstrations=2_000), ExecutionConfig(), levels=LEVELS, seed=4
    )
    assert set(shown[column]).isdisjoint(held_out[column])


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_embedded_problems_are_distinct_and_as_many_as_asked(split: str) -> None:
    problems = embedded_problems(500, split=split, levels=(1,), seed=0)  # type: ignore[arg-type]
    assert problems["task_id"].n_unique() == len(problems) == 500


def test_embedded_problems_have_the_levels_asked() -> None:
    problems = embedded_problems(200, split="train", levels=(1, 3), seed=0)
    assert set(problems["level"]) == {1, 3}
    steps = problems["source"].str.count_matches("+", literal=True) + 1
    assert steps.to_list() == problems["level"].to_list()


def test_embedded_problems_are_a_function_of_the_seed() -> None:
    one, same, other = (
        embedded_problems(50, split="train", levels=LEVELS, seed=seed) for seed in (5, 5, 6)
    )
    assert_frame_equal(one, same)
    assert one["task_id"].to_list() != other["task_id"].to_list()


# pick_problems


@LAW
@given(data=st.data(), size=st.integers(1, 24), seed=SEEDS)
def test_every_pass_asks_each_problem_once(data: st.DataObject, size: int, seed: int) -> None:
    count = data.draw(st.integers(1, size))
    asked = [
        task
        for iteration in range(1, size + 1)
        for task in picked_ids(count, size, iteration=iteration, seed=seed)
    ]
    passes = [asked[start : start + size] for start in range(0, len(asked), size)]
    assert len(passes) == count
    assert all(sorted(one) == sorted(problem_set(size)["task_id"]) for one in passes)


@LAW
@given(data=st.data(), size=st.integers(1, 24), iteration=st.integers(1, 200), seed=SEEDS)
def test_no_iteration_asks_a_problem_twice(
    data: st.DataObject, size: int, iteration: int, seed: int
) -> None:
    count = data.draw(st.integers(1, size))
    picked = picked_ids(count, size, iteration=iteration, seed=seed)
    assert len(set(picked)) == len(picked) == count


def test_a_pick_is_a_function_of_the_iteration_alone() -> None:
    in_order = [picked_ids(7, 10, iteration=iteration) for iteration in range(1, 9)]
    backwards = [picked_ids(7, 10, iteration=iteration) for iteration in range(8, 0, -1)]
    assert in_order == backwards[::-1]


def test_passes_differ_in_order() -> None:
    assert picked_ids(20, 20, iteration=1) != picked_ids(20, 20, iteration=2)


def test_a_pick_depends_on_the_seed() -> None:
    assert picked_ids(20, 20, iteration=1, seed=0) != picked_ids(20, 20, iteration=1, seed=1)


def test_a_pick_holds_the_rows_of_the_set() -> None:
    picked = pick_problems(problem_set(9), 4, iteration=3, seed=0)
    rows = picked["task_id"].cast(pl.Int64).to_list()
    assert_frame_equal(picked, problem_set(9)[rows])


def test_a_set_smaller_than_an_iteration_is_refused_by_a_clear_line() -> None:
    with pytest.raises(TurnledgerError) as refused:
        pick_problems(problem_set(3), 4, iteration=1, seed=0)
    message = str(refused.value)
    assert message.startswith("3 problems are fewer than the 4 of an iteration")
    assert "rollout.prompts" in message
    assert "\n" not in message


# make_prompts


def test_prompts_are_the_problems_with_their_encodings() -> None:
    problems = problem_set(3)
    prompts = make_prompts(problems, encode=lambda texts: [[len(text), 1] for text in texts])
    assert_frame_equal(prompts.drop("prompt_token_ids", "round"), problems)
    assert prompts["prompt_token_ids"].to_list() == [[9, 1]] * 3


# take_shard


@LAW
@given(groups=st.integers(1, 20), shards=st.integers(1, 8))
def test_shards_hold_every_group_once_and_in_order(groups: int, shards: int) -> None:
    prompts = prompts_frame({str(i): "1" for i in range(groups)})
    parts: list[dy.DataFrame[Prompts]] = [take_shard(prompts, i, shards) for i in range(shards)]
    assert_frame_equal(pl.concat(parts), prompts)


@LAW
@given(groups=st.integers(1, 20), shards=st.integers(1, 8))
def test_shards_differ_in_size_by_one_group_at_most(groups: int, shards: int) -> None:
    prompts = prompts_frame({str(i): "1" for i in range(groups)})
    sizes = [len(take_shard(prompts, i, shards)) for i in range(shards)]
    assert max(sizes) - min(sizes) <= 1


# further rounds


@LAW
@given(size=st.integers(1, 40), asked=st.integers(0, 40), count=st.integers(0, 50), seed=SEEDS)
def test_further_problems_are_others_each_once(
    size: int, asked: int, count: int, seed: int
) -> None:
    known = problem_set(size)
    first = Problems.validate(known.head(asked))
    before = make_prompts(first, encode=lambda texts: [[1] for _ in texts])
    picked = pick_further_problems(known, count, before, seed=seed)
    names = picked["task_id"].to_list()
    assert len(set(names)) == len(names) == min(count, size - len(before))
    assert set(names).isdisjoint(before["task_id"])


def test_further_embedded_problems_are_others_each_once() -> None:
    first = embedded_problems(40, split="train", levels=(1,), seed=5)
    asked = make_prompts(first, encode=lambda texts: [[1] for _ in texts])
    further = further_embedded_problems(40, asked, levels=(1,), seed=5)
    assert further["task_id"].n_unique() == 40
    assert set(further["task_id"]).isdisjoint(first["task_id"])
