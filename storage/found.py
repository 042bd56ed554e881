"""A look for a stored result, and what it tells."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from schemas.refs import Ref, StageOutput
from storage.backend import Backend
from storage.fingerprints import Fingerprint, explain
from storage.layout import REPLACED, Slot
from storage.manifests import Manifest, bare


@dataclass(frozen=True, slots=True)
class Found:
    """Answer of `Store.find` and `Store.look`."""

    output: StageOutput | None
    """The verified result; null if the stage must run."""
    reason: str
    """Why there is a result, or why the stage must run, in one line."""
    expected: StageOutput | None = None
    """What running the stage will give again: the slot has a result of this fingerprint, and its
    files are damaged or missing. Null in all other cases."""

    seconds: float | None = None
    """Wall time that computing the result took; null without one."""

    @property
    def is_hit(self) -> bool:
        """Whether there is a result."""
        return self.output is not None


def search(
    backend: Backend,
    slot: Slot,
    fingerprint: Fingerprint,
    *,
    adopting: bool,
    parents: Sequence[Ref] | None = None,
) -> Found:
    """Looks for the result of a fingerprint as `Store.find` does, or `Store.look`.

    Args:
        backend: Of the store.
        slot: Where the result belongs.
        fingerprint: What decides it.
        adopting: Whether the slot gets a result of another one; else nothing is changed.
        parents: Inputs that an adopted result names; null for those it was computed from.

    Raises:
        StoreError: If the store cannot be read, or written while adopting.
    """
    digest, expected = fingerprint.digest, None
    with backend.errors("use", slot.uri):
        here = backend.inspect(slot.uri)
        problem = here.problem
        if here.manifest is not None and here.manifest.fingerprint_digest == digest:
            stored = here.manifest.output(slot.uri)
            problem = backend.content_problem(slot.uri, here.manifest)
            if problem is None:
                if adopting:
                    backend.note(digest, slot.uri)
                return Found(stored, "unchanged", seconds=here.manifest.seconds)
            expected = stored
        old = None if here.manifest is None else here.manifest.fingerprint
        reasons = [problem] if problem else explain(fingerprint, old)
        for uri in backend.candidates(digest, slot.uri):
            there = backend.inspect(uri).manifest
            if there is None or there.fingerprint_digest != digest or there.released:
                continue  # a hint from before: the result is elsewhere now, or nowhere
            if adopting:
                taken = take(backend, uri, slot, there, parents)
            else:
                taken = _peek(backend, uri, there)
            if isinstance(taken, Manifest):
                mended = f" ({problem} in its own slot)" if problem else ""
                reason = f"{_origin(uri, there)}{mended}"
                return Found(taken.output(slot.uri), reason, seconds=there.seconds)
            reasons.append(f"stored result in {uri}: {taken}")
    return Found(None, "; ".join(reasons), expected)


def take(
    backend: Backend, uri: str, slot: Slot, there: Manifest, parents: Sequence[Ref] | None = None
) -> Manifest | str:
    """Takes the result of another place over into a slot; else returns what is wrong with it."""
    values: dict[str, object] = {
        "slot": slot,
        "adopted_from": uri,
        "adopted_at": datetime.now(UTC),
        "parents": there.parents if parents is None else bare(parents),
    }
    return backend.take(uri, there.model_copy(update=values))


def _peek(backend: Backend, uri: str, there: Manifest) -> Manifest | str:
    return backend.content_problem(uri, there) or there


def _origin(uri: str, manifest: Manifest) -> str:
    if uri.startswith(f"{REPLACED}/"):
        return f"reused from {manifest.slot.uri} (replaced since)"
    return f"reused from {manifest.slot.run}"
