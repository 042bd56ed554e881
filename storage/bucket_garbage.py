"""What no run refers to in a store in a bucket: finding it, and removing it.

Manifests go before the blobs that they name. A blob goes only when it is old: a writer uploads its
blobs, also those that are there already, shortly before the manifest that names them.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from storage.backend import Garbage, Kept, Kind, Waste
from storage.layout import (
    MANIFEST_FILE,
    REPLACED,
    RUN_NAME,
    blob_uri,
    dropped_record_uri,
    incomplete_uri,
    index_uri,
    lease_uri,
    record_uri,
    run_uri,
)
from storage.objects import Entry, Objects, in_parallel

YOUNG = timedelta(hours=1)
"""Age, by the clocks of server and client, up to which a blob that nothing names is kept."""

_DIGEST = "[0-9a-f]{64}"
_HINT = re.compile(rf"index/[0-9a-f]{{2}}/({_DIGEST})\.json")
_BLOB = re.compile(rf"blobs/[0-9a-f]{{2}}/({_DIGEST})")
_RUN = re.compile(rf"run=({RUN_NAME})/.+")
_SLOT = re.compile(
    r"run=[^/]+/iteration=\d+/split=\w+/stage=\w+(/shard=\d+)?(/turn=\d+)?/" + MANIFEST_FILE
)
_SHELVED = re.compile(rf"({REPLACED}/[^/]+/[^/]+)/{MANIFEST_FILE}")
_AT_ONCE = 64
"""Objects between two signs of progress."""


def find(objects: Objects, kept: Kept) -> Waste:
    """Returns what is in the bucket and not kept; keys whose names are not known are left out."""
    entries = {entry.key: entry for entry in objects.entries()}

    def garbage(kind: Kind, uri: str, keys: Sequence[str]) -> Garbage:
        freed = sum(entries[key].bytes for key in keys)
        return Garbage(kind=kind, uri=uri, files=tuple(keys), bytes=freed)

    items = []
    hints = [key for key, found in _matching(_HINT, entries) if found[1] not in kept.places]
    if hints:
        items.append(garbage("hints", "index", hints))
    for run, keys in _by_run(entries).items():
        if run not in kept.runs:
            known = [*(k for k in keys if _SLOT.fullmatch(k)), incomplete_uri(run), lease_uri(run)]
            known = [key for key in (dropped_record_uri(run), *known) if key in entries]
            if known:
                items.append(garbage("run", run_uri(run), known))
            continue
        stale = [k for k in (dropped_record_uri(run), incomplete_uri(run)) if k in entries]
        if stale:
            items.append(garbage("record", run_uri(run), stale))
    items += [garbage("replaced", found[1], [key]) for key, found in _matching(_SHELVED, entries)]
    blobs = [
        entries[key]
        for key, found in _matching(_BLOB, entries)
        if found[1] not in kept.blobs and key == blob_uri(found[1])
    ]
    old = [entry.key for entry in blobs if _is_old(entry.modified)]
    spared = []
    if kept.unreadable:
        old = []
        spared.append(
            f"blobs are kept: {objects.url}/{kept.unreadable[0]} has no usable manifest, so nobody "
            "can tell which it names: run its stage again, or drop its run"
        )
    elif len(old) < len(blobs):
        spared.append(
            f"{len(blobs) - len(old)} blobs that nothing names are younger than an hour and kept: "
            "a process may be about to name them"
        )
    if old:
        items.append(garbage("blobs", "blobs", old))
    return Waste(items=items, spared=spared)


def redirect(
    hint: Callable[[str], str | None], point: Callable[[str, str], None], kept: Kept
) -> None:
    """Lets the hints to results that are kept lead to places that are kept.

    Args:
        hint: Returns where the hint for a fingerprint leads; null without one.
        point: Lets the hint for a fingerprint lead to a place.
        kept: What is referred to.
    """

    def mend(noted: tuple[str, Sequence[str]]) -> None:
        fingerprint, places = noted
        led_to = hint(fingerprint)
        if led_to is not None and led_to not in places:
            point(fingerprint, places[0])

    in_parallel(mend, list(kept.places.items()))


def remove(objects: Objects, garbage: Garbage, kept: Kept, removed: Callable[[], None]) -> None:
    """Removes hints, replaced results and blobs that still are garbage."""
    going: Iterable[str] = garbage.files
    if garbage.kind == "hints":
        named = {index_uri(fingerprint) for fingerprint in kept.places}
        going = [key for key in garbage.files if key not in named]
    elif garbage.kind == "blobs":
        named = {blob_uri(digest) for digest in kept.blobs}
        going = [key for key in garbage.files if key not in named and not kept.unreadable]
    is_blob = garbage.kind == "blobs"
    _delete(objects, list(going), removed, lambda key: not is_blob or _is_still_old(objects, key))


def remove_run(objects: Objects, garbage: Garbage, run: str, removed: Callable[[], None]) -> None:
    """Removes what is left of a run; the run must be held by this process."""
    dropped, mark, lease = dropped_record_uri(run), incomplete_uri(run), lease_uri(run)
    if (garbage.kind == "record") != (objects.get(record_uri(run)) is not None):
        return  # it was trained or dropped, or brought back, meanwhile
    if garbage.kind == "record":
        _delete(objects, [dropped, mark], removed)
        return
    # First: from now on nobody brings back what is only a part of the run, and nobody takes what
    # a killed removal leaves for a run that lost its record.
    objects.put(mark, b"")
    _delete(objects, [dropped], removed)
    manifests = [key for key in garbage.files if key not in (dropped, mark, lease)]
    _delete(objects, manifests, removed)
    _delete(objects, [mark], removed)
    _delete(objects, [lease], removed)


def _delete(
    objects: Objects,
    keys: Sequence[str],
    removed: Callable[[], None],
    is_garbage: Callable[[str], bool] = lambda _: True,
) -> None:
    def delete(key: str) -> None:
        if is_garbage(key):
            objects.delete(key)

    for start in range(0, len(keys), _AT_ONCE):
        for _ in in_parallel(delete, keys[start : start + _AT_ONCE]):
            removed()


def _matching(
    pattern: re.Pattern[str], entries: Mapping[str, Entry]
) -> list[tuple[str, re.Match[str]]]:
    found = ((key, pattern.fullmatch(key)) for key in sorted(entries))
    return [(key, match) for key, match in found if match is not None]


def _by_run(entries: Mapping[str, Entry]) -> dict[str, list[str]]:
    runs: dict[str, list[str]] = {}
    for key, found in _matching(_RUN, entries):
        runs.setdefault(found[1], []).append(key)
    return runs


def _is_old(modified: datetime) -> bool:
    return datetime.now(UTC) - modified > YOUNG


def _is_still_old(objects: Objects, key: str) -> bool:
    """Whether nobody uploaded a blob again since it was found."""
    entry = objects.entry(key)
    return entry is not None and _is_old(entry.modified)
