"""Taking runs off the books, and removing what no run refers to.

A run with a record refers to every result in its own slots; a branch holds all that it builds on.
So garbage is what lies elsewhere: replaced results, slots of runs that were dropped or whose
import was killed, hints that lead to neither, what killed processes were writing, and in a bucket
the blobs that no manifest of a kept run names. Files that the store did not name are never touched.
"""

from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from schemas.errors import StoreError
from storage import runs
from storage.backend import Backend, Garbage, Kept, Waste
from storage.layout import record_uri
from storage.store import Store

__all__ = [
    "Garbage",
    "Waste",
    "drop_run",
    "find_garbage",
    "is_dropped",
    "remove_garbage",
    "restore_run",
]


def drop_run(store: Store, run: str) -> None:
    """Takes a run off the books: it has no record, and `remove_garbage` frees what it alone has.

    Raises:
        StoreError: If the run is not known, naming those that are, or is being trained.
    """
    if not store.has_run(run):
        raise runs.unknown_run(store.backend, run)
    with store.lock_run(run), store.backend.errors("drop", record_uri(run)):
        store.backend.drop_record(run)


def is_dropped(store: Store, run: str) -> bool:
    """Says whether a run was dropped and is still there.

    Raises:
        StoreError: If the store cannot be read.
    """
    with store.backend.errors("read", ""):
        return run in store.backend.dropped_runs()


def restore_run(store: Store, run: str) -> None:
    """Brings a dropped run back; nothing of it was touched.

    Raises:
        StoreError: If the run was not dropped, or is gone by now, naming those that can be
            brought back.
    """
    if store.has_run(run):
        raise StoreError(f"run {run} is in {store.url}: there is nothing to undo")
    with store.backend.errors("read", ""):
        dropped = store.backend.dropped_runs()
    if run not in dropped:
        raise StoreError(
            f"run {run} cannot be brought back; dropped runs in {store.url}: "
            f"{', '.join(dropped) or 'none'}"
        )
    with store.lock_run(run), store.backend.errors("restore", record_uri(run)):
        store.backend.restore_record(run)
        store.backend.unmark_incomplete(run)  # of a removal that was killed before it began


def find_garbage(store: Store) -> Waste:
    """Returns what no run refers to. Changes nothing.

    Raises:
        StoreError: If the store cannot be read.
    """
    backend = store.backend
    with backend.errors("read", ""):
        kept = _kept(backend)
        waste = backend.garbage(kept)
        lost = sorted(kept.runs.difference(runs.recorded(backend)))
    spared = [
        f"run {run} is kept, as nobody dropped it, but {backend.address(record_uri(run))} is "
        "missing: put that back from a copy, or delete all that is beside it"
        for run in lost
    ]
    return replace(waste, spared=[*waste.spared, *spared])


def refuse_while_trained(store: Store) -> None:
    """Refuses while a process trains any run of a store.

    Raises:
        StoreError: If so, naming the run.
    """
    with store.backend.errors("read", ""):
        held = [run for run in store.backend.runs() if store.backend.is_locked(run)]
    for run in held:
        with store.lock_run(run):  # refuses, unless the holder is found dead only by waiting
            pass


def remove_garbage(store: Store, waste: Waste, removed: Callable[[], Any] = lambda: None) -> None:
    """Removes what was found to be garbage, as far as it still is.

    Killed in the middle, it leaves the rest to the next time. A training that starts meanwhile
    keeps what it writes; what it wanted to take over from garbage it computes.

    Args:
        store: Where it was found.
        waste: What `find_garbage` returned.
        removed: Called after every file.

    Raises:
        StoreError: While any run is being trained, naming it, while another process removes
            garbage, or if the store cannot be written.
    """
    backend = store.backend
    with backend.errors("clean", ""), backend.collecting():
        refuse_while_trained(store)
        kept = _kept(backend)
        # First: a hint to garbage may be the only way to a result that another run shares.
        backend.redirect(kept)
        for garbage in waste.items:
            if garbage.kind == "blobs":
                kept = _kept(backend)  # a dropped run may have been brought back meanwhile
            backend.remove(garbage, kept, removed)


def _kept(backend: Backend) -> Kept:
    """Reads what the runs of a store refer to from their manifests."""
    dropped = set(backend.dropped_runs())
    names = [run for run in backend.runs() if _is_kept(backend, run, dropped)]
    places: dict[str, list[str]] = {}
    blobs: set[str] = set()
    unreadable = []
    for run in names:
        uris = backend.slots(run)
        for uri, here in zip(uris, backend.inspect_all(uris), strict=True):
            if here.problem is not None:
                unreadable.append(uri)
            if here.manifest is None:
                continue
            places.setdefault(here.manifest.fingerprint_digest, []).append(uri)
            blobs.update(file.digest for file in here.manifest.files.values())
            checkpoint = here.manifest.output(uri).checkpoint
            if checkpoint is not None:  # the list of its files is a blob as well
                blobs.add(checkpoint.digest)
    return Kept(runs=frozenset(names), places=places, blobs=frozenset(blobs), unreadable=unreadable)


def _is_kept(backend: Backend, run: str, dropped: Collection[str]) -> bool:
    """Whether a run has a record, or has lost it: then nobody has said that it may go."""
    if backend.read_record(run) is not None:
        return True
    is_given_up = run in dropped or backend.is_incomplete(run)
    return not is_given_up and bool(backend.slots(run))
