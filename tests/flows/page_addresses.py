"""Every sort of page of the store of `page_runs`, by name."""

from page_runs import BENCHMARK, BRANCH, EMPTY, FAILED, IMPORTED, RUN

from flows.page.links import (
    compare_url,
    estimators_url,
    iteration_url,
    run_url,
    timeline_url,
    trajectory_url,
)


def addresses(task: str = "sum") -> dict[str, str]:
    """Returns an address of every sort of page.

    Args:
        task: Task that has a trajectory of every sort.
    """
    return {
        "runs": "/",
        "run": run_url(RUN),
        "branch": run_url(BRANCH),
        "empty run": run_url(EMPTY),
        "failed run": run_url(FAILED),
        "imported run": run_url(IMPORTED),
        "iteration": iteration_url(RUN, 1),
        "cold start": iteration_url(RUN, 0),
        "imported iteration": iteration_url(IMPORTED, 1),
        "evaluation": iteration_url(RUN, 2, split="evaluation"),
        "benchmark": iteration_url(RUN, 2, split=BENCHMARK),
        "flips": iteration_url(BRANCH, 1, show="flips", against=RUN),
        "against outcome": iteration_url(RUN, 1, show="against-outcome"),
        "no groups": iteration_url(IMPORTED, 1, show="shaped"),
        "trajectory": trajectory_url(RUN, 1, task, 0),
        "imported trajectory": trajectory_url(IMPORTED, 1, task, 0),
        "evaluated trajectory": trajectory_url(RUN, 2, task, 0, "evaluation"),
        "void trajectory": trajectory_url(RUN, 1, "silent", 0),
        "comparison form": "/compare",
        "comparison": compare_url(RUN, BRANCH, 1),
        "comparison with an import": compare_url(RUN, IMPORTED),
        "comparison with itself": compare_url(RUN, RUN),
        "estimators": estimators_url(RUN, 1),
        "one estimator": f"{estimators_url(RUN, 1)}?a=rloo&b=rloo",
        "timeline": timeline_url(RUN, 1),
        "timeline without times": timeline_url(IMPORTED),
        "timeline of an empty run": timeline_url(EMPTY),
    }
