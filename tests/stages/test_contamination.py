"""Contamination of a benchmark by training problems."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.contamination import RUN_WORDS, find_contamination
from tests.stages.reward_frames import LAW

LONG = "A train leaves the station at noon and travels north at sixty miles an hour for 5 hours."


def found(asked: list[str], trained: list[str]) -> list[tuple[str, str, float, str]]:
    benchmark = pl.DataFrame(
        {"task_id": [f"b{i}" for i in range(len(asked))], "problem": asked},
        schema={"task_id": pl.String, "problem": pl.String},
    ).with_columns(benchmark=pl.lit("bench"))
    training = pl.DataFrame(
        {"task_id": [f"t{i}" for i in range(len(trained))], "problem": trained},
        schema={"task_id": pl.String, "problem": pl.String},
    )
    rows = find_contamination(benchmark, training)
    return rows.select("task_id", "kind", "overlap", "training_task_id").rows()


def test_equal_texts_are_exact() -> None:
    assert found([LONG], ["Something else.", LONG]) == [("b0", "exact", 1.0, "t1")]


def test_case_spaces_and_punctuation_do_not_count() -> None:
    other = LONG.upper().replace(" ", "  ").replace(".", " ?!")
    assert found([LONG], [other]) == [("b0", "exact", 1.0, "t0")]


def test_a_reworded_start_is_near_and_its_overlap_the_share_of_runs() -> None:
    words = [f"w{i}" for i in range(20)]
    changed = ["x", *words[1:]]
    # 16 runs of five words, of which the first is lost.
    assert found([" ".join(words)], [" ".join(changed)]) == [
        ("b0", "near", pytest.approx(15 / 16), "t0")
    ]


def test_the_nearest_training_problem_is_named() -> None:
    words = [f"w{i}" for i in range(20)]
    near = " ".join([*words[:18], "x", "y"])
    nearer = " ".join([*words[:19], "x"])
    assert found([" ".join(words)], [near, nearer])[0][3] == "t1"


def test_a_common_phrase_is_no_contamination() -> None:
    other = "A train leaves the station at midnight, loaded with coal for the mills of the south."
    assert found([LONG], [other]) == []


def test_short_problems_count_only_as_a_whole() -> None:
    assert found(["What is 2+3?"], ["What is 2+4?"]) == []
    assert found(["What is 2+3?"], ["what is 2 + 3"]) == [("b0", "exact", 1.0, "t0")]


def test_texts_without_spaces_are_compared_by_character() -> None:
    asked = "求所有满足条件的正整数的个数并写出过程"
    assert found([asked], [asked[:-1] + "法"])[0][:2] == ("b0", "near")


def test_nothing_to_compare_gives_no_rows() -> None:
    assert found([], [LONG]) == []
    assert found([LONG], []) == []
    assert found(["?!"], ["..."]) == []


WORDS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=14)


@LAW
@given(WORDS, st.lists(WORDS, min_size=1, max_size=4))
def test_the_overlap_is_that_of_sets_of_runs(asked: list[str], trained: list[list[str]]) -> None:
    def runs(words: list[str]) -> set[tuple[str, ...]]:
        size = min(RUN_WORDS, len(words))
        return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}

    best = max(len(runs(asked) & runs(t)) / len(runs(asked)) for t in trained)
    rows = found([" ".join(asked)], [" ".join(t) for t in trained])
    if asked in trained:
        assert rows[0][1:3] == ("exact", 1.0)
    elif best >= 0.5:
        assert rows[0][1:3] == ("near", pytest.approx(best))
    else:
        assert rows == []
