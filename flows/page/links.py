"""Addresses of the views: everything that can be looked at has one that can be sent."""

from urllib.parse import quote, urlencode


def run_url(run: str) -> str:
    """Returns the address of a run."""
    return f"/runs/{quote(run, safe='')}"


def iteration_url(run: str, iteration: int, **query: str | int | None) -> str:
    """Returns the address of the groups of an iteration, filtered as the query says."""
    return f"{run_url(run)}/iterations/{iteration}{_query(query)}"


def trajectory_url(
    run: str, iteration: int, task: str, sample: int, split: str = "train", turn: int | None = None
) -> str:
    """Returns the address of a trajectory, or of one of its turns."""
    query: dict[str, str | int | None] = {"task": task, "sample": sample}
    if split != "train":
        query["split"] = split
    at = "" if turn is None else f"#turn-{turn}"
    return f"{run_url(run)}/iterations/{iteration}/trajectory{_query(query)}{at}"


def estimators_url(run: str, iteration: int) -> str:
    """Returns the address of two estimators side by side."""
    return f"{run_url(run)}/iterations/{iteration}/estimators"


def timeline_url(run: str, iteration: int | None = None) -> str:
    """Returns the address of where the time went."""
    return f"{run_url(run)}/timeline{_query({'iteration': iteration})}"


def compare_url(a: str, b: str, iteration: int | None = None) -> str:
    """Returns the address of two runs side by side."""
    return f"/compare{_query({'a': a, 'b': b, 'iteration': iteration})}"


def _query(parameters: dict[str, str | int | None]) -> str:
    known = {key: value for key, value in parameters.items() if value is not None}
    return f"?{urlencode(known)}" if known else ""
