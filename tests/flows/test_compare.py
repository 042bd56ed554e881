"""`turnledger diff` and `flows.compare.diff` on runs made by hand."""

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from handmade_runs import REWARDS, put, put_run
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

from flows.cli import app
from flows.cli_inspect import excerpt
from flows.compare import COMPARABLE, VALUES, diff, spans
from flows.report import changes_line
from schemas.errors import StoreError
from schemas.tables import TABLES, TURN_KEY, Evaluations
from storage import Store, open_table

HOSTILE = "[bold red]x[/] [/nothing] :smile: \x1b[31m\a\r\u202e\x9b2J\nend"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Runs `old` and `new` of iterations 1 and 2 that differ in the discount."""
    made = Store.open(tmp_path / "store", create=True)
    for iteration in (1, 2):
        put_run(made, "old", iteration=iteration, gamma=0.9)
        put_run(made, "new", iteration=iteration, gamma=0.2)
    return made


def command(store: Store, *words: str, width: int = 100) -> str:
    arguments = ["diff", *words, "--store", str(store.root)]
    done = CliRunner(env={"COLUMNS": str(width)}).invoke(app, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


# --- what is compared -----------------------------------------------------------------------


def test_changes_are_those_of_the_stored_advantages(store: Store) -> None:
    old, new = (open_table(store.root, run, "advantages").collect() for run in ("old", "new"))
    joined = old.join(new, on=["iteration", *TURN_KEY], suffix="_new")
    pairs = joined.select("advantage", "advantage_new").rows()
    everything = diff(store.root, "old", "new").summary.row(0, named=True)
    assert everything["turns"] == len(pairs) == 2 * sum(len(turns) for turns in REWARDS)
    assert everything["changed"] == sum(a != b for a, b in pairs)
    assert everything["flips"] == sum(a * b < 0 for a, b in pairs) > 0


def test_a_run_does_not_differ_from_itself(store: Store) -> None:
    changes = diff(store.root, "old", "old")
    assert changes.summary.select("changed", "flips").row(0) == (0, 0)
    assert changes.largest.is_empty()


def test_largest_changes_come_with_their_text(store: Store) -> None:
    changes = diff(store.root, "old", "new", largest=3)
    assert (
        changes.largest["difference"].abs().to_list()
        == sorted(changes.rows["difference"].abs().to_list(), reverse=True)[:3]
    )
    for row in changes.largest.iter_rows(named=True):
        text = f"text {row['sample_index']} {row['turn_index']}"
        assert (row["text_a"], row["text_b"]) == (text, text)


def test_each_run_gives_its_own_text(store: Store) -> None:
    put_run(store, "other", rewards=[[1.0, 0.0], *REWARDS[1:]], texts={(0, 0): "else"})
    largest = diff(store.root, "old", "other", iteration=1, largest=99).largest
    told = {row[:2]: row[2:] for row in largest.select(*TURN_KEY[1:], "text_a", "text_b").rows()}
    assert told[0, 0] == ("text 0 0", "else")
    assert told[0, 2] == ("text 0 2", None)


def test_only_iterations_of_both_runs_are_compared_and_the_others_told(store: Store) -> None:
    put_run(store, "old", iteration=4)
    put_run(store, "new", iteration=3)
    changes = diff(store.root, "old", "new")
    assert (changes.iterations, changes.only_a, changes.only_b) == ([1, 2], [4], [3])
    assert set(changes.rows["iteration"]) == {1, 2}
    assert "only in old: iterations 4\nonly in new: iterations 3\n" in command(store, "old", "new")


def test_one_iteration_can_be_asked_for(store: Store) -> None:
    changes = diff(store.root, "old", "new", iteration=2)
    assert set(changes.rows["iteration"]) == {2}
    assert (changes.only_a, changes.only_b) == ([], [])


def test_another_column_can_be_compared(store: Store) -> None:
    changes = diff(store.root, "old", "new", column="return", iteration=1)
    first = changes.rows.row(0, named=True)
    assert (first["a"], first["b"]) == (pytest.approx(0.81), pytest.approx(0.04))


def test_turns_are_compared_in_every_column(store: Store) -> None:
    put_run(store, "other", texts={(1, 0): "else"})
    changes = diff(store.root, "old", "other", table="turns")
    assert changes.columns.rows() == [("text", 1)]
    assert changes.summary["changed"][0] == 1
    assert changes.summary["mean_a"].to_list() == [None] * changes.summary.height


def test_samples_of_an_evaluation_are_compared_by_being_right(store: Store) -> None:
    for run, correct in (("old", [True, False, None]), ("new", [False, False, True])):
        put(store, run, 0, "evaluation", evaluations=evaluations(correct))
    changes = diff(store.root, "old", "new", table="evaluations")
    assert changes.rows.select("sample_index", "a", "b", "changed", "outcome_a").rows() == [
        (0, 1.0, 0.0, True, "right"),
        (1, 0.0, 0.0, False, "wrong"),
        (2, None, 1.0, True, "excluded"),
    ]
    assert set(changes.summary["part"]) == {"all", "outcome"}


def test_a_run_without_rewards_has_unknown_outcomes(store: Store) -> None:
    credit = open_table(store.root, "old", "advantages").drop("run", "iteration").head(2)
    put(store, "bare", 1, "advantages", advantages=credit.collect())
    rows = diff(store.root, "bare", "old").rows
    assert set(rows["outcome_a"].drop_nulls()) == {"unknown"}
    assert set(rows["outcome_b"]) == {"right", "wrong"}


def test_line_of_a_rerun_names_the_counts(store: Store) -> None:
    summary = diff(store.root, "old", "new", iteration=2).summary.row(0, named=True)
    counts = [summary[name] for name in ("turns", "changed", "flips")]
    told = changes_line(summary, 2)
    assert re.findall(r"\d+", told.partition(":")[2]) == [str(count) for count in counts]


def test_every_named_value_is_a_column_that_can_be_compared() -> None:
    for table, column in VALUES.items():
        assert table in COMPARABLE
        assert column in pl.Schema(TABLES[table].schema)


@pytest.mark.parametrize(
    ("numbers", "told"), [([], "none"), ([3], "3"), ([1, 2, 3, 7, 9, 8], "1 to 3, 7 to 9")]
)
def test_spans_tell_every_gap(numbers: list[int], told: str) -> None:
    assert spans(numbers) == told


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"b": "newer"}, r"run newer is not in .*; known runs: new, old"),
        ({"table": "advantage"}, r"table advantage is unknown; known tables: .*advantages"),
        (
            {"table": "updates"},
            r"table updates has no rows of turns; tables to compare: .*turns, .*",
        ),
        ({"table": "executions"}, r"run old has no table executions of split train yet"),
        ({"column": "estimator"}, r"column estimator .* columns that can: reward, return, .*"),
        ({"column": "turn_index"}, r"column turn_index of advantages cannot be compared"),
        ({"iteration": 7}, r"run old has no advantages of iteration 7"),
        ({"split": "test"}, r"split test is unknown; known splits: train, evaluation"),
    ],
    ids=str,
)
def test_impossible_comparisons_are_refused_in_one_line(
    store: Store, question: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=rf"^{message}[^\n]*$"):
        diff(store.root, **({"a": "old", "b": "new"} | question))


def test_runs_without_a_common_iteration_are_refused(store: Store) -> None:
    put_run(store, "later", iteration=5)
    with pytest.raises(StoreError, match=r"both runs: old has 1 to 2, later has 5$"):
        diff(store.root, "old", "later")


@pytest.mark.parametrize("lost", ["advantages", "shaped_rewards", "turns"])
def test_a_table_lost_after_it_was_opened_is_one_line(
    store: Store, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    def open_and_lose(place: Any, run: str, table: str, **options: Any) -> pl.LazyFrame:
        frame = open_table(place, run, table, **options)
        if table == lost:
            for file in store.root.glob(f"run={run}/iteration=0001/**/{table}.parquet"):
                file.unlink()
        return frame

    monkeypatch.setattr("flows.compare.open_table", open_and_lose)
    with pytest.raises(StoreError, match=r"^cannot read [^\n]*: do the same again$"):
        diff(store.root, "old", "new")


# --- the command ----------------------------------------------------------------------------


def test_command_shows_counts_by_turn_index_and_outcome(store: Store) -> None:
    shown = command(store, "old", "new")
    summary = diff(store.root, "old", "new").summary
    rows = [line.split() for line in shown.splitlines()]
    for part in summary.iter_rows(named=True):
        name = ["turn", str(part["turn_index"])] if part["part"] == "turn_index" else None
        name = name or [part["outcome"] or "all"]
        wanted = [*name, str(part["turns"]), str(part["changed"]), str(part["flips"])]
        assert any(row[: len(wanted)] == wanted for row in rows), wanted


def test_command_shows_both_biases_of_both_runs(store: Store) -> None:
    shown = command(store, "old", "new")
    everything = diff(store.root, "old", "new").summary.row(0, named=True)
    for name in ("turn_count_bias", "turn_index_bias"):
        for letter in "ab":
            assert f"{everything[f'{name}_{letter}']:.4f}" in shown


def test_text_of_a_policy_is_shown_and_never_obeyed(store: Store) -> None:
    put_run(store, "hostile", texts={(0, 0): HOSTILE}, gamma=0.2)
    shown = command(store, "old", "hostile", "--iteration", "1", "--rows", "99", width=300)
    harmless = r"[bold red]x[/] [/nothing] :smile: \x1b[31m\x07\r\u202e\x9b2J\nend"
    assert f"  B {harmless}\n" in shown
    assert all(c.isprintable() or c == "\n" for c in shown)


def test_names_of_tasks_are_shown_and_never_obeyed(store: Store) -> None:
    credit = open_table(store.root, "old", "advantages").drop("run", "iteration").head(1)
    for run, value in (("c", 1.0), ("d", 2.0)):
        named = credit.with_columns(task_id=pl.lit("[red]\x1b[/x]"), advantage=pl.lit(value))
        put(store, run, 1, "advantages", advantages=named.collect())
    assert r"task [red]\x1b[/x]  sample 0" in command(store, "c", "d")


def test_long_texts_are_cut() -> None:
    assert excerpt("ab" * 1000) == "ab" * 120 + "..."


def test_command_shows_as_many_changes_as_asked(store: Store) -> None:
    assert command(store, "old", "new", "--rows", "2").count("  task t  ") == 2


def test_command_writes_the_rows_as_parquet(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "changes.parquet"
    command(store, "old", "new", "--to", str(file))
    assert_frame_equal(pl.read_parquet(file), diff(store.root, "old", "new").rows)


def test_help_has_an_example_that_runs(store: Store, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["diff", "--help"]).output
    line = next(line for line in shown.splitlines() if "Example: turnledger diff" in line)
    words = line.strip(" │").split()[3:]
    command(store, *("old", "new"), *words[2:])


def evaluations(correct: list[bool | None]) -> pl.DataFrame:
    rows = [
        {"sample_index": sample, "correct": right, "verdict": None}
        for sample, right in enumerate(correct)
    ]
    frame = pl.DataFrame(rows, schema_overrides={"correct": pl.Boolean}).with_columns(
        benchmark=pl.lit("held-out"),
        task_id=pl.lit("t"),
        source=pl.lit("handmade"),
        level=pl.lit(None),
        prediction=pl.lit(None),
        turns=pl.lit(1),
        tool_calls=pl.lit(0),
        failed_tool_calls=pl.lit(0),
        tokens=pl.lit(1),
        policy_version=pl.lit(0),
    )
    return Evaluations.validate(frame, cast=True)
