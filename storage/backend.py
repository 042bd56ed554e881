"""What a place for a store must be able to do; all else is the same for every place.

Results are named by `uri`, relative to the store: that of a slot, or of a replaced result.
Nothing here decides which result is wanted; `Store` does.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from schemas.refs import Ref
from storage.manifests import Inspection, Manifest

Kind = Literal["hints", "run", "record", "replaced", "staging", "blobs"]
"""Of garbage: hints to nothing that is kept, a run without a record, the record of a drop that a
later run of the name made void, a result pushed out of its slot, what a killed process was
writing, or bytes that no manifest names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What the runs of a store refer to."""

    runs: frozenset[str]
    """Names of the runs that have a record, readable or not, or that lost it."""
    places: Mapping[str, Sequence[str]]
    """Fingerprint to the slots of these runs that hold it."""
    blobs: frozenset[str]
    """Digests of all bytes that their results are made of."""
    unreadable: Sequence[str]
    """Slots of these runs whose manifest cannot be used: nobody knows what they refer to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Garbage:
    """Files that no run refers to and that are removed together."""

    kind: Kind
    uri: str
    """What they lie below."""
    files: tuple[str, ...]
    """Uris of the files, in the order in which they go; no others are touched."""
    bytes: int
    """Size of what is freed: without files that have a name elsewhere too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waste:
    """What can be removed from a store."""

    items: Sequence[Garbage]
    """In the order in which they go."""
    spared: Sequence[str] = ()
    """What nothing seems to name and is kept all the same, and why; a line each."""

    @property
    def files(self) -> int:
        """Number of files."""
        return sum(len(item.files) for item in self.items)

    @property
    def bytes(self) -> int:
        """Size of all that is freed."""
        return sum(item.bytes for item in self.items)


class Backend(Protocol):
    """A place that keeps results and run records; each becomes visible whole or not at all."""

    @property
    def url(self) -> str:
        """Address of the store, which `Store.open` takes."""
        ...

    @property
    def scan_options(self) -> dict[str, str] | None:
        """What polars needs to read the store's files; null for ordinary files."""
        ...

    def address(self, uri: str) -> str:
        """Returns the full address of a `uri`, for messages.

        Raises:
            StoreError: If it points out of the store.
        """
        ...

    def errors(self, action: str, uri: str) -> AbstractContextManager[None]:
        """Turns errors of the place into one line: action, address and what happened.

        Raises:
            StoreError: In place of any error of the place.
        """
        ...

    def inspect(self, uri: str) -> Inspection:
        """Reads the manifest of a result; an unusable one is told, not raised."""
        ...

    def inspect_all(self, uris: Sequence[str]) -> list[Inspection]:
        """Reads several manifests, in the order of the uris."""
        ...

    def content_problem(self, uri: str, manifest: Manifest) -> str | None:
        """Returns what is wrong with the files of a result, or null if they are right."""
        ...

    def candidates(self, fingerprint: str, slot: str) -> list[str]:
        """Returns the places besides the slot that may hold a result, the best guess first."""
        ...

    def note(self, fingerprint: str, uri: str) -> None:
        """Notes where a fingerprint is, unless there is a note."""
        ...

    def staging(self) -> AbstractContextManager[Path]:
        """Gives an empty folder to write a result in; what is left in it is removed."""
        ...

    def publish(self, staged: Path, manifest: Manifest, *, replace: bool) -> Manifest:
        """Makes the files in a staging folder the result of the manifest's slot.

        Args:
            staged: Folder that `staging` gave, with every file that the manifest lists.
            manifest: Describes them. It is stored last.
            replace: Whether to push out a right result with the same fingerprint as well;
                otherwise that one stays, for another process was faster.

        Returns:
            Manifest of the result that is in the slot now.
        """
        ...

    def release(self, uri: str, manifest: Manifest) -> None:
        """Frees the files of a result's policy; the result stays, with its digests.

        Does nothing if the result is not that of the manifest any more. Killed in the middle, it
        leaves files that the next release removes.
        """
        ...

    def take(self, uri: str, manifest: Manifest) -> Manifest | str:
        """Makes the files of another result that of the manifest's slot, once verified.

        Returns:
            Manifest of the result that is in the slot now, or what is wrong with the files.
        """
        ...

    def fetch(self, ref: Ref) -> Path:
        """Returns a local file or folder with the bytes that a reference names, verified.

        Raises:
            StoreError: If they are missing, damaged or replaced by a newer result.
        """
        ...

    def sources(self, table: str, results: Sequence[tuple[str, Manifest]]) -> list[str]:
        """Returns where polars finds a table of several results, given by uri and manifest.

        Raises:
            StoreError: If a file is missing or has another size than it was stored with.
        """
        ...

    def runs(self) -> list[str]:
        """Returns the names of all runs of which there is anything, sorted."""
        ...

    def slots(self, run: str, table: str | None = None, iteration: int | None = None) -> list[str]:
        """Returns the slots of a run that hold something, sorted.

        Args:
            run: Name of the run.
            table: Leaves out slots that are known not to hold this table.
            iteration: The only iteration to look at; null for all.
        """
        ...

    def marks(self, run: str) -> dict[str, str]:
        """Returns the slots of a run, each with a mark that is another one for another result."""
        ...

    def read_record(self, run: str) -> bytes | None:
        """Returns the record of a run; null without one."""
        ...

    def write_record(self, run: str, values: Mapping[str, object]) -> None:
        """Replaces the record of a run in one atomic step."""
        ...

    def lock_run(self, run: str) -> AbstractContextManager[None]:
        """Holds a run for this process.

        Raises:
            StoreError: On entering, if another process holds the run.
        """
        ...

    def collecting(self) -> AbstractContextManager[None]:
        """Holds the store for a collection of garbage.

        Where garbage could be taken over and removed at once, no other process can begin to hold
        a run within the block.

        Raises:
            StoreError: On entering, if another process removes garbage.
        """
        ...

    def is_locked(self, run: str) -> bool:
        """Says whether a process holds the run."""
        ...

    def watch_lock(self, run: str) -> Callable[[], bool]:
        """Returns what may be asked again and again whether a process holds the run.

        Nothing is held or written for it. Asked often enough it also learns, where `is_locked`
        cannot tell, that a holder has died.
        """
        ...

    def copy_files(self, uri: str, manifest: Manifest, folder: Path) -> str | None:
        """Copies the files of a result into an empty folder, every byte of them verified.

        Returns:
            What is wrong with the files; null if they are right.
        """
        ...

    def dropped_runs(self) -> list[str]:
        """Returns the names of the runs that were dropped and are still there, sorted."""
        ...

    def mark_incomplete(self, run: str) -> None:
        """Marks a run whose import or removal begins: what a killed one leaves is known by it."""
        ...

    def unmark_incomplete(self, run: str) -> None:
        """Takes the mark away, once the run has a record."""
        ...

    def is_incomplete(self, run: str) -> bool:
        """Says whether a run is marked."""
        ...

    def drop_record(self, run: str) -> None:
        """Puts the record of a run aside, so that the run has none."""
        ...

    def restore_record(self, run: str) -> None:
        """Brings the record of a dropped run back; the run must have no other."""
        ...

    def garbage(self, kept: Kept) -> Waste:
        """Returns what is in the store and not kept, as far as its names are known."""
        ...

    def redirect(self, kept: Kept) -> None:
        """Lets the hints to results that are kept lead to places that are kept."""
        ...

    def remove(self, garbage: Garbage, kept: Kept, removed: Callable[[], None]) -> None:
        """Removes files that were found to be garbage and still are.

        A result goes with its manifest first, so nobody sees a part of it. What a removal that
        was killed leaves is garbage as before.

        Args:
            garbage: What to remove.
            kept: What is referred to now.
            removed: Called after every file.

        Raises:
            StoreError: If another process holds the run by now.
        """
        ...
