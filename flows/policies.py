"""Which stored policy a flow starts from."""

from schemas.errors import StoreError
from schemas.refs import CheckpointRef
from storage import Store
from storage.layout import Slot


def policy_slot(run: str, iteration: int) -> Slot:
    """Returns the slot of the policy that an iteration of a run makes."""
    stage = "cold_start" if iteration == 0 else "optimisation"
    return Slot(run=run, iteration=iteration, split="train", stage=stage)


def stored_policy(store: Store, run: str, iteration: int) -> CheckpointRef:
    """Returns the policy that an iteration of a run made, to compute with; 0 is the cold start.

    Raises:
        StoreError: If the run does not hold it, or does not keep it any more.
    """
    checkpoint = made_policy(store, run, iteration)
    store.refuse_released(checkpoint)
    return checkpoint


def made_policy(store: Store, run: str, iteration: int) -> CheckpointRef:
    """Returns the same, kept or not: stored results that were made from it need no more.

    A branch holds the policies it needs: of the cold start, before and after its iteration.

    Raises:
        StoreError: If the run does not hold it.
    """
    slot = policy_slot(run, iteration)
    manifest = store.manifest(slot)
    checkpoint = None if manifest is None else manifest.output(slot.uri).checkpoint
    if checkpoint is None:
        raise StoreError(
            f"run {run} holds no policy of iteration {iteration}: train it that far, or rerun "
            "its optimisation"
        )
    return checkpoint
