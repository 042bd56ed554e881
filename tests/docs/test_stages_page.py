import re
from typing import Any

from docs_pages import DOCS, blocks_of, rows_of
from docs_workplace import Workplace

from flows.catalogue import ORDER, STAGES
from flows.sessions import FREE_TO_CHANGE
from schemas.tables import TABLES

PAGE = DOCS / "stages.md"


def names_in(cell: str) -> list[str]:
    return re.findall(r"[\w.]+", cell.replace("`", " "))


def test_page_lists_every_stage_with_its_code() -> None:
    listed = {row[0]: tuple(names_in(row[1])) for row in rows_of(PAGE, "stage")}
    assert listed == {name: spec.code for name, spec in STAGES.items()}


def test_page_names_every_table_as_an_output() -> None:
    outputs = {name for row in rows_of(PAGE, "stage") for name in names_in(row[3])}
    assert set(TABLES) <= outputs


def test_page_says_for_every_stage_what_a_rerun_takes_over() -> None:
    listed = [name for row in rows_of(PAGE, "stage rerun") for name in names_in(row[0])]
    assert tuple(listed) == ORDER


def test_page_shows_the_reason_that_explain_gives(
    workplace: Workplace, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(workplace.folder)
    block = next(block for block in blocks_of(PAGE) if "explain(new, old)" in block.text)
    exec(compile(block.text, block.name, "exec"), {})
    assert f"prints `{capsys.readouterr().out.strip()}`." in PAGE.read_text()


def test_operations_list_what_a_run_may_be_continued_with() -> None:
    listed = [row[0] for row in rows_of(DOCS / "operations.md", "setting")]
    assert tuple(listed) == FREE_TO_CHANGE
