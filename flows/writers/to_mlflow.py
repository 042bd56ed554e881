"""Figures as a run of MLflow: on its server, or in a database file of its own."""

import functools
import logging
import os
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

from flows.writers.points import Header, Key, Point
from schemas.errors import TurnledgerError

P = ParamSpec("P")
R = TypeVar("R")

EXPERIMENT = "turnledger"
"""Experiment of the runs, unless MLFLOW_EXPERIMENT_NAME says another one."""
METRICS_A_BATCH, PARAMS_A_BATCH = 1000, 100
"""Most that one request of MLflow's interface takes."""
PARAM_CHARS = 6000
"""Longest value of a parameter that MLflow takes."""
ENDS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
"""State of a run to the word that MLflow has for it."""


def _in_one_line(function: Callable[P, R]) -> Callable[P, R]:
    """Makes one line of what MLflow raises."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        from mlflow.exceptions import MlflowException

        try:
            return function(*args, **kwargs)
        except MlflowException as error:
            raise TurnledgerError(f"MLflow: {str(error).splitlines()[0]}") from error

    return call


class MlflowWriter:
    """Adds to the MLflow run that stands for a run; it is known by its tags."""

    @_in_one_line
    def __init__(self, uri: str, header: Header) -> None:
        """Finds the MLflow run, or makes it."""
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._client = MlflowClient(tracking_uri=uri)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        place = experiment.experiment_id if experiment else self._client.create_experiment(name)
        tag = "turnledger.identity"
        there = self._client.search_runs([place], f"tags.`{tag}` = '{header.identity}'")
        run = (
            there[0]
            if there
            else self._client.create_run(
                place,
                start_time=_ms(header.created_at),
                run_name=header.run,
                tags={tag: header.identity, "turnledger.run": header.run},
            )
        )
        self._run: Any = run
        self._log_settings(header)

    def _log_settings(self, header: Header) -> None:
        """Adds the settings that are not there; a parameter of MLflow never changes."""
        from mlflow.entities import Param

        missing = [
            Param(name, str(value)[:PARAM_CHARS])
            for name, value in header.settings.items()
            if name not in self._run.data.params
        ]
        for first in range(0, len(missing), PARAMS_A_BATCH):
            params = missing[first : first + PARAMS_A_BATCH]
            self._client.log_batch(self._run.info.run_id, params=params)

    @_in_one_line
    def known(self) -> Collection[Key]:
        """Returns the figures that MLflow has."""
        run_id = self._run.info.run_id
        return {
            (name, metric.step)
            for name in self._run.data.metrics
            for metric in self._client.get_metric_history(run_id, name)
        }

    @_in_one_line
    def write(self, points: Sequence[Point]) -> None:
        """Adds figures."""
        from mlflow.entities import Metric

        metrics = [Metric(p.name, p.value, _ms(p.at), p.step) for p in points]
        for first in range(0, len(metrics), METRICS_A_BATCH):
            some = metrics[first : first + METRICS_A_BATCH]
            self._client.log_batch(self._run.info.run_id, metrics=some)

    @_in_one_line
    def close(self, status: str) -> None:
        """Says how the run ended, or that it goes on."""
        if status in ENDS:
            self._client.set_terminated(self._run.info.run_id, ENDS[status])
        else:
            self._client.update_run(self._run.info.run_id, "RUNNING")


def open_target(place: str, header: Header) -> MlflowWriter:
    """Opens a tracking URI, such as `http://host:5000` or `sqlite:///mlflow.db`."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    return MlflowWriter(place, header)


def _ms(at: datetime) -> int:
    """Returns a moment as MLflow counts it: milliseconds since 1970."""
    return round(at.timestamp() * 1000)
