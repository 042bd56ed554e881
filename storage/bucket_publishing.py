"""How a finished result takes its slot in a bucket: one conditional put, and nothing is lost by it.

A result whose blobs are uploaded becomes visible with its manifest. The put is on condition that
the slot is as it was seen, so that of several writers each gets through in turn. The manifest
that is replaced is kept aside before. Hints are only hints: `Store.find` verifies.
"""

import hashlib
import json
from collections.abc import Callable

from schemas.errors import StoreError
from storage.digests import json_digest
from storage.layout import MANIFEST_FILE, check_uri, index_uri, replaced_uri
from storage.manifests import Manifest, parsed, written
from storage.objects import Object, Objects

_ATTEMPTS = 20
"""Conflicts over one slot that are sat out; each means that another writer got through."""
_WITHOUT_MANIFEST = "unknown"
"""Stands for the fingerprint of a replaced result whose manifest cannot be read."""


def settle(
    objects: Objects, manifest: Manifest, is_right: Callable[[Manifest], bool], *, replace: bool
) -> Manifest:
    """Puts a manifest whose blobs are there.

    Args:
        objects: Where to.
        manifest: What to put.
        is_right: Says whether the blobs of the manifest that is in the slot are right.
        replace: Whether to push out a right result with the same fingerprint as well; otherwise
            that one stays, for another process was faster.

    Returns:
        Manifest of the result that is in the slot now.

    Raises:
        StoreError: If other writers kept replacing the slot meanwhile.
    """
    uri, fingerprint = manifest.slot.uri, manifest.fingerprint_digest
    content = written(manifest)
    for _ in range(_ATTEMPTS):
        present = objects.get(manifest_uri(uri))
        there = None if present is None else parsed(present.content).manifest
        if (
            not replace
            and there is not None
            and there.fingerprint_digest == fingerprint
            and is_right(there)
        ):
            point(objects, fingerprint, uri)
            return there
        if _exchange(objects, content, present, manifest, there):
            point(objects, fingerprint, uri)
            return manifest
    raise StoreError(
        f"cannot write {objects.url}/{uri}: other processes replaced it {_ATTEMPTS} times "
        "meanwhile: let one of them have the slot"
    )


def candidates(objects: Objects, fingerprint: str, slot: str) -> list[str]:
    """Returns the places besides the slot that may hold a result, the index's hint first."""
    keys = objects.keys(replaced_uri(fingerprint))
    replaced = [key.removesuffix(f"/{MANIFEST_FILE}") for key in reversed(keys)]
    hinted = read_hint(objects, fingerprint)
    uris = [hinted, *replaced] if hinted is not None else replaced
    return [uri for uri in dict.fromkeys(uris) if uri != slot]


def read_hint(objects: Objects, fingerprint: str) -> str | None:
    """Returns where a fingerprint was last seen; null without a usable hint."""
    noted = objects.get(index_uri(fingerprint))
    if noted is None:
        return None
    try:
        return check_uri(str(json.loads(noted.content)["uri"]))
    except (ValueError, KeyError, TypeError, StoreError):
        return None  # a hint that cannot be used is as good as none


def point(objects: Objects, fingerprint: str, uri: str) -> None:
    """Lets the hint for a fingerprint lead to a place."""
    objects.put(index_uri(fingerprint), hint_to(uri))


def hint_to(uri: str) -> bytes:
    """Returns a hint as it is stored."""
    return json.dumps({"uri": uri}).encode()


def manifest_uri(uri: str) -> str:
    """Returns where the manifest of a result is."""
    return f"{uri}/{MANIFEST_FILE}"


def _exchange(
    objects: Objects,
    content: bytes,
    present: Object | None,
    manifest: Manifest,
    there: Manifest | None,
) -> bool:
    """Puts a manifest in place of what was seen in a slot; false if that has changed."""
    key = manifest_uri(manifest.slot.uri)
    if present is None:
        return objects.create(key, content) is not None
    if present.content == content:
        return True  # our own put, whose answer was lost
    is_same = (
        there is not None
        and there.fingerprint_digest == manifest.fingerprint_digest
        and there.files == manifest.files
    )
    if not is_same:
        _keep(objects, present, there, manifest.slot.uri)
    return objects.exchange(key, content, present.etag) is not None


def _keep(objects: Objects, present: Object, there: Manifest | None, uri: str) -> None:
    """Puts a manifest that is about to be replaced among the replaced ones.

    Before it is replaced: a process killed in between leaves it in both places.
    """
    if there is None:
        fingerprint, name = _WITHOUT_MANIFEST, hashlib.sha256(present.content).hexdigest()
    else:
        files = {name: file.digest for name, file in there.files.items()}
        fingerprint, name = there.fingerprint_digest, json_digest(files)
    kept = f"{replaced_uri(fingerprint)}/{name[:16]}"
    objects.put(manifest_uri(kept), present.content)
    if there is not None and read_hint(objects, fingerprint) == uri:
        point(objects, fingerprint, kept)
