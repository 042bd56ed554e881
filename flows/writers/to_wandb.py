"""Figures as a run of W&B, online or, with WANDB_MODE=offline, in files to synchronise later.

What W&B keeps offline cannot be asked, so a file beside its own remembers what it was given.
"""

import json
import os
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from flows.writers.points import Header, Key, Point
from schemas.errors import TurnledgerError

STEPS = {"updates": "optimiser_step", "rollouts": "iteration", "evaluations": "iteration"}
"""First part of a name to the axis that W&B draws it over."""


class WandbWriter:
    """Adds to the W&B run that stands for a run."""

    def __init__(self, project: str, header: Header) -> None:
        """Opens nothing yet: nothing new, nothing begun."""
        self._project, self._header = project, header
        self._folder = Path(os.environ.get("WANDB_DIR", "."))
        self._memory = self._folder / "wandb" / f"turnledger-{project}-{header.identity}.json"
        self._known: set[Key] | None = None
        self._run: Any = None

    def known(self) -> Collection[Key]:
        """Returns the figures that were given to W&B from this folder."""
        if self._known is None:
            there = json.loads(self._memory.read_text()) if self._memory.exists() else {}
            self._known = {(name, step) for name, steps in there.items() for step in steps}
        return frozenset(self._known)

    def write(self, points: Sequence[Point]) -> None:
        """Adds figures, a row of W&B's history for each step."""
        if self._run is None:
            self._run = self._opened()
        rows: dict[tuple[str, int], dict[str, float]] = defaultdict(dict)
        for point in points:
            axis = STEPS[point.name.partition("/")[0]]
            rows[axis, point.step][point.name] = point.value
        for (axis, step), values in rows.items():
            self._run.log({axis: step, **values})
        self._remember(points)

    def _opened(self) -> Any:
        import wandb

        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, disable_code=True, x_disable_stats=True
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            run = wandb.init(
                project=self._project,
                id=self._header.identity,
                name=self._header.run,
                config=dict(self._header.settings),
                dir=str(self._folder),
                resume="allow",
                settings=quiet,
            )
        except wandb.Error as error:
            raise TurnledgerError(f"W&B: {str(error).splitlines()[0]}") from error
        for axis in set(STEPS.values()):
            run.define_metric(axis)
        for start, axis in STEPS.items():
            run.define_metric(f"{start}/*", step_metric=axis)
        return run

    def _remember(self, points: Sequence[Point]) -> None:
        from storage.files import replace_json

        self._known = set(self.known()) | {point.key for point in points}
        steps: dict[str, list[int]] = defaultdict(list)
        for name, step in sorted(self._known):
            steps[name].append(step)
        replace_json(self._memory, steps)

    def close(self, status: str) -> None:
        """Ends the W&B run; it can be resumed."""
        if self._run is not None:
            self._run.finish(exit_code=1 if status == "failed" else 0)


def open_target(place: str, header: Header) -> WandbWriter:
    """Opens a project."""
    return WandbWriter(place, header)
