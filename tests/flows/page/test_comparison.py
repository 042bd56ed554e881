"""Two runs, and two estimators, side by side."""

import pytest
from page_runs import BRANCH, EMPTY, IMPORTED, RUN

from flows.compare import diff
from flows.estimators import estimators_of
from flows.page.comparison import compared_estimators, compared_runs
from flows.page.reading import NotFoundError, Reader
from storage import Store


def test_flips_of_two_runs_are_those_of_the_diff_largest_first(
    reader: Reader, store: Store
) -> None:
    changes = compared_runs(reader, RUN, BRANCH, 1).changes
    assert changes is not None
    flipped = diff(store.root, RUN, BRANCH, iteration=1).rows.filter("flipped")
    keys = flipped.select("task_id", "sample_index", "turn_index").rows()
    assert {(turn.task, turn.sample, turn.turn) for turn in changes.flips} == {*keys}
    assert changes.flipped == len(keys) > 0
    sizes = [abs(turn.b - turn.a) for turn in changes.flips if None not in (turn.a, turn.b)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_last_common_iteration_is_taken_by_itself(reader: Reader) -> None:
    view = compared_runs(reader, RUN, BRANCH, None)
    assert (view.iteration, view.common) == (2, [1, 2])


def test_settings_that_differ_are_told(reader: Reader) -> None:
    settings = compared_runs(reader, RUN, BRANCH, 1).settings
    assert settings == [("iterations", "2", "20"), ("advantages.gamma", "0.9", "0.5")]


def test_curves_of_both_runs_are_in_one_chart(reader: Reader) -> None:
    charts = compared_runs(reader, RUN, BRANCH, 1).charts
    assert all(len(chart.lines) == 2 for chart in charts)
    assert [line.name for line in charts[0].lines] == [f"{RUN} avg@k", f"{BRANCH} avg@k"]


@pytest.mark.parametrize(
    ("other", "iteration", "says"),
    [
        (IMPORTED, None, "No iteration with advantages is in both runs."),
        (EMPTY, None, "No iteration with advantages is in both runs."),
        (BRANCH, 7, "Iteration 7 does not have advantages in both runs."),
    ],
)
def test_what_cannot_be_compared_is_told(
    reader: Reader, other: str, iteration: int | None, says: str
) -> None:
    view = compared_runs(reader, RUN, other, iteration)
    assert (view.changes, view.note) == (None, says)


def test_flips_of_two_estimators_are_the_turns_whose_sign_differs(
    reader: Reader, store: Store
) -> None:
    view = compared_estimators(reader, RUN, 1, "gtpo", "gtpo_turn_index")
    credit = estimators_of(store.root, RUN, iteration=1).credit
    wanted = {
        (row["task_id"], row["sample_index"], row["turn_index"])
        for row in credit.to_dicts()
        if (row["gtpo"] or 0) * (row["gtpo_turn_index"] or 0) < 0
    }
    assert {(turn.task, turn.sample, turn.turn) for turn in view.flips} == wanted
    assert view.flipped == len(wanted)


def test_an_estimator_that_is_not_there_is_named(reader: Reader) -> None:
    with pytest.raises(NotFoundError, match=r"there is no estimator best for this run; .* gtpo"):
        compared_estimators(reader, RUN, 1, "gtpo", "best")


def test_charts_of_two_estimators_have_titles_of_their_own(reader: Reader) -> None:
    view = compared_estimators(reader, RUN, 1, "gtpo", "grpo")
    titles = [chart.title for chart in view.charts]
    assert len(titles) > 1
    assert len(set(titles)) == len(titles)
