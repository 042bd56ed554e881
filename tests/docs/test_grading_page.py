from typing import Any

import polars as pl
from docs_pages import DOCS, blocks_of, rows_of

from schemas.categories import GradingMethod
from stages.answers import FoundBy
from stages.grading import grade

PAGE = DOCS / "grading.md"


def test_page_lists_what_decides_in_order() -> None:
    listed = [row[0] for row in rows_of(PAGE, "method")]
    assert listed == [method.value for method in GradingMethod]


def test_page_lists_how_answers_are_found_in_order() -> None:
    assert [row[0] for row in rows_of(PAGE, "found by")] == [way.value for way in FoundBy]


def test_pairs_are_graded_as_the_page_says() -> None:
    rows = rows_of(PAGE, "prediction")
    pairs = pl.DataFrame([row[:2] for row in rows], schema=["prediction", "answer"], orient="row")
    expected = [tuple(row[2:]) for row in rows]
    assert grade(pairs, time_s=20.0).rows() == expected


def test_example_prints_what_the_page_says(capsys: Any) -> None:
    code = next(block for block in blocks_of(PAGE) if block.language == "python")
    exec(compile(code.text, code.name, "exec"), {})
    assert f"prints `{capsys.readouterr().out.strip()}`." in PAGE.read_text()
