"""One iteration: its groups, each a heat strip of advantages by turn, and which groups to show."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from flows.page.reading import NotFoundError, Reader, Tables
from schemas.tables import TRAJECTORY_KEY, TURN_KEY
from stages.comparison import Side, compare
from storage import scan_errors

PAGE = 20
"""Groups on a page."""

SHOWN: Mapping[str, str] = {
    "all": "all groups",
    "shaped": "wrong but shaped",
    "against-outcome": "sign against the outcome",
    "flips": "sign flips against another run",
    "timeouts": "with a timeout",
    "void": "with a void turn",
}
"""Filters of groups by name: a group is shown if it has such a trajectory or turn."""


OF_EVALUATIONS = ("all", "timeouts", "void")
"""The filters of held-out groups, which have neither rewards nor advantages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One turn in a heat strip."""

    advantage: float | None
    excluded: str | None
    """Why the turn is left out of the update."""
    marks: Sequence[tuple[str, str]]
    """Sign and meaning of what is special: a timeout, a void turn, a sign that flipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Strip:
    """One trajectory."""

    sample: int
    outcome: str
    """`right`, `wrong`, or why nobody knows."""
    reward: float | None
    """Sum over its turns, after shaping where there was any."""
    similarity: float | None
    cells: Sequence[Cell]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One problem with its trajectories."""

    task: str
    problem: str
    answer: str
    strips: Sequence[Strip]

    @property
    def turns(self) -> int:
        """Turns of the longest trajectory."""
        return max((len(strip.cells) for strip in self.strips), default=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which groups of an iteration are asked for."""

    run: str
    iteration: int
    split: str = "train"
    show: str = "all"
    against: str | None = None
    """Run whose advantages are the other side of flips."""
    page: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupsView:
    """What the page of an iteration shows."""

    choice: Choice
    groups: Sequence[Group]
    found: int
    """Groups that the filter lets through."""
    in_all: int
    pages: int
    neighbours: Sequence[int]
    """The iterations before and after, where there are such."""
    notes: Sequence[str]
    is_scored: bool
    """Whether there are rewards for the estimators to credit."""


def groups_view(reader: Reader, choice: Choice) -> GroupsView:
    """Returns a page of the groups of an iteration.

    Raises:
        NotFoundError: If the run, its iteration or the page is not there.
        StoreError: If a table cannot be read.
    """
    reader.record(choice.run)
    iterations = reader.iterations(choice.run, choice.split)
    if choice.iteration not in iterations:
        known = f"it has {iterations[0]} to {iterations[-1]}" if iterations else "it has none yet"
        what = {"train": "iteration", "evaluation": "evaluation"}.get(
            choice.split, f"benchmark {choice.split} of iteration"
        )
        raise NotFoundError(f"run {choice.run} has no {what} {choice.iteration}: {known}")
    tables = reader.tables(choice.run, choice.iteration, choice.split)
    with scan_errors(f"tables of {choice.run}"):
        tasks = tables.tasks()
        flipped = None
        if choice.against is not None:
            flipped = _flipped_turns(reader, tables, choice)
        chosen = tasks
        if choice.show != "all":
            chosen = tasks.filter(pl.col("task_id").is_in(_tasks_with(tables, choice, flipped)))
        pages = max(1, -(-len(chosen) // PAGE))
        if not 1 <= choice.page <= pages:
            raise NotFoundError(f"there is no page {choice.page}: there are {pages}")
        shown = chosen["task_id"].slice((choice.page - 1) * PAGE, PAGE).to_list()
        return GroupsView(
            choice=choice,
            groups=list(_groups(tables, shown, flipped)),
            found=len(chosen),
            in_all=len(tasks),
            pages=pages,
            neighbours=[i for i in iterations if i < choice.iteration][-1:]
            + [i for i in iterations if i > choice.iteration][:1],
            notes=list(_notes(tables, tasks)),
            is_scored=choice.split == "train" and tables.has("shaped_rewards"),
        )


def against_outcome(advantage: pl.Expr, outcome: pl.Expr) -> pl.Expr:
    """Says whether a turn of a right trajectory has a negative advantage, or the reverse."""
    return ((outcome > 0) & (advantage < 0)) | ((outcome == 0) & (advantage > 0))


def is_void() -> pl.Expr:
    """Says whether a turn has neither code nor answer."""
    return pl.col("code").is_null() & pl.col("answer").is_null()


def _tasks_with(tables: Tables, choice: Choice, flipped: pl.DataFrame | None) -> pl.Series:
    """Returns the groups that a filter lets through."""
    if choice.show == "flips":
        return pl.Series([], dtype=pl.String) if flipped is None else flipped["task_id"].unique()
    if choice.show == "shaped":
        rows = tables.open("shaped_rewards").filter(pl.col("shaping") == "shaped")
    elif choice.show == "timeouts":
        rows = tables.open("executions").filter(pl.col("status") == "timeout")
    elif choice.show == "void":
        rows = tables.open("turns").filter(is_void())
    else:
        # By trajectory, for a join by turn would take ten times as long.
        by_trajectory = (
            tables.open("advantages")
            .group_by(TRAJECTORY_KEY)
            .agg(low=pl.col("advantage").min(), high=pl.col("advantage").max())
            .join(tables.outcomes(), on=TRAJECTORY_KEY)
        )
        outcome = pl.col("outcome")
        rows = by_trajectory.filter(
            against_outcome(pl.col("low"), outcome) | against_outcome(pl.col("high"), outcome)
        )
    return rows.select(pl.col("task_id").unique()).collect()["task_id"]


def _flipped_turns(reader: Reader, tables: Tables, choice: Choice) -> pl.DataFrame:
    """Returns the keys of the turns whose advantage has another sign in the other run."""
    assert choice.against is not None
    reader.record(choice.against)
    other = reader.tables(choice.against, choice.iteration, choice.split)
    credit = [side.open("advantages").select(*TURN_KEY, "advantage") for side in (other, tables)]
    compared = compare(*(Side(rows=rows) for rows in credit), value="advantage")
    return compared.filter("flipped").select(TURN_KEY)


def _groups(tables: Tables, tasks: Sequence[str], flipped: pl.DataFrame | None) -> Iterator[Group]:
    if not tasks:
        return
    frame = _turns_of(tables, tasks, flipped)
    prompts = (
        tables.open("prompts")
        .filter(pl.col("task_id").is_in(tasks))
        .select("task_id", "problem", "answer")
        .collect()
    )
    asked = {task: (problem, answer) for task, problem, answer in prompts.iter_rows()}
    by_task: dict[str, dict[int, list[dict[str, Any]]]] = {task: {} for task in tasks}
    for row in frame.iter_rows(named=True):
        by_task[row["task_id"]].setdefault(row["sample_index"], []).append(row)
    for task, samples in by_task.items():
        problem, answer = asked.get(task, ("", ""))
        strips = [_strip(sample, rows) for sample, rows in samples.items()]
        yield Group(task=task, problem=problem, answer=answer, strips=strips)


def _turns_of(tables: Tables, tasks: Sequence[str], flipped: pl.DataFrame | None) -> pl.DataFrame:
    """Returns what the strips of some groups show, a row a turn in the order of the key."""

    def of_tasks(table: str, *columns: pl.Expr | str) -> pl.LazyFrame:
        return tables.open(table).filter(pl.col("task_id").is_in(tasks)).select(*columns)

    turns = of_tasks("turns", *TURN_KEY, is_void().alias("is_void"))
    credit = of_tasks("advantages", *TURN_KEY, "advantage", pl.col("excluded").cast(pl.String))
    rewards = of_tasks("turn_rewards", *TURN_KEY, "total")
    shaped = of_tasks("shaped_rewards", *TURN_KEY, "shaped_total", "similarity_mean")
    runs = of_tasks("executions", *TURN_KEY, pl.col("status").cast(pl.String))
    outcomes = tables.outcomes().filter(pl.col("task_id").is_in(tasks))
    for other in (credit, rewards, shaped, runs):
        turns = turns.join(other, on=TURN_KEY, how="left")
    turns = turns.join(outcomes, on=TRAJECTORY_KEY, how="left")
    if flipped is None:
        turns = turns.with_columns(flipped=pl.lit(False))
    else:
        marked = flipped.lazy().with_columns(flipped=pl.lit(True))
        turns = turns.join(marked, on=TURN_KEY, how="left")
    return turns.sort(TURN_KEY).collect()


def _strip(sample: int, rows: Sequence[Mapping[str, Any]]) -> Strip:
    rewards = [row["total"] if row["shaped_total"] is None else row["shaped_total"] for row in rows]
    known = [reward for reward in rewards if reward is not None]
    outcome = rows[0]["outcome"]
    reasons = {row["excluded"] for row in rows} - {None}
    unknown = "left out" if "infrastructure" in reasons else "not scored"
    return Strip(
        sample=sample,
        outcome=unknown if outcome is None else "right" if outcome > 0 else "wrong",
        reward=sum(known) if known else None,
        similarity=next(
            (r["similarity_mean"] for r in rows if r["similarity_mean"] is not None), None
        ),
        cells=[
            Cell(
                advantage=row["advantage"],
                excluded=None if row["excluded"] is None else row["excluded"].replace("_", " "),
                marks=list(_marks(row)),
            )
            for row in rows
        ],
    )


def _marks(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    status = row["status"]
    if status == "timeout":
        yield "T", "timeout"
    elif status not in (None, "ok"):
        yield "!", f"execution: {status.replace('_', ' ')}"
    if row["is_void"]:
        yield "∅", "void turn: neither code nor answer"
    if row["flipped"]:
        yield "⇄", "another sign in the other run"


def _notes(tables: Tables, tasks: pl.DataFrame) -> Iterator[str]:
    if tasks.is_empty():
        yield "No trajectory of this iteration is stored."
        return
    if tables.split != "train":
        yield "An evaluation has no rewards and no advantages: a cell stands for a turn."
        return
    missing = {
        "turn_rewards": "These trajectories are not scored yet.",
        "advantages": "These turns have no advantages yet.",
    }
    for table, says in missing.items():
        if tables.open(table).select(pl.len()).collect().item() == 0:
            yield says
