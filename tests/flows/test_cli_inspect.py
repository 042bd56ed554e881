from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from handmade_runs import put_run
from small_runs import Cli

from flows.cli_inspect import show
from schemas.errors import StoreError
from storage import RunRecord, Store, open_table


def test_a_table_lost_after_it_was_opened_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(tmp_path / "store", create=True)
    put_run(store, "old")
    now = datetime.now(UTC)
    values = {"config": {}, "config_digest": "d", "status": "finished"}
    store.save_run(RunRecord(name="old", created_at=now, updated_at=now, **values))

    def open_and_lose(*arguments: Any, **options: Any) -> pl.LazyFrame:
        frame = open_table(*arguments, **options)
        (file,) = store.root.rglob("turns.parquet")
        file.unlink()
        return frame

    monkeypatch.setattr("storage.open_table", open_and_lose)
    with pytest.raises(StoreError, match=r"^cannot read turns of old: [^\n]*: do the same again$"):
        show("turns", str(store.root), "old")


def test_show_shows_the_columns_that_are_asked_for(cli: Cli, trained: Path) -> None:
    shown = cli.run(
        "show",
        "executions",
        "--store",
        str(trained),
        "--run",
        "small",
        "--columns",
        "status, stdout",
    )
    assert shown.returncode == 0, shown.stderr
    head = next(line for line in shown.stdout.splitlines() if "┆" in line)
    assert [name.strip() for name in head.strip("│ ").split("┆")] == ["status", "stdout"]


def test_show_says_that_columns_are_left_out(cli: Cli, trained: Path) -> None:
    wide = cli.run("show", "turns", "--store", str(trained), "--run", "small")
    assert wide.returncode == 0, wide.stderr
    assert wide.stdout.splitlines()[-1].startswith("not all columns have room: ")
    few = cli.run(
        "show", "turns", "--store", str(trained), "--run", "small", "--columns", "turn_index"
    )
    assert "not all columns" not in few.stdout


def test_show_names_a_column_that_is_not_there(cli: Cli, trained: Path) -> None:
    shown = cli.run(
        "show", "executions", "--store", str(trained), "--run", "small", "--columns", "statuses"
    )
    assert shown.returncode == 1
    assert shown.stderr.startswith("error: executions has no column statuses: it has run,")
