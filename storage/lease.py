"""Holds a run, or the collection, of a store in a bucket: no lock there ends with its process.

The holder renews its lease, an object with a counter. Who wants it watches the counter by its own
clock, so no two clocks are ever compared. On the holder's own machine its process is looked up.
Every change is a put on condition that nobody else changed the lease since it was read.
"""

import functools
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from schemas.errors import StoreError
from storage.objects import Object, Objects

RENEWAL_S = 3.0
"""Time between two renewals."""
LEASE_S = 20.0
"""How long a lease may stand still before another process takes it."""
_LOOK_S = 0.5


class Lease(BaseModel):
    """Who holds a run or a collection."""

    model_config = ConfigDict(frozen=True)

    holder: str
    """Drawn anew for every hold."""
    host: str
    """Digest that two processes share if one can look up the other."""
    pid: int
    started: int
    """When the process started, in ticks since boot: process ids are used again."""
    renewals: int = 0
    released: bool = False

    @classmethod
    def mine(cls) -> "Lease":
        """Returns a new lease of this process."""
        pid = os.getpid()
        return cls(holder=uuid.uuid4().hex, host=_host(), pid=pid, started=_started(pid) or 0)

    @property
    def is_here(self) -> bool:
        """Whether its process ran on this machine."""
        return self.host == _host()

    @property
    def is_over(self) -> bool:
        """Whether it is certain that nobody holds it any more."""
        return self.released or (self.is_here and _started(self.pid) != self.started)

    def content(self) -> bytes:
        """Returns the lease as it is stored."""
        return self.model_dump_json().encode()


class Held:
    """A lease that this process has; a thread renews it."""

    def __init__(self, objects: Objects, key: str, lease: Lease, etag: str) -> None:
        self._objects, self._key = objects, key
        self._lease, self._etag = lease, etag
        self._stop = threading.Event()
        self._is_lost = False
        self._thread = threading.Thread(target=self._renew, name=f"lease {key}", daemon=True)
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """Whether another process has taken it, since this one was not heard of for too long."""
        return self._is_lost

    def release(self) -> None:
        """Ends it, unless it was lost; a server that does not answer finds out by itself."""
        self._stop.set()
        self._thread.join()
        if not self._is_lost:
            with suppress(StoreError):
                self._put(self._lease.model_copy(update={"released": True}))

    def _renew(self) -> None:
        while not self._stop.wait(RENEWAL_S) and not self._is_lost:
            with suppress(StoreError):  # the next renewal may get through
                self._put(self._lease.model_copy(update={"renewals": self._lease.renewals + 1}))

    def _put(self, lease: Lease) -> None:
        etag = self._objects.exchange(self._key, lease.content(), self._etag)
        if etag is None:
            present = self._objects.get(self._key)
            theirs = None if present is None else _parsed(present)
            if present is None or theirs is None or theirs.holder != lease.holder:
                self._is_lost = True
                return
            etag = present.etag  # our own put, whose answer was lost
        self._lease, self._etag = lease, etag


@contextmanager
def hold(objects: Objects, key: str, refusal: str) -> Iterator[Held]:
    """Holds a lease for this process.

    Args:
        objects: Where the lease is.
        key: Its key.
        refusal: What to say if another process holds it; `{who}` is put in.

    Raises:
        StoreError: On entering, if another process holds it.
    """
    lease = Lease.mine()
    held = Held(objects, key, lease, _acquire(objects, key, refusal, lease))
    try:
        yield held
    finally:
        held.release()


def refuse_while_held(objects: Objects, key: str, refusal: str) -> None:
    """Refuses while another process holds a lease; waits where the holder may be dead.

    Raises:
        StoreError: If another process holds it.
    """
    _seen_free(objects, key, refusal, None, time.monotonic)


def is_held(objects: Objects, key: str) -> bool:
    """Says whether a process holds a lease, as far as can be told without waiting.

    A holder that died on another machine still counts, until somebody has waited for it.
    """
    present = objects.get(key)
    lease = None if present is None else _parsed(present)
    return lease is not None and not lease.is_over


class Watched:
    """Tells whether a lease is held, by what it was between questions.

    A holder on another machine that has not renewed it for `LEASE_S` by this process's clock is
    taken for dead, as by those who want the lease.
    """

    def __init__(
        self, objects: Objects, key: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Begins to watch; the clock tells seconds."""
        self._objects, self._key, self._clock = objects, key, clock
        self._seen: Lease | None = None
        self._since = clock()

    def is_held(self) -> bool:
        """Says whether a process holds the lease."""
        present = self._objects.get(self._key)
        lease = None if present is None else _parsed(present)
        if lease is None or lease.is_over:
            return False
        if lease != self._seen:
            self._seen, self._since = lease, self._clock()
        return lease.is_here or self._clock() - self._since <= LEASE_S


def _acquire(
    objects: Objects,
    key: str,
    refusal: str,
    mine: Lease,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    while True:
        present = _seen_free(objects, key, refusal, mine, clock)
        if present is not None and present.content == mine.content():
            return present.etag  # our own put, whose answer was lost
        taken = (
            objects.create(key, mine.content())
            if present is None
            else objects.exchange(key, mine.content(), present.etag)
        )
        if taken is not None:
            return taken


def _seen_free(
    objects: Objects, key: str, refusal: str, mine: Lease | None, clock: Callable[[], float]
) -> Object | None:
    """Returns what is in the place of a lease that nobody else holds; null if there is nothing."""
    seen: Lease | None = None
    since = clock()
    while True:
        present = objects.get(key)
        lease = None if present is None else _parsed(present)
        if lease is None or lease.is_over or lease == mine:
            return present
        if lease == seen and clock() - since > LEASE_S:
            return present
        if lease.is_here or (seen is not None and lease != seen):
            who = f"pid {lease.pid}" + ("" if lease.is_here else " on another machine")
            raise StoreError(refusal.format(who=who))
        if seen is None:
            seen, since = lease, clock()
        time.sleep(_LOOK_S)


def _parsed(present: Object) -> Lease | None:
    """Reads a lease; null for something else, which nobody renews."""
    try:
        return Lease.model_validate_json(present.content)
    except ValidationError:
        return None


@functools.cache
def _host() -> str:
    """Names what processes must share to look each other up, and does not tell which machine."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        # Containers on one machine have process ids of their own.
        namespace = Path("/proc/self/ns/pid").readlink()
    except OSError:
        return uuid.uuid4().hex
    return hashlib.sha256(f"{boot}{namespace}".encode()).hexdigest()[:16]


def _started(pid: int) -> int | None:
    """Returns when a process started, in ticks since boot; null if there is none."""
    try:
        # The name before the last bracket may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])
