"""A series of runs, one a night: each begins with the last policy of the one before.

A run keeps its settings and a training is told by one ledger, so a night with other problems is a
run of its own: `nightly-0001`, `nightly-0002`, ... A night that was interrupted or failed goes on
under its own name. Deleting nights, or the files that were trained on, is not done here.
"""

import re
from dataclasses import dataclass

import polars as pl
from prefect.artifacts import create_markdown_artifact

from flows.artifacts import artifact_key
from flows.binding import Place
from flows.outside import contents, stored_contents
from flows.policies import stored_policy
from flows.sessions import stored_config
from schemas.config import RunConfig
from schemas.errors import ConfigError
from stages.evaluation.paired import compare_policies
from storage import Store, open_table
from storage.garbage import is_dropped

NIGHTS = "nightly"
"""Name of the series, if it has no other."""
_FOLDER = "problems.path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Night:
    """One run of a series."""

    series: str
    run: str
    """Its name; of an idle night, that of the run that it found finished."""
    before: str | None
    """Run of the night before, whose last policy it begins with; null for the first."""
    config: RunConfig
    is_idle: bool = False
    """Whether there is nothing to train on that the night before has not had."""

    @property
    def told(self) -> str:
        """What an idle night says."""
        return f"{self.config.problems.path} holds what {self.run} was trained on: nothing to do"


def tonight(store: Store, series: str, config: RunConfig) -> Night:
    """Returns the run that a series goes on with.

    That is its last one, unless it is finished. If it is, and the folder of problems holds
    something else than it was trained on, it is the next one.

    Args:
        store: Where the series is.
        series: First part of the names of its runs.
        config: Settings of every night.

    Raises:
        ConfigError: If the settings name no folder of problems.
        ProblemFileError: If it holds no problem file.
        StoreError: If the policy of the night before is not there.
    """
    folder = config.problems.path
    if folder is None:
        raise ConfigError(f"{_FOLDER} is unset: name the folder in which problems arrive")
    nights = _nights(store, series)
    finished = [name for name in nights.values() if store.run_record(name).status == "finished"]
    if not nights or nights[max(nights)] not in finished:
        run = nights[max(nights)] if nights else _free_name(store, series, 1)
        before = finished[-1] if finished else None
        return Night(series=series, run=run, before=before, config=_begun_at(store, before, config))
    last = nights[max(nights)]
    trained_on = stored_contents(Place(store=store.url, run=last, iteration=0))
    if contents(None, config, (_FOLDER,))[_FOLDER] == trained_on.get(_FOLDER):
        return Night(series=series, run=last, before=None, config=config, is_idle=True)
    run = _free_name(store, series, max(nights) + 1)
    return Night(series=series, run=run, before=last, config=_begun_at(store, last, config))


def _nights(store: Store, series: str) -> dict[int, str]:
    """Returns the runs of a series by number, in order."""
    name = re.compile(rf"{re.escape(series)}-(\d{{4,}})")
    found = {int(m[1]): run for run in store.run_names() if (m := name.fullmatch(run))}
    return dict(sorted(found.items()))


def _free_name(store: Store, series: str, number: int) -> str:
    """Returns the first name from a number on that no run has, dropped ones included."""
    while True:
        name = f"{series}-{number:04d}"
        if not is_dropped(store, name) and not store.has_results(name):
            return name
        number += 1


def _begun_at(store: Store, before: str | None, config: RunConfig) -> RunConfig:
    """Returns settings that begin with the last policy of a run, which knows the dialogue."""
    if before is None:
        return config
    policy = stored_policy(store, before, stored_config(store.run_record(before)).iterations)
    path = str(store.path(policy))
    as_it_is = {"steps": 0, "run": None, "path": None}
    return config.model_copy(
        update={
            "policy": config.policy.model_copy(update={"path": path}),
            "cold_start": config.cold_start.model_copy(update=as_it_is),
        }
    )


def publish_night(store: Store, night: Night) -> None:
    """Makes the report of a night that was trained."""
    _publish(night, night_report(store, night))


def publish_idle_night(store: Store, night: Night) -> None:
    """Makes the report of a night with nothing to train on."""
    last = stored_config(store.run_record(night.run)).iterations
    _publish(
        night,
        f"# {night.series}: nothing new\n\n{night.told}; its policy stays, that of "
        f"iteration {last}.\n",
    )


def _publish(night: Night, report: str) -> None:
    create_markdown_artifact(
        key=artifact_key(night.series, "report"),
        markdown=report,
        description=f"Run {night.run} of the series {night.series}.",
    )


def night_report(store: Store, night: Night) -> str:
    """Writes what a night was trained on and what came of it, as Markdown.

    Raises:
        StoreError: If a table of the run cannot be read.
    """
    config = night.config
    evaluations = open_table(store.url, night.run, "evaluations", split="evaluation").collect()
    of_iteration = {
        iteration: evaluations.filter(pl.col("iteration") == iteration)
        for iteration in (0, config.iterations)
    }
    gain = compare_policies(of_iteration[0], of_iteration[config.iterations]).row(0, named=True)
    begun = (
        f"the last policy of {night.before}" if night.before else "the cold start, the first night"
    )
    lines = [
        f"# {night.run}",
        "",
        f"| held-out accuracy, avg@{config.evaluation.samples} | |",
        "|---|---|",
        f"| before: {begun} | {_number(gain['before'])} |",
        f"| after {config.iterations} iterations | {_number(gain['after'])} |",
        f"| gain, with its 95 % interval | {_signed(gain['difference'])} "
        f"({_signed(gain['low'])} to {_signed(gain['high'])}) |",
        "",
        f"On {gain['problems']} held-out problems, each asked before and after; the interval is "
        "that of the mean difference over problems.",
        "",
        _trained_on(store, night),
        "",
        f"Store `{store.url}`, run `{night.run}`.",
        "",
    ]
    return "\n".join(lines)


def _trained_on(store: Store, night: Night) -> str:
    problems = _table(store, night.run, "problems")
    rejected = _table(store, night.run, "rejected_problems")
    said = f"Trained on {len(problems)} problems of `{night.config.problems.path}`"
    if night.before is not None:
        known = _table(store, night.before, "problems")
        new = problems.join(known, on="problem", how="anti")
        said += f", {len(new)} of them new since {night.before}"
    if len(rejected):
        said += f"; {len(rejected)} rows were rejected: `turnledger show rejected_problems`"
    return f"{said}."


def _table(store: Store, run: str, name: str) -> pl.DataFrame:
    return open_table(store.url, run, name, split="train").collect()


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"
