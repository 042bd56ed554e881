"""Which groups a filter shows, and what their strips say, against plain loops over the tables."""

from collections.abc import Callable

import polars as pl
import pytest
from page_runs import BENCHMARK, BRANCH, IMPORTED, RUN, make_store

from flows.page.groups import PAGE, Choice, against_outcome, groups_view
from flows.page.reading import NotFoundError, Reader
from schemas.tables import TURN_KEY
from storage import Store, open_table

Row = dict[str, object]


def joined(store: Store, run: str, *tables: str) -> list[Row]:
    """Returns the rows of several tables of iteration 1, joined turn by turn."""
    frame = open_table(store.root, run, "turns", iteration=1).select(*TURN_KEY, "code", "answer")
    for table in tables:
        other = open_table(store.root, run, table, iteration=1).drop("run", "iteration")
        frame = frame.join(other, on=TURN_KEY, how="left", suffix=f"_{table}")
    return frame.collect().to_dicts()


def of_other_sign(a: object, b: object) -> bool:
    return isinstance(a, float) and isinstance(b, float) and a * b < 0


FILTERS: dict[str, Callable[[Row], bool]] = {
    "shaped": lambda row: row["shaping"] == "shaped",
    "against-outcome": lambda row: of_other_sign(
        row["advantage"], None if row["outcome"] is None else 2 * float(str(row["outcome"])) - 1
    ),
    "timeouts": lambda row: row["status"] == "timeout",
    "void": lambda row: row["code"] is None and row["answer"] is None,
}


@pytest.mark.parametrize("show", FILTERS)
def test_a_filter_shows_the_groups_with_such_a_turn(
    reader: Reader, store: Store, show: str
) -> None:
    tables = ("executions", "shaped_rewards", "advantages")
    wanted = {row["task_id"] for row in joined(store, RUN, *tables) if FILTERS[show](row)}
    view = groups_view(reader, Choice(run=RUN, iteration=1, show=show))
    assert {group.task for group in view.groups} == wanted
    assert wanted
    assert len(wanted) == view.found < view.in_all


@pytest.mark.parametrize(
    ("outcome", "advantage", "is_against"),
    [
        (1.0, -0.5, True),
        (1.0, 0.5, False),
        (0.0, 0.5, True),
        (0.0, -0.5, False),
        (0.0, 0.0, False),
        (1.0, 0.0, False),
    ],
)
def test_a_sign_is_against_the_outcome_in_both_directions(
    outcome: float, advantage: float, is_against: bool
) -> None:
    told = pl.select(against_outcome(pl.lit(advantage), pl.lit(outcome))).item()
    assert told is is_against


def test_flips_are_turns_whose_sign_differs_between_the_runs(reader: Reader, store: Store) -> None:
    ours, theirs = (
        {tuple(row[name] for name in TURN_KEY): row["advantage"] for row in rows}
        for rows in (joined(store, run, "advantages") for run in (BRANCH, RUN))
    )
    wanted = {key for key in ours if of_other_sign(ours[key], theirs[key])}
    view = groups_view(reader, Choice(run=BRANCH, iteration=1, show="flips", against=RUN))
    marked = {
        (group.task, strip.sample, turn)
        for group in view.groups
        for strip in group.strips
        for turn, cell in enumerate(strip.cells)
        if "⇄" in dict(cell.marks)
    }
    assert marked == wanted
    assert wanted


def test_cells_hold_the_advantages_of_the_table(reader: Reader, store: Store) -> None:
    view = groups_view(reader, Choice(run=RUN, iteration=1))
    shown = {
        (group.task, strip.sample, turn): cell.advantage
        for group in view.groups
        for strip in group.strips
        for turn, cell in enumerate(strip.cells)
    }
    stored = open_table(store.root, RUN, "advantages", iteration=1).collect()
    assert shown == {row[:3]: row[3] for row in stored.select(*TURN_KEY, "advantage").rows()}


def test_groups_come_in_the_order_in_which_they_were_asked(reader: Reader, store: Store) -> None:
    asked = open_table(store.root, RUN, "prompts", iteration=1).collect()["task_id"].to_list()
    view = groups_view(reader, Choice(run=RUN, iteration=1))
    assert [group.task for group in view.groups] == asked


@pytest.mark.parametrize(
    ("iteration", "split", "neighbours"),
    [
        (0, "train", [1]),
        (1, "train", [0, 2]),
        (0, "evaluation", [2]),
        (2, "evaluation", [0]),
        (2, BENCHMARK, []),
    ],
)
def test_neighbours_are_those_that_can_be_shown(
    reader: Reader, iteration: int, split: str, neighbours: list[int]
) -> None:
    choice = Choice(run=RUN, iteration=iteration, split=split)
    assert groups_view(reader, choice).neighbours == neighbours


def test_an_import_shows_its_groups_without_worth(reader: Reader) -> None:
    view = groups_view(reader, Choice(run=IMPORTED, iteration=1))
    assert {strip.outcome for group in view.groups for strip in group.strips} == {"not scored"}
    assert "These turns have no advantages yet." in view.notes


def test_every_group_is_on_one_page(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(make_store(tmp_path_factory.mktemp("paged") / "store"))
    monkeypatch.setattr("flows.page.groups.PAGE", 3)
    pages = [groups_view(reader, Choice(run=RUN, iteration=1, page=page)) for page in (1, 2)]
    assert pages[0].pages == 2
    assert [len(page.groups) for page in pages] == [3, 1]
    assert len({group.task for page in pages for group in page.groups}) == 4
    with pytest.raises(NotFoundError, match="there is no page 3: there are 2"):
        groups_view(reader, Choice(run=RUN, iteration=1, page=3))


def test_a_page_reads_no_more_than_its_groups(
    reader: Reader, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    collected = []
    collect = pl.LazyFrame.collect

    def watched(frame: pl.LazyFrame, *arguments: object, **options: object) -> pl.DataFrame:
        found = collect(frame, *arguments, **options)  # type: ignore[call-overload]
        collected.append(found)
        return found  # type: ignore[no-any-return]

    monkeypatch.setattr(pl.LazyFrame, "collect", watched)
    monkeypatch.setattr("flows.page.groups.PAGE", 1)
    groups_view(reader, Choice(run=RUN, iteration=1, page=2))
    with_turns = [frame for frame in collected if "turn_index" in frame.columns]
    assert {task for frame in with_turns for task in frame["task_id"]} == {"slow"}
    assert PAGE > 1
