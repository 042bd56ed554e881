"""Gradient noise of stored updates: what each group of an iteration asked of the weights.

Measured from what the ledger holds, so no training is repeated for it; the result is a table of
the run like any other.
"""

from collections.abc import Callable, Sequence

from prefect import flow

from flows.binding import Place, Produced, StageRun, freeze_code, look_up
from flows.learning import Job, prepare
from flows.policies import stored_policy
from flows.resources import on_torch_thread
from flows.sessions import stored_config
from flows.stage_tasks import stage_task
from flows.stored_rollouts import stored_trajectories
from flows.task_inputs import Trajectories, read_trajectories
from schemas.config import ComputeConfig
from schemas.errors import StoreError
from schemas.optimisation import OptimisationConfig
from schemas.refs import CheckpointRef, TableRef
from schemas.tables import Advantages
from stages.gradient_noise import measure_noise
from stages.optimisation import make_batch
from storage.checkpoints import load_policy

freeze_code()


@flow(name="gradient-noise", persist_result=False)
def measure_gradients(updates: Sequence[Place], on_measured: Callable[[int], None]) -> None:
    """Measures the gradient noise of updates, unless it is stored.

    Args:
        updates: The iteration of each.
        on_measured: Told how many are done.

    Raises:
        StoreError: If a run lacks its rollout, its advantages or the policy before the update.
    """
    for done, place in enumerate(updates, 1):
        gradient_noise_task(*_update_at(place))
        on_measured(done)


def is_measured(place: Place) -> bool:
    """Says whether the gradient noise of an update is stored, by the code of today.

    Raises:
        StoreError: As `measure_gradients`.
    """
    return look_up(gradient_noise_task.describe(*_update_at(place))).output is not None


def _update_at(
    place: Place,
) -> tuple[Place, Trajectories, TableRef, CheckpointRef, OptimisationConfig, ComputeConfig]:
    """Returns what an update learnt from, and what it began with."""
    store = place.open()
    slot = place.slot("advantages")
    credited = store.manifest(slot)
    if credited is None:
        raise StoreError(f"run {place.run} holds no advantages of iteration {place.iteration}")
    config = stored_config(store.run_record(place.run))
    return (
        place,
        stored_trajectories(place),
        credited.output(slot.uri).tables["advantages"],
        stored_policy(store, place.run, place.iteration - 1),
        config.optimisation,
        config.compute,
    )


@stage_task("gradient noise {place.run} {place.iteration}")
def gradient_noise_task(
    place: Place,
    rolled_out: Trajectories,
    advantages: TableRef,
    policy: CheckpointRef,
    config: OptimisationConfig,
    compute_config: ComputeConfig,
) -> StageRun:
    """Measures what each group asks of the weights that the update begins with."""

    def compute() -> Produced:
        store = place.open()
        credit = Advantages.validate(store.read(advantages))
        batch = make_batch(*read_trajectories(place, rolled_out), credit)
        job = Job(
            policy=store.path(policy),
            reference=None,
            batch=batch,
            config=config,
            seed=0,
            iteration=place.iteration,
            iterations=place.iteration,
        )

        def measure() -> Produced:
            model, _ = load_policy(job.policy, device=compute_config.device)
            prepare(job, model)
            return Produced(tables={"gradient_noise": measure_noise(model, batch, config)})

        return on_torch_thread(compute_config, measure)

    return StageRun(
        place=place,
        slot=place.slot("gradient_noise"),
        config=config.model_dump(mode="json"),
        inputs={**rolled_out.inputs(), "advantages": advantages, "policy": policy},
        libraries=("peft",) if config.lora_rank else (),
        compute=compute,
    )
