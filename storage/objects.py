"""Objects of a bucket: get, put, compare and put; errors become one line each."""

import ipaddress
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from schemas.errors import StoreError, StoreUnavailable

if TYPE_CHECKING:
    from obstore import GetResult  # there is no such name at run time

_CONNECT_S = 3
_SILENCE_S = 10
"""How long a server may say nothing in the middle of a request."""
_REQUEST_S = 6 * 3600
"""For all of a large object; a server that falls silent is noticed long before."""
_RETRIES = 4
_RETRYING_S = 15
"""After this time a failed request is not tried again: a dead server is told in half a minute."""
_CONFLICT_WAITS_S = (0.1, 0.4, 1.6)
"""Between attempts to make an object that another request is about to make."""
_PARALLEL = 8
_STREAM_BYTES = 1 << 20
_PART_BYTES = 8 << 20
"""Part of an upload; a bucket takes at most 10,000 of them for one object."""
_PARTS_AT_ONCE = 4
"""Parts that wait in memory, for each of the `_PARALLEL` files."""

_REFUSALS = ("AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden")
_WITHOUT_KEYS = ("169.254.169.254", "metadata endpoint", "CredentialsProvider")
"""Words of errors that come up where no keys are set, and the client asks the machine for some."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Object:
    """Content of an object, and what names this version of it."""

    content: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Entry:
    """An object as a list tells it."""

    key: str
    bytes: int
    modified: datetime
    """By the clock of the server."""


class Objects:
    """The objects below one prefix of a bucket; keys are relative to it.

    Raises:
        StoreUnavailable: From every method, where the server cannot be reached or fails.
        StoreError: From every method, where it refuses, or has no such bucket.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self.endpoint = _usable_endpoint(os.environ.get("AWS_ENDPOINT_URL"))
        self._bucket = bucket
        with self._told("open store", ""):
            self._store = S3Store(
                bucket,
                prefix=prefix or None,
                client_options={
                    "allow_http": allows_http(self.endpoint),
                    "connect_timeout": timedelta(seconds=_CONNECT_S),
                    "read_timeout": timedelta(seconds=_SILENCE_S),
                    "timeout": timedelta(seconds=_REQUEST_S),
                },
                retry_config={
                    "max_retries": _RETRIES,
                    "retry_timeout": timedelta(seconds=_RETRYING_S),
                },
            )

    def get(self, key: str) -> Object | None:
        """Returns an object; null if there is none."""
        with self._told("read", key):
            try:
                got = obstore.get(self._store, key)
                return Object(bytes(got.bytes()), got.meta["e_tag"] or "")
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return None

    def stream(self, key: str) -> Iterator[memoryview] | None:
        """Returns the content of an object in parts; null if there is none."""
        with self._told("read", key):
            try:
                got = obstore.get(self._store, key)
            except FileNotFoundError as error:
                self._refuse_missing_bucket(error)
                return None
        return self._parts(key, got)

    def size(self, key: str) -> int | None:
        """Returns the size of an object in bytes; null if there is none."""
        with self._told("read", key):
            try:
                return obstore.head(self._store, key)["size"]
            except FileNotFoundError:
                return None

    def part(self, key: str, start: int, length: int) -> bytes:
        """Returns `length` bytes of an object from `start`, fewer at its end."""
        with self._told("read", key):
            return bytes(obstore.get_range(self._store, key, start=start, length=length))

    def put(self, key: str, content: bytes | Path) -> None:
        """Makes or replaces an object in one atomic step."""
        with self._told("write", key):
            obstore.put(
                self._store,
                key,
                content,
                chunk_size=_PART_BYTES,
                max_concurrency=_PARTS_AT_ONCE,
            )

    def create(self, key: str, content: bytes) -> str | None:
        """Makes an object and returns its etag; null if there was one already.

        S3 answers 409 while another request for the key is under way, which may come to nothing,
        and the client takes that for an object. So it is looked up, and else tried again.
        """
        for wait_s in (*_CONFLICT_WAITS_S, None):
            with self._told("write", key):
                try:
                    return obstore.put(self._store, key, content, mode="create")["e_tag"] or ""
                except AlreadyExistsError as error:
                    if self.size(key) is not None:
                        return None
                    conflict = error
            if wait_s is not None:
                time.sleep(wait_s)
        raise StoreUnavailable(
            f"cannot write {self.url}/{key}: other requests for it are under way, try again"
        ) from conflict

    def exchange(self, key: str, content: bytes, etag: str) -> str | None:
        """Replaces one version of an object and returns the new etag; null if it is not there."""
        with self._told("write", key):
            try:
                done = obstore.put(self._store, key, content, mode={"e_tag": etag})
            except PreconditionError:
                return None
            return done["e_tag"] or ""

    def names(self, prefix: str = "") -> list[str]:
        """Returns the keys and the folders directly below a prefix, sorted."""
        with self._told("list", prefix):
            found = obstore.list_with_delimiter(self._store, prefix or None)
            return sorted([*found["common_prefixes"], *(o["path"] for o in found["objects"])])

    def keys(self, prefix: str) -> list[str]:
        """Returns all keys below a prefix, those changed last at the end."""
        with self._told("list", prefix):
            found = [o for page in obstore.list(self._store, prefix) for o in page]
        return [o["path"] for o in sorted(found, key=lambda o: (o["last_modified"], o["path"]))]

    def etags(self, prefix: str) -> dict[str, str]:
        """Returns the version of every object below a prefix, by key."""
        with self._told("list", prefix):
            found = [o for page in obstore.list(self._store, prefix) for o in page]
        return {o["path"]: o["e_tag"] or "" for o in found}

    def entries(self) -> list[Entry]:
        """Returns all objects."""
        with self._told("list", ""):
            found = [o for page in obstore.list(self._store) for o in page]
        return [Entry(o["path"], o["size"], o["last_modified"]) for o in found]

    def entry(self, key: str) -> Entry | None:
        """Returns what a list would tell of an object; null if there is none."""
        with self._told("read", key):
            try:
                found = obstore.head(self._store, key)
            except FileNotFoundError:
                return None
        return Entry(key, found["size"], found["last_modified"])

    def delete(self, key: str) -> None:
        """Deletes an object; one that is not there is no error."""
        with self._told("delete", key), suppress(FileNotFoundError):
            obstore.delete(self._store, key)

    def _parts(self, key: str, got: "GetResult") -> Iterator[memoryview]:
        with self._told("read", key):
            for part in got.stream(min_chunk_size=_STREAM_BYTES):
                yield memoryview(part)

    def _refuse_missing_bucket(self, error: FileNotFoundError) -> None:
        if "NoSuchBucket" in str(error):
            raise self._no_bucket() from error

    def _no_bucket(self) -> StoreError:
        where = f" at {self.endpoint}" if self.endpoint else ""
        return StoreError(
            f"no bucket {self._bucket}{where}: make it, or check the address of the store"
        )

    @contextmanager
    def _told(self, action: str, key: str) -> Iterator[None]:
        """Makes one line of what the client raises, whose texts are pages long."""
        try:
            yield
        except FileNotFoundError as error:
            self._refuse_missing_bucket(error)
            raise StoreError(f"cannot {action} {self.url}/{key}: it is not there") from error
        except (BaseError, OSError, ValueError) as error:
            raise self._in_one_line(
                f"cannot {action} {self.url}/{key}".rstrip("/"), error
            ) from error

    def _in_one_line(self, what: str, error: Exception) -> StoreError:
        text = str(error)
        endpoint = self.endpoint or "the default endpoint of S3"
        if "NoSuchBucket" in text:
            return self._no_bucket()
        if isinstance(error, PermissionDeniedError | UnauthenticatedError) or any(
            word in text for word in _REFUSALS
        ):
            return StoreError(
                f"{what}: {endpoint} refuses the keys: check AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY and what they may do"
            )
        if any(word in text for word in _WITHOUT_KEYS):
            return StoreError(f"{what}: no keys: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        lines = text.splitlines() or [type(error).__name__]
        reason = lines[0].rpartition(" - ")[2]
        return StoreUnavailable(
            f"{what}: {endpoint} does not answer as it should ({reason}): check AWS_ENDPOINT_URL "
            "and the network, then run the same again"
        )


def allows_http(endpoint: str | None) -> bool:
    """Says whether to talk without encryption: on loopback, else where the user allows it."""
    if os.environ.get("AWS_ALLOW_HTTP", "").lower() in {"1", "true", "yes"}:
        return True
    host = urlsplit(endpoint or "").hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _usable_endpoint(endpoint: str | None) -> str | None:
    """Returns the endpoint that the environment names; the client panics at some others."""
    if not endpoint:
        return None
    parts = urlsplit(endpoint)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise StoreError(f"AWS_ENDPOINT_URL={endpoint} is no address: write http(s)://host:port")
    if parts.scheme == "http" and not allows_http(endpoint):
        raise StoreError(
            f"AWS_ENDPOINT_URL={endpoint} is not encrypted: take https, or set AWS_ALLOW_HTTP=true"
        )
    return endpoint


def in_parallel(function: Callable[[In], Out], values: Sequence[In]) -> list[Out]:
    """Calls a function that waits for the network on every value; keeps their order."""
    if len(values) < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        return list(pool.map(function, values))
