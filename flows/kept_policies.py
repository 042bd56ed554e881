"""Which policies of a training are kept: a policy with its optimiser is large, a table is not."""

from flows.binding import Place
from flows.policies import policy_slot
from flows.report import accuracy_by_iteration


class PolicyKeeper:
    """Frees policies while a run is trained: all but the last few, the first, and the best."""

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._unseen = 1
        """First iteration that may still have to be freed, for the best of a time does not stay."""
        self._best: int | None = None

    def free(self, done: Place) -> None:
        """Frees what is not kept any more once an iteration is done and evaluated.

        Raises:
            StoreError: If the store cannot be written.
        """
        if self._keep is None:
            return
        store = done.open()
        end = done.iteration - self._keep + 1
        best = best_iteration(done)
        old = set(range(self._unseen, end)) | {self._best or 0}
        for iteration in sorted(old - {0, best} - set(range(end, done.iteration + 1))):
            store.release_policy(policy_slot(done.run, iteration))
        self._unseen, self._best = max(end, 1), best


def best_iteration(place: Place) -> int:
    """Returns the iteration with the best evaluation of a run, of equal ones the last.

    Args:
        place: The last iteration that is done.

    Returns:
        0 if none is evaluated: a branch may go on for long before its first evaluation.
    """
    store = place.open()
    slots = (place.at(i).of_evaluation().slot("evaluation") for i in range(place.iteration + 1))
    if all(store.manifest(slot) is None for slot in slots):
        return 0
    accuracy = accuracy_by_iteration(place.store, place.run).drop_nulls("avg_at_k")
    best = accuracy.sort("avg_at_k", "iteration").tail(1)
    return int(best["iteration"][0]) if len(best) else 0
