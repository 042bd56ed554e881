"""Which policies of a training are kept: a policy with its optimiser is large, a table is not."""

from flows.binding import Place
from flows.evaluations import evaluation_facts
from flows.policies import policy_slot


class PolicyKeeper:
    """Frees policies while a run is trained: all but the last few, the first, and the best."""

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self._unseen = 1
        """First iteration that may still have to be freed, for the best of a time does not stay."""
        self._best: int | None = None
        self._accuracy: dict[int, float] = {}
        """By iteration; evaluations are read once, not all of them after every iteration."""
        self._unread = 0
        """First iteration whose evaluation has not been looked for."""

    def free(self, done: Place) -> None:
        """Frees what is not kept any more once an iteration is done and evaluated.

        Raises:
            StoreError: If the store cannot be written.
        """
        if self._keep is None:
            return
        store = done.open()
        end = done.iteration - self._keep + 1
        best = self.best(done)
        old = set(range(self._unseen, end)) | {self._best or 0}
        for iteration in sorted(old - {0, best} - set(range(end, done.iteration + 1))):
            store.release_policy(policy_slot(done.run, iteration))
        self._unseen, self._best = max(end, 1), best

    def best(self, done: Place) -> int:
        """Returns the iteration with the best evaluation so far, of equal ones the last.

        Args:
            done: The last iteration that is done.

        Returns:
            0 if none is evaluated: a branch may go on for long before its first evaluation.
        """
        for iteration in range(self._unread, done.iteration + 1):
            accuracy = _accuracy(done.at(iteration))
            if accuracy is not None:
                self._accuracy[iteration] = accuracy
        self._unread = done.iteration + 1
        return max(self._accuracy, key=lambda i: (self._accuracy[i], i), default=0)


def _accuracy(place: Place) -> float | None:
    """Returns avg@k of an iteration's policy, on the best of its benchmarks; null without any."""
    store, slot = place.open(), place.of_evaluation().slot("evaluation")
    manifest = store.manifest(slot)
    if manifest is None:
        return None
    facts = evaluation_facts(store, place.iteration, manifest.output(slot.uri))
    return max((found.avg_at_k for found in facts if found.avg_at_k is not None), default=None)
