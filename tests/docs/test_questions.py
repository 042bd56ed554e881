"""The notebook: its stored outputs are whole, and its cells run on another run too."""

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest
from docs_pages import DOCS
from docs_workplace import Workplace
from nbclient import NotebookClient

from flows.sessions import default_run_name
from schemas.config import RunConfig

NOTEBOOK = DOCS / "questions.ipynb"


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def answers(notebook: Any) -> dict[str, list[str]]:
    """Returns the kinds of outputs below each question."""
    found: dict[str, list[str]] = {}
    question = ""
    for cell in notebook.cells:
        title = re.match(r"## (\d\. .+)", cell.source)
        question = title[1] if title else question
        if question and cell.cell_type == "code":
            found.setdefault(question, []).extend(o.output_type for o in cell.outputs)
    return found


@pytest.fixture(scope="module")
def stored() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_stored_outputs_are_of_one_execution_from_top_to_bottom(stored: Any) -> None:
    counts = [cell.execution_count for cell in code_cells(stored)]
    assert counts == list(range(1, len(counts) + 1))
    assert not [o for cell in code_cells(stored) for o in cell.outputs if o.output_type == "error"]
    assert not [o for cell in code_cells(stored) for o in cell.outputs if o.get("name") == "stderr"]


def test_the_stored_outputs_are_of_the_quickstart(stored: Any) -> None:
    first = code_cells(stored)[0]
    assert first.outputs[0].text.startswith(f"{default_run_name(RunConfig())}: finished")


def test_every_question_is_answered(stored: Any) -> None:
    told = answers(stored)
    assert len(told) == 6
    assert all("execute_result" in outputs for outputs in told.values())


def test_the_notebook_names_no_place_of_one_machine() -> None:
    assert not re.search(r"/(?:work|root|home|tmp)/", NOTEBOOK.read_text())


def test_its_pictures_are_of_moderate_size() -> None:
    assert NOTEBOOK.stat().st_size < 300_000


def test_every_question_is_answered_on_another_run(
    stored: Any, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TURNLEDGER_STORE", str(workplace.folder / "turnledger-store"))
    monkeypatch.setenv("TURNLEDGER_RUN", "small")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    again = nbformat.from_dict(stored)
    for cell in code_cells(again):
        cell.outputs = []
    NotebookClient(again, timeout=200, kernel_name="python3").execute()
    assert [cell.source for cell in again.cells] == [cell.source for cell in stored.cells]
    assert answers(again) == answers(nbformat.read(NOTEBOOK, as_version=4))
    assert code_cells(again)[0].outputs[0].text.startswith("small: ")
