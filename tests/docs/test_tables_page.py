import os
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from docs_pages import DOCS, blocks_of, with_generated
from docs_store import handmade_store
from docs_workplace import Workplace
from generated_tables import RENDERERS

from flows.binding import Place
from flows.gradients import measure_gradients
from schemas.tables import TABLES

PAGE = DOCS / "tables.md"
REWRITE = "TURNLEDGER_REWRITE_DOCS"
OWN_PROBLEMS = [
    *("turnledger", "train", "--run", "mine", "--config", "docs/examples/small.toml"),
    *("--set", "iterations=0", "--set", "problems.path=docs/examples/problems.jsonl"),
    *("--set", "evaluation.path=docs/examples/held-out.jsonl"),
]
OWN_TRAJECTORIES = [
    *("turnledger", "import-trajectories", "docs/examples/trajectories.jsonl"),
    *("--run", "theirs"),
]
OWN_CONVERSATIONS = [
    *("turnledger", "train", "--run", "taught", "--config", "docs/examples/small.toml"),
    *("--set", "iterations=0", "--set", "cold_start.path=docs/examples/conversations.jsonl"),
    *("--set", "cold_start.learning_rate=1e-3"),
]
SECTION = re.compile(r"^### (\w+)\n(.*?)(?=^##)", re.M | re.S)


def files_named() -> dict[str, tuple[str, str]]:
    """Returns table to stage and file pattern, as the page has them."""
    found = {}
    for table, text in SECTION.findall(PAGE.read_text()):
        match = re.search(r"^Stage: `(\w+)`\. File: `(\S+)`$", text, re.M)
        assert match is not None, f"section {table} names no stage and file"
        found[table] = (match[1], match[2])
    return found


def test_page_has_the_columns_of_the_schemas() -> None:
    text = PAGE.read_text()
    right = with_generated(text, RENDERERS)
    if os.environ.get(REWRITE):
        PAGE.write_text(right)
        return
    wrong = [line for line in right.splitlines() if line not in text.splitlines()]
    assert text == right, (
        f"docs/tables.md differs from schemas/tables.py, which has {wrong}: "
        f"{REWRITE}=1 python -m pytest tests/docs/test_tables_page.py rewrites it"
    )


def test_rewriting_mends_a_column_that_drifted() -> None:
    text = PAGE.read_text()
    drifted = text.replace("| `answer` | String |", "| `answer` | Int8 |")
    assert drifted != text
    assert with_generated(drifted, RENDERERS) == text


def test_every_table_has_its_section() -> None:
    assert set(files_named()) == set(TABLES)
    generated = re.findall(r"<!-- generated: columns (\w+) -->", PAGE.read_text())
    assert set(generated) == set(TABLES)


@pytest.mark.parametrize("table", TABLES)
def test_table_lies_where_the_page_says(
    table: str, workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = workplace.folder / "turnledger-store"
    stage, pattern = files_named()[table]
    assert f"/stage={stage}/" in pattern
    if stage == "problems" and not (store / "run=mine").exists():  # operations.md makes it
        workplace.run_here([OWN_PROBLEMS], monkeypatch)
    if stage == "trajectories" and not (store / "run=theirs").exists():  # importing.md makes it
        workplace.run_here([OWN_TRAJECTORIES], monkeypatch)
    # cold-start.md makes it
    if table == "cold_start_examples" and not (store / "run=taught").exists():
        workplace.run_here([OWN_CONVERSATIONS], monkeypatch)
    if table == "gradient_noise":  # a study makes it
        measured = Place(store=str(store), run="small", iteration=1)
        with workplace.with_server():
            measure_gradients([measured], lambda done: None)
    present = set(store.rglob(f"{table}.parquet")) - set((store / "replaced").rglob("*"))
    assert present
    assert present == set(store.glob(pattern))


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the queries of the page find in rows whose answers are known."""
    monkeypatch.chdir(tmp_path)
    handmade_store(tmp_path / "turnledger-store", run="small", iteration=1)
    names: dict[str, Any] = {}
    for block in blocks_of(PAGE):
        if block.language == "python" and not block.why_not_run and "manifest" not in block.text:
            exec(compile(block.text, block.name, "exec"), names)
    return names


def test_query_finds_penalised_turns_of_right_trajectories(answers: dict[str, Any]) -> None:
    found = answers["penalised"]
    assert found.select("task_id", "sample_index", "turn_index").rows() == [("sum", 0, 0)]
    assert found["advantage"][0] < 0


def test_query_counts_failing_calls_without_broken_ones(answers: dict[str, Any]) -> None:
    expected = [(1, 0, 7, 2 / 7), (1, 1, 1, 0.0), (1, 2, 1, 0.0)]
    assert answers["failing"].rows() == expected


def test_query_finds_what_was_shaped(answers: dict[str, Any]) -> None:
    found = answers["shaped"]
    assert found.select("task_id", "sample_index").rows() == [("sum", 1), ("sum", 2)]
    assert (found["added"] == 0.5 * found["similarity_mean"]).all()
    assert found["added"].is_sorted(descending=True)


def test_query_says_where_the_turns_went(answers: dict[str, Any]) -> None:
    counts = answers["credit"].collect().select(pl.col("excluded").cast(pl.String), "turns")
    assert dict(counts.rows())["infrastructure"] == 1
    assert counts["turns"].sum() == 12
