"""Classes of equal answers."""

from collections.abc import Sequence

import polars as pl

from stages.evaluation.answer_classes import answer_classes
from tests.stages.evaluation.evaluation_frames import evaluations_frame


def classes(samples: Sequence[tuple[str | None, str | None]]) -> list[int | None]:
    """Returns the classes of samples of one problem, from prediction and verdict."""
    correct = [None if verdict is None else verdict == "right" for _, verdict in samples]
    frame = evaluations_frame({"a": correct}).with_columns(
        prediction=pl.Series([prediction for prediction, _ in samples], dtype=pl.String),
        verdict=pl.Series([verdict for _, verdict in samples], dtype=pl.String),
    )
    return answer_classes(frame, time_s=20.0)["answer_class"].to_list()


def test_right_answers_are_one_class_however_they_are_written() -> None:
    assert classes([("1/2", "right"), ("0.5", "right"), ("\\frac12", "right")]) == [0, 0, 0]


def test_wrong_answers_that_the_grading_holds_equal_are_one_class() -> None:
    found = classes([("1/4", "wrong"), ("7", "wrong"), ("0.25", "wrong"), ("7.0", "wrong")])
    assert found[0] == found[2]
    assert found[1] == found[3]
    assert found[0] != found[1]
    assert 0 not in found


def test_what_is_equal_through_a_third_answer_is_equal() -> None:
    # Texts of one class in every order in which they can be met.
    ways = ("0.5", "1/2", "\\frac{2}{4}", "50\\%", "\\frac12")
    for start in range(len(ways)):
        turned = [*ways[start:], *ways[:start]]
        assert len(set(classes([(text, "wrong") for text in turned]))) == 1


def test_who_gave_no_answer_has_no_class() -> None:
    assert classes([(None, "no_answer"), ("7", "wrong")])[0] is None


def test_a_sample_that_the_machine_failed_has_no_class() -> None:
    assert classes([("7", None), ("7", "wrong")])[0] is None


def test_an_undecided_answer_is_a_class_of_its_own_with_equal_texts() -> None:
    found = classes([("9^(9^9)", "timeout"), ("9^(9^9)", "timeout"), ("9", "wrong")])
    assert found[0] == found[1]
    assert found[0] not in (None, 0, found[2])


def test_problems_and_their_order_do_not_mix() -> None:
    frame = evaluations_frame({"b": [False, True], "a": [False]}).with_columns(
        prediction=pl.Series(["7", "8", "7"]), verdict=pl.Series(["wrong", "right", "wrong"])
    )
    found = answer_classes(frame, time_s=20.0)
    assert found["task_id"].to_list() == ["b", "b", "a"] or found["task_id"].to_list() == [
        "a",
        "b",
        "b",
    ]
    assert found.filter(task_id="b", sample_index=1)["answer_class"].to_list() == [0]
    assert found.drop("answer_class").equals(frame)
