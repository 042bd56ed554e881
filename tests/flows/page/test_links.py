"""Addresses lead back to what they were made of."""

from urllib.parse import parse_qs, unquote, urlsplit

from hypothesis import given
from hypothesis import strategies as st

from flows.page.links import iteration_url, run_url, trajectory_url

TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


@given(TEXT, st.integers(0, 99), st.integers(0, 99))
def test_an_address_holds_any_task(task: str, iteration: int, sample: int) -> None:
    parts = urlsplit(trajectory_url("run", iteration, task, sample, "evaluation", turn=3))
    assert parse_qs(parts.query, keep_blank_values=True, strict_parsing=True) == {
        "task": [task],
        "sample": [str(sample)],
        "split": ["evaluation"],
    }
    assert (parts.path, parts.fragment) == (
        f"/runs/run/iterations/{iteration}/trajectory",
        "turn-3",
    )


@given(TEXT)
def test_an_address_holds_any_run_in_one_part(run: str) -> None:
    _, runs, name = run_url(run).split("/")
    assert (runs, unquote(name)) == ("runs", run)


def test_what_is_not_asked_is_left_out() -> None:
    assert iteration_url("run", 3, show=None, page=2) == "/runs/run/iterations/3?page=2"
