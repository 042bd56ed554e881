"""Taking stored results over into another run as they are, whatever code made them."""

from flows.binding import Place
from flows.events import StageEvent, tell
from flows.policies import policy_slot
from flows.stage_tasks import planner_at_work
from schemas.errors import StoreError
from schemas.refs import CheckpointRef, StageOutput
from storage import Slot


def adopt(place: Place, source: Slot, target: Slot) -> StageOutput | None:
    """Gives a slot the result of another one.

    Args:
        place: Names the store.
        source: Where the result is.
        target: Where it shall be as well.

    Returns:
        The result in its new slot; null if the source is empty.

    Raises:
        StoreError: If the source is damaged.
    """
    planner = planner_at_work()
    if planner is not None:
        return planner.adoption(place, source, target)
    output = place.open().adopt(source, target)
    if output is not None and source != target:
        reason = f"taken over from {source.uri}"
        tell(StageEvent(slot=target, kind="reused", reason=reason, output=output))
    return output


def taken_over(source: Slot, place: Place, target: Slot) -> StageOutput:
    """Does as `adopt`, for a result that there must be.

    Raises:
        StoreError: If there is nothing, or it is damaged.
    """
    output = adopt(place, source, target)
    if output is None:
        raise StoreError(f"nothing is stored in {source.uri}: rerun an earlier stage")
    return output


def taken_policy(old: Place, new: Place) -> CheckpointRef | None:
    """Takes over the policy of an iteration; returns null where there is none."""
    source = policy_slot(old.run, old.iteration)
    output = adopt(new, source, policy_slot(new.run, new.iteration))
    return None if output is None else output.checkpoint
