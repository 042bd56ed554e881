"""Final answers in texts: which statement counts, and where a box ends."""

import json
import time
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.answers import FoundBy, final_answers, last_boxed
from tests.stages.reward_frames import LAW

DATA = Path(__file__).parents[3] / "shared" / "data"


def found(text: str | None) -> tuple[str | None, str | None]:
    row: tuple[str | None, str | None] = final_answers(pl.Series([text], dtype=pl.String)).row(0)
    return row


BOXED = [
    (r"It is $\boxed{42}$.", "42"),
    (r"First \boxed{1}, then \boxed{2}.", "2"),
    (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
    (
        r"\boxed{\frac{\sqrt{\frac{1}{2}}}{\sqrt{x^{2}}}}",
        r"\frac{\sqrt{\frac{1}{2}}}{\sqrt{x^{2}}}",
    ),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
    (r"\boxed{1} and \boxed{2", "1"),
    (r"\boxed{1} and \boxed{}", "1"),
    (r"\boxed{\text{so }\boxed{5}}", "5"),
    (r"\boxed {7}", "7"),
    (r"\fbox{7}", "7"),
    ("\\boxed{\n 7\n}", "7"),
    (r"\boxed{a\\b}", r"a\\b"),
]
OTHERS = [
    ("<answer>1</answer> <answer> 2 </answer>", "2", "tag"),
    ("<answer>\n1\n</answer>", "1", "tag"),
    ("<ANSWER>1</ANSWER>", "1", "tag"),
    ("He has 3.\n#### 1,234", "1,234", "hashes"),
    ("#### 1\n#### 2\n", "2", "hashes"),
    ("So the answer is 3.5.", "3.5", "phrase"),
    ("The answer is 3.5. It was hard.", "3.5", "phrase"),
    ("The final answer is: $\\frac{1}{2}$.", r"$\frac{1}{2}$", "phrase"),
    ("**Answer:** 12", "12", "phrase"),
    ("Answer: 12\nGoodbye", "12", "phrase"),
    ("The answer is **12**.", "12", "phrase"),
    ("The answer is 1. No, the answer is 2.", "2", "phrase"),
    ("The answer to the problem is x = 2", "x = 2", "phrase"),
    ("#### Step 1\nwe add\nThe answer is 3.", "3", "phrase"),
    ("The answer is 3, because 1+2.", "3", "phrase"),
    ("The answer is **3**!", "3", "phrase"),
]
NONE = [None, "", "It is 42.", r"\boxed{", r"\boxed{}", "<answer></answer>", "<answer>1", "####"]


@pytest.mark.parametrize(("text", "answer"), BOXED)
def test_the_last_balanced_box_is_the_answer(text: str, answer: str) -> None:
    assert found(text) == (answer, "boxed")
    assert (last_boxed(text) or "").strip() == answer


@pytest.mark.parametrize(("text", "answer", "way"), OTHERS)
def test_other_statements_are_found(text: str, answer: str, way: str) -> None:
    assert found(text) == (answer, way)


@pytest.mark.parametrize("text", NONE)
def test_a_text_that_states_no_answer_has_none(text: str | None) -> None:
    assert found(text) == (None, None)


def test_the_ways_count_in_their_documented_order() -> None:
    statements = [r"\boxed{a}", "<answer>b</answer>", "#### c", "the answer is d"]
    for first in range(len(statements)):
        text = "\n".join(reversed(statements[first:]))
        assert found(text) == ("abcd"[first], list(FoundBy)[first].value)


def test_answers_stand_in_the_order_of_the_texts() -> None:
    texts = pl.Series(["#### 1", None, r"\boxed{\a{\b{\c{\d{2}}}}}", "no", r"\boxed{3}"])
    expected = ["1", None, r"\a{\b{\c{\d{2}}}}", None, "3"]
    assert final_answers(texts)["answer"].to_list() == expected


def test_no_texts_give_a_typed_frame_without_rows() -> None:
    frame = final_answers(pl.Series([], dtype=pl.String))
    ways = pl.Enum([way.value for way in FoundBy])
    assert frame.schema == {"answer": pl.String, "found_by": ways}
    assert frame.height == 0


def slowly(text: str) -> str | None:
    """The last box by counting braces from each opening, one after the other."""
    for start in range(len(text), -1, -1):
        if not text[:start].endswith(r"\boxed{"):
            continue
        depth = 1
        for end in range(start, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                if text[start:end].strip():
                    return text[start:end]
                break
    return None


@LAW
@given(st.lists(st.sampled_from([r"\boxed{", "{", "}", "a", " "]), max_size=14).map("".join))
def test_boxes_end_where_counting_braces_says(text: str) -> None:
    assert last_boxed(text) == slowly(text)
    expected = slowly(text)
    assert found(text)[0] == (None if expected is None else expected.strip())


def test_long_unbalanced_texts_take_no_time() -> None:
    texts = [r"\boxed{" * 20_000, r"\boxed{" + "{" * 200_000, "<answer>" * 20_000, "#" * 200_000]
    start = time.monotonic()
    assert final_answers(pl.Series(texts))["answer"].null_count() == len(texts)
    assert time.monotonic() - start < 20


def test_answers_of_published_trajectories_are_found() -> None:
    path = DATA / "traj_tora_gsm8k_code_34b.jsonl"
    if not path.exists():
        pytest.skip("published trajectories are not beside the repository")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    stated = [row for row in rows if r"\boxed{" in row["turns"][-1]["text"]]
    answers = final_answers(pl.Series([row["turns"][-1]["text"] for row in stated]))["answer"]
    assert len(stated) > 300
    assert answers.null_count() == 0
