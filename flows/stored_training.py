"""A training of which every result is stored: gone through again without Prefect.

A temporary Prefect server takes longer to start than all results of a training to be verified,
and there is nothing for it to schedule. Where a server is configured the flow runs as always, so
that its pages show every run.
"""

import polars as pl

from flows.binding import Place, StageRun, compute_and_keep, look_up
from flows.kept_policies import PolicyKeeper
from flows.plan import plan_training
from flows.stage_tasks import planning
from flows.train import note_iteration, training
from schemas.config import RunConfig
from schemas.refs import StageOutput
from storage import Slot


def go_through_stored(place: Place, config: RunConfig) -> bool:
    """Verifies and tells every stage run of a training, if there is nothing to compute.

    Policies that are not to be kept any more are freed, as a training does.

    Returns:
        Whether it was so; if not, nothing was done.

    Raises:
        TurnledgerError: If the store, a problem file or a policy cannot be read.
    """
    if place.refresh or plan_training(place, config).filter(pl.col("action") != "hit").height:
        return False
    keeper = PolicyKeeper(config.compute.keep_policies)

    def on_iteration(done: Place) -> None:
        note_iteration(done)
        keeper.free(done)

    with planning(_WithoutPrefect()):
        training(place, config, on_iteration)
    return True


class _WithoutPrefect:
    """Runs stages at once; a `Planner` of `flows.stage_tasks`."""

    def stage(self, run: StageRun) -> StageOutput:
        """Returns the stored result; one that was damaged since the plan is computed again."""
        found = look_up(run)
        return found.output or compute_and_keep(run, found.reason)

    def adoption(self, place: Place, source: Slot, target: Slot) -> StageOutput | None:
        """Gives a slot the result of another one."""
        return place.open().adopt(source, target)
