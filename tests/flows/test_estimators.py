"""Estimators side by side on stored runs, by the command and by its functions."""

from pathlib import Path

import polars as pl
import pytest
from small_runs import Cli

from flows.estimators import draw_estimators, estimators_of
from schemas.errors import StoreError
from stages.advantages import ESTIMATORS
from storage import open_table

RUN = "small"
"""Of the store that all tests share; others branch off it."""


def test_each_iteration_is_credited_as_the_run_was(trained: Path) -> None:
    compared = estimators_of(trained, RUN)
    stored = open_table(trained, RUN, "advantages").sort("iteration", "task_id", "sample_index",
                                                         "turn_index").collect()  # fmt: skip
    credit = compared.credit.sort("iteration", "task_id", "sample_index", "turn_index")
    assert compared.iterations == sorted(stored["iteration"].unique())
    assert credit["gtpo"].to_list() == stored["advantage"].to_list()


def test_the_command_writes_rows_and_a_figure(cli: Cli, trained: Path, tmp_path: Path) -> None:
    rows, figure = tmp_path / "credit.parquet", tmp_path / "estimators.png"
    done = cli.run(
        *("compare-estimators", "--store", str(trained), "--run", RUN, "--iteration", "1"),
        *("--to", str(rows), "--figure", str(figure)),
    )
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ESTIMATORS)
    assert set(ESTIMATORS) <= set(pl.read_parquet(rows).columns)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_one_group_is_shown_turn_by_turn(cli: Cli, trained: Path) -> None:
    task = str(estimators_of(trained, RUN).credit["task_id"][0])
    done = cli.run("compare-estimators", "--store", str(trained), "--run", RUN, "--group", task)
    assert done.returncode == 0, done.stderr
    assert f"group {task}" in done.stdout
    assert "0.0" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--run", RUN, "--iteration", "9"], "has no shaped_rewards of iteration 9"),
        (["--run", RUN, "--group", "none"], "has no group none"),
        (["--run", "none"], "none"),
        (["--run", RUN, "--figure", "picture.nonsense"], "picture.nonsense cannot be written"),
        (["--run", "none", "--figure", "no/such/folder.png"], "there is no folder no/such"),
        (["--run", RUN, "--to", "no/such/folder.parquet"], "cannot be written"),
    ],
)
def test_what_cannot_be_shown_is_one_line(
    cli: Cli, trained: Path, arguments: list[str], told: str
) -> None:
    done = cli.run("compare-estimators", "--store", str(trained), *arguments)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_rewards_without_states_leave_those_out_that_need_them(
    trained: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    def stateless(*arguments: object, **options: object) -> pl.LazyFrame:
        frame = open_table(*arguments, **options)  # type: ignore[arg-type]
        return frame.with_columns(state=pl.lit(None, pl.Int32))

    monkeypatch.setattr("flows.estimators.open_table", stateless)
    compared = estimators_of(trained, RUN)
    assert list(compared.left_out) == ["gigpo", "tree_td"]
    assert "gigpo" not in compared.credit.columns
    draw_estimators(compared, tmp_path / "figure.png")


def test_a_run_without_rewards_is_refused(trained: Path) -> None:
    with pytest.raises(StoreError, match="run none"):
        estimators_of(trained, "none")
