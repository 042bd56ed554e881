"""What all formats have in common: groups, duplicates, rejected rows, the tables."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.errors import TrajectoryFileError
from stages.foreign import FORMATS, format_of, read_trajectories
from tests.stages.foreign.foreign_rows import (
    imported,
    reasons,
    rows_of,
    trajectory,
    turns_of_first,
)
from tests.stages.reward_frames import LAW


def test_rows_of_one_problem_are_one_group_in_the_order_of_the_file() -> None:
    other = trajectory(problem="What is 1 + 1?", gold=2, id="b")
    tables = imported(trajectory(id="a0"), other, trajectory(id="a1"), trajectory(id="a2"))
    assert tables.prompts["task_id"].to_list() == ["a0", "b"]
    keys = tables.labels.select("task_id", "sample_index", "row").rows()
    assert keys == [("a0", 0, 1), ("a0", 1, 3), ("a0", 2, 4), ("b", 0, 2)]


def test_a_problem_without_a_name_is_named_by_file_and_row() -> None:
    tables = imported(trajectory(), trajectory(problem="Another?"))
    assert tables.prompts["task_id"].to_list() == ["file-00001", "file-00002"]


def test_a_name_that_another_problem_has_is_not_taken() -> None:
    tables = imported(trajectory(id=1), trajectory(id=1, problem="Another?"))
    assert tables.prompts["task_id"].to_list() == ["1", "file-00002"]


def test_a_repeated_row_with_an_id_is_a_duplicate_whatever_the_order_of_its_fields() -> None:
    row = trajectory(id="a")
    again = dict(reversed(row.items()))
    assert reasons(imported(row, again)) == [(2, "duplicate of row 1")]


def test_equal_samples_without_an_id_are_samples() -> None:
    tables = imported(trajectory(), trajectory())
    assert tables.labels["sample_index"].to_list() == [0, 1]


def test_another_gold_answer_of_the_same_problem_is_rejected() -> None:
    tables = imported(trajectory(gold=42), trajectory(gold=42.0), trajectory(gold="41"))
    assert reasons(tables) == [(3, "another gold answer than row 1 of the same problem")]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"gold": ...}, "no gold answer"),
    ({"gold": None}, "no gold answer"),
    ({"gold": " "}, "no gold answer"),
    ({"gold": True}, "gold answer is not text"),
    ({"gold": ["1", "2"]}, "several gold answers"),
    ({"problem": ...}, "no problem"),
    ({"problem": {"text": "What?"}}, "problem is not text"),
    ({"turns": None}, "no turns"),
    ({"turns": []}, "no turns"),
    ({"turns": "text"}, "turns are no list"),
    ({"turns": [{}, {"text": " "}]}, "all turns are empty"),
    ({"turns": [{"text": "a"}, 5]}, "turn 2 is no object"),
    ({"turns": [{"text": ["a"]}]}, "text of turn 1 is not text"),
    ({"turns": [{"code": {"a": 1}}]}, "code of turn 1 is not text"),
    ({"turns": [{"code": "1", "output": [1]}]}, "output of turn 1 is not text"),
    ({"prediction": [1]}, "prediction is not text"),
    ({"problem": "\ud800"}, "problem is not text"),
]


@pytest.mark.parametrize(("changes", "reason"), BAD, ids=[reason for _, reason in BAD])
def test_a_bad_row_is_rejected_with_its_reason(changes: dict[str, Any], reason: str) -> None:
    tables = imported(trajectory(**changes), trajectory())
    assert reasons(tables) == [(1, reason)]
    assert tables.labels["row"].to_list() == [2]


def test_a_line_that_is_no_json_is_rejected() -> None:
    assert reasons(imported("{no", trajectory())) == [(1, "not JSON")]


def test_a_file_without_a_usable_row_is_refused_with_the_first_reasons() -> None:
    with pytest.raises(TrajectoryFileError, match=r"\(2 rejected\): row 1: no gold answer in"):
        imported(trajectory(gold=None), trajectory(gold=None))


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(TrajectoryFileError, match="there is no row"):
        read_trajectories([], "turns", source="file", on_row=lambda row: None)


def test_an_unknown_format_is_refused_with_the_fields_and_the_formats() -> None:
    with pytest.raises(TrajectoryFileError, match=r"a row has a, b: say it with --format, one of"):
        format_of(rows_of("no JSON", {"a": 1, "b": 2}))


def test_numbers_are_texts() -> None:
    turns = [{"text": 1, "code": 2, "output": 3}, {"text": 4.0}]
    tables = imported(trajectory(turns=turns, gold=5, prediction=5.0))
    assert tables.turns["text"].to_list() == ["1<code>2</code>", "4"]
    assert turns_of_first(tables) == [("2", "3"), (None, None)]
    assert tables.turns["answer"].to_list() == [None, "5"]
    assert tables.prompts["answer"].to_list() == ["5"]


def test_an_empty_code_is_none() -> None:
    tables = imported(trajectory(turns=[{"text": "a", "code": "", "output": ""}]))
    assert tables.turns["code"].to_list() == [None]
    assert tables.labels["outputs_left_out"].to_list() == [0]


def test_the_answer_is_found_in_the_last_turn_where_the_row_names_none() -> None:
    turns = [{"text": r"\boxed{1}"}, {"text": r"\boxed{42}"}]
    tables = imported(trajectory(turns=turns, prediction=None))
    assert tables.turns["answer"].to_list() == [None, "42"]


@pytest.mark.parametrize(
    ("output", "status"),
    [
        ("42", "ok"),
        ("Traceback (most recent call last):\n  ...\nValueError: 3", "error"),
        ("1\nNameError: name 'x' is not defined", "error"),
        ("sympy.SympifyError", "error"),
        ("no Error: of ours\n42", "ok"),
        ("", "ok"),
    ],
)
def test_the_status_of_an_execution_is_told_by_its_output(output: str, status: str) -> None:
    tables = imported(trajectory(turns=[{"code": "f()", "output": output}]))
    assert tables.executions["status"].to_list() == [status]


def test_code_that_is_no_python_is_a_syntax_error() -> None:
    tables = imported(trajectory(turns=[{"code": "print(1"}, {"code": "print(1)"}]))
    assert tables.turns["parse_error"].to_list() == ["syntax_error", None]


def test_an_output_without_a_call_is_counted() -> None:
    tables = imported(trajectory(turns=[{"text": "a", "output": "Go on."}, {"text": "b"}]))
    assert tables.executions.is_empty()
    assert tables.labels["outputs_left_out"].to_list() == [1]


def test_nothing_is_made_up_about_tokens_and_times() -> None:
    tables = imported(trajectory())
    assert tables.turns["token_ids"].to_list() == [[], []]
    assert tables.turns["logprobs"].to_list() == [[], []]
    assert tables.executions["wall_s"].to_list() == [None]
    assert tables.executions["exit_code"].to_list() == [None]


def test_there_is_a_turn_after_every_execution() -> None:
    assert imported(trajectory()).max_turns == 2
    assert imported(trajectory(turns=[{"code": "f()", "output": "1"}])).max_turns == 2
    assert imported(trajectory(turns=[{"code": "f()"}])).max_turns == 1


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["text", "code", "output", "role", "content", "tool_calls", "name"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
NAMES = [
    *("id", "problem", "turns", "gold", "prediction", "correct", "input", "output", "gts", "score"),
    *("prompt", "completion", "answer", "reward", "example_id", "error", "info", "step"),
]


@pytest.mark.parametrize("format_name", FORMATS)
@given(rows=st.lists(st.dictionaries(st.sampled_from(NAMES), JSON), max_size=3))
@LAW
def test_every_row_is_a_trajectory_or_rejected(
    format_name: str, rows: list[dict[str, Any]]
) -> None:
    good: dict[str, dict[str, Any]] = {
        "turns": trajectory(),
        "verl": {"input": "What?", "output": "42", "gts": "42"},
        "trl": {"prompt": "What?", "completion": "42", "gold": "42"},
        "verifiers": {"prompt": "What?", "completion": "42", "answer": "42"},
    }
    tables = imported(good[format_name], *rows, format_name=format_name)
    told = sorted([*tables.labels["row"], *tables.rejected["row"]])
    assert told == list(range(1, len(rows) + 2))
