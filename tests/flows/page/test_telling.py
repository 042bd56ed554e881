"""The choice of telling trajectories: a rule, the same in whatever order rows come."""

import polars as pl
from hypothesis import given
from hypothesis import strategies as st
from page_runs import RUN

from flows.page.reading import Reader
from flows.page.telling import KEY, KINDS, most_telling, summaries_of, telling

FIGURES = {
    "outcome": st.sampled_from([0.0, 1.0, None]),
    "shaped": st.sampled_from([0.0, 0.2, 0.4, None]),
    "lowest": st.sampled_from([-1.5, -0.1, 0.3, None]),
    "highest": st.sampled_from([-0.2, 0.4, 2.0, None]),
    "change": st.sampled_from([0.0, 0.5, None]),
    "timeouts": st.sampled_from([0, 1, None]),
    "voids": st.sampled_from([0, 1]),
    "turns": st.integers(1, 4),
}
SCHEMA = {
    **dict(zip(KEY, (pl.Int32, pl.String, pl.Int32), strict=True)),
    **dict.fromkeys(("outcome", "shaped", "lowest", "highest", "change"), pl.Float64),
    **dict.fromkeys(("timeouts", "voids", "turns"), pl.Int64),
}
ROWS = st.lists(st.fixed_dictionaries(FIGURES), max_size=30).map(
    lambda rows: pl.DataFrame(
        [
            {"iteration": i // 7, "task_id": f"t{i % 3}", "sample_index": i, **row}
            for i, row in enumerate(rows)
        ],
        schema=SCHEMA,
    )
)


def slow_choice(rows: pl.DataFrame, count: int) -> list[tuple[object, ...]]:
    """Takes the best of each kind in turn, each trajectory once, by plain loops."""
    ranked = []
    for name, kind in KINDS.items():
        figures = rows.filter(kind.where).select(*KEY, figure=kind.figure).to_dicts()
        figures.sort(key=lambda row: (-row["figure"], *(row[part] for part in KEY)))
        ranked.append([(*(row[part] for part in KEY), name) for row in figures])
    chosen: list[tuple[object, ...]] = []
    for rank in range(len(rows)):
        for candidates in ranked:
            if rank < len(candidates):
                candidate = candidates[rank]
                if len(chosen) < count and candidate[:3] not in [c[:3] for c in chosen]:
                    chosen.append(candidate)
    return chosen


@given(ROWS, st.integers(1, 25))
def test_the_choice_is_that_of_plain_loops(rows: pl.DataFrame, count: int) -> None:
    assert telling(rows.lazy(), count).select(*KEY, "kind").rows() == slow_choice(rows, count)


@given(ROWS, st.integers(0, 9))
def test_the_order_of_rows_does_not_matter(rows: pl.DataFrame, seed: int) -> None:
    shuffled = rows.sample(fraction=1, shuffle=True, seed=seed) if len(rows) else rows
    assert telling(shuffled.lazy(), 10).equals(telling(rows.lazy(), 10))


def test_summaries_have_a_row_for_every_trajectory(reader: Reader) -> None:
    summaries = summaries_of(reader, RUN).collect()
    assert len(summaries) == 2 * 11
    assert summaries.select(KEY).is_unique().all()


def test_a_run_tells_of_every_kind_that_it_has(reader: Reader) -> None:
    chosen = most_telling(reader, RUN, 20)
    first = {kind: (task, sample) for _, task, sample, kind, _ in chosen.reverse().iter_rows()}
    assert first["shaped"] == ("sum", 1)
    assert first["right_negative"] == ("sum", 0)
    assert first["timeout"] == ("slow", 0)
    assert first["void"] == ("silent", 0)
